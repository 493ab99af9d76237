"""Shared by all apps' models: time-ordered identifiers, explicit times, and rows that are written once."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self, TypeVar

import uuid_utils.compat
from django.core.exceptions import NON_FIELD_ERRORS, FieldError, ValidationError
from django.db import IntegrityError, models, router
from django.db.models.manager import Manager
from django.utils import timezone


def uuid7() -> uuid.UUID:
    """A new UUIDv7: random, and ordered by the time it was made (RFC 9562)."""
    return uuid_utils.compat.uuid7()


class TakenError(ValidationError, IntegrityError):
    """What must be unique was written by somebody else between the look at it and the write: told as if it was seen."""


class Identified(models.Model):
    """A row with a UUIDv7 key and the times of its making and last change.

    ``updated_at`` is set by ``save()``; ``QuerySet.update()`` does not move it: set it explicitly there.
    A constraint whose ``violation_error_code`` names a field reports its error at that field.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True, editable=False)

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        """As Django's. Raises TakenError, at its field, where somebody else was faster with what must be unique."""
        is_new = self._state.adding
        try:
            super().save(*args, **kwargs)
        except IntegrityError as error:
            told = self._taken(error) if is_new else None
            if told is None:
                raise
            raise TakenError(told) from error

    def take_turn(self) -> Self:
        """The row as it is stored, touched. Call it in a transaction, before anything that depends on the row is read.

        Of two who change the row, or what belongs to it, the second waits here and then sees what the first wrote.
        Raises DoesNotExist.
        """
        rows = type(self)._default_manager.filter(pk=self.pk)
        rows.update(updated_at=timezone.now())
        return rows.get()

    def _taken(self, error: IntegrityError) -> dict[str, list[str]] | None:
        """By field what ``error`` says is taken; None where it says something else."""
        name = getattr(getattr(error.__cause__, "diag", None), "constraint_name", None) or ""
        columns = str(error).rpartition("UNIQUE constraint failed: ")[2] if "UNIQUE constraint" in str(error) else ""
        table = self._meta.db_table
        columns_of = {field.name: field.column for field in self._meta.concrete_fields}
        for constraint in self._meta.constraints:
            if not isinstance(constraint, models.UniqueConstraint):
                continue
            spelt = ", ".join(f"{table}.{columns_of[field]}" for field in constraint.fields)
            if constraint.name == name or (spelt and spelt == columns):
                at = constraint.violation_error_code or NON_FIELD_ERRORS
                return {at: [str(constraint.violation_error_message)]}
        for field in self._meta.concrete_fields:
            is_named = name.startswith(f"{table}_{field.column}_") or columns == f"{table}.{field.column}"
            if field.unique and not field.primary_key and is_named:
                return {field.name: self.unique_error_message(type(self), (field.name,)).messages}
        return None

    def validate_constraints(self, exclude: Iterable[str] | None = None) -> None:
        """As Django's, with each error at the field its code names. Raises ValidationError."""
        excluded = set(exclude or ())
        self._checks_hold = self._all_checks_hold(excluded)
        try:
            super().validate_constraints(exclude=excluded)
        except ValidationError as error:
            raise ValidationError(self._at_fields(error, excluded)) from error
        finally:
            self._checks_hold = False

    _checks_hold = False

    def get_constraints(self) -> list[tuple[type[models.Model], Sequence[models.BaseConstraint]]]:
        """As Django's, without the checks that are known to hold while the constraints are validated."""
        found = super().get_constraints()
        if not self._checks_hold:
            return found
        return [(model, [one for one in some if not isinstance(one, models.CheckConstraint)]) for model, some in found]

    def _all_checks_hold(self, exclude: set[str]) -> bool:
        """All checks in one query, where Django asks the database once for each; False: ask again, one by one.

        A check that is neither true nor false, for want of a value, holds, alone as together with others.
        """
        using = router.db_for_write(type(self), instance=self)
        for model, constraints in super().get_constraints():
            checks = [one.condition for one in constraints if isinstance(one, models.CheckConstraint)]
            against = self._get_field_expression_map(meta=model._meta, exclude=exclude)  # type: ignore[attr-defined]
            try:
                if checks and not models.Q(*checks).check(against, using=using):
                    return False
            except FieldError:
                return False
        return True

    def _at_fields(self, error: ValidationError, exclude: set[str]) -> dict[str, list[ValidationError]]:
        fields = {field.name for field in self._meta.get_fields()} - exclude
        placed: dict[str, list[ValidationError]] = {}
        for name, errors in error.update_error_dict({}).items():
            for single in errors:
                at = single.code if name == NON_FIELD_ERRORS and single.code in fields else name
                placed.setdefault(at or NON_FIELD_ERRORS, []).append(single)
        return placed


_Removed = TypeVar("_Removed", bound="Removable", covariant=True)


class LivingManager(Manager[_Removed]):
    """Only what has not been removed."""

    def get_queryset(self) -> models.QuerySet[_Removed]:
        return super().get_queryset().filter(removed_at=None)


class Removable(models.Model):
    """A row that stays for the sake of its history once it is removed: from then on only ``everything`` finds it.

    Foreign keys lead to it as before. Whatever name it had is free again: hold names unique where ``removed_at`` is
    null alone.
    """

    removed_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = LivingManager()
    everything = Manager()  # noqa: DJ012 - the first manager is the default one

    class Meta:
        abstract = True


class WrittenOnceError(Exception):
    """Somebody tried to change or delete a row that stands as it was written."""


_Row = TypeVar("_Row", bound="WrittenOnce", covariant=True)


class WrittenOnceQuerySet(models.QuerySet[_Row]):
    """Refuses to change or delete; retention deletes through a plain ``QuerySet`` in its own service."""

    def update(self, **kwargs: Any) -> int:
        frozen = set(kwargs) - self.model.mutable_fields
        if frozen:
            raise WrittenOnceError(f"{self.model._meta.verbose_name}: {', '.join(sorted(frozen))} cannot be changed")
        return super().update(**kwargs)

    def bulk_update(self, objs: Iterable[Any], fields: Iterable[str], batch_size: int | None = None) -> int:
        fields = list(fields)
        frozen = set(fields) - self.model.mutable_fields
        if frozen:
            raise WrittenOnceError(f"{self.model._meta.verbose_name}: {', '.join(sorted(frozen))} cannot be changed")
        return super().bulk_update(objs, fields, batch_size)

    def delete(self) -> tuple[int, dict[str, int]]:
        raise WrittenOnceError(f"{self.model._meta.verbose_name} rows are kept")


class WrittenOnce(models.Model):
    """A row that is never edited nor deleted one by one; ``mutable_fields`` names the exceptions."""

    mutable_fields: ClassVar[frozenset[str]] = frozenset()

    objects = WrittenOnceQuerySet.as_manager()

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        if self._state.adding:
            # Without it a row with a given primary key would silently replace the stored one.
            kwargs["force_insert"] = True
            super().save(*args, **kwargs)
            return
        frozen = set(kwargs.get("update_fields") or ("every field",)) - self.mutable_fields
        if frozen:
            raise WrittenOnceError(f"{self._meta.verbose_name}: {', '.join(sorted(frozen))} cannot be changed")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise WrittenOnceError(f"{self._meta.verbose_name} rows are kept")
