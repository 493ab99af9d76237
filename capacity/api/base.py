"""What the views of this app share: rows that are named by id or by slug, and numbers that are finite."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from django.db import models
from django.db.models import QuerySet
from django.http import Http404
from rest_framework import serializers, status
from rest_framework.response import Response

from tenants.api.base import ApiViewSet
from tenants.models import Removable

_Row = TypeVar("_Row", bound=models.Model)
_LONGEST_NAME = 100


class NamedViewSet(ApiViewSet[_Row]):
    """Its rows are found by id, or by the name in ``name_field``."""

    name_field = "slug"

    def get_object(self) -> _Row:
        name = self.kwargs[self.lookup_url_kwarg or self.lookup_field]
        return find_named(self.get_queryset(), name, self.name_field)


class RemovableViewSet(NamedViewSet[_Row]):
    """Its rows may be removed: then they can be looked at by id, and not acted on. ``remove`` is the service."""

    def get_queryset(self) -> QuerySet[_Row]:
        rows = super().get_queryset()
        return rows if self.action in ("list", "retrieve", "destroy") else rows.filter(removed_at=None)

    def removed(self, row: Any, remove: Callable[[], object]) -> Response:
        """204 after ``remove()``, or where it was removed before."""

        def done() -> Response:
            remove()
            return Response(status=status.HTTP_204_NO_CONTENT)

        return Response(status=status.HTTP_204_NO_CONTENT) if row.removed_at else self.changed(row, done)


def find_named(rows: QuerySet[_Row], name: str, name_field: str = "slug") -> _Row:
    """The row of this id or name. Raises Http404. What is removed has no name any more."""
    by = _by(name, name_field)
    if "pk" not in by and issubclass(rows.model, Removable):
        by["removed_at"] = None
    found = rows.filter(**by).first()
    if found is None:
        raise Http404(f"There is no {rows.model._meta.verbose_name} with the id or {name_field} {name!r}.")
    return found


class NamedField(serializers.SlugRelatedField[Any]):
    """Another row, named by its id or slug in a request, and by its slug in an answer."""

    default_error_messages = {"does_not_exist": "There is none with the id or {slug_name} {value}."}

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str) or "\0" in data:
            self.fail("invalid")
        rows: QuerySet[Any] = self.get_queryset()  # type: ignore[assignment]  # None for read-only fields alone
        found = rows.filter(**_by(data, self.slug_field or "slug")).first()
        if found is None:
            self.fail("does_not_exist", slug_name=self.slug_field, value=repr(data))
        return found


PAIRS = "pairs [attainment below, share of the month's price]"


class TiersField(serializers.ListField):
    """What a month's breach minutes give back: ``capacity.policy.guarantee.CreditTiers``."""

    def __init__(self, **kwargs: Any) -> None:
        pair = serializers.ListField(child=NumberField(min_value=0, max_value=1), min_length=2, max_length=2)
        super().__init__(child=pair, **kwargs)


class NumberField(serializers.FloatField):
    """A finite number: no price, objective or wait is infinite."""

    default_error_messages = {"not_finite": "Give a finite number."}

    def to_internal_value(self, data: Any) -> float:
        try:
            value = float(super().to_internal_value(data))
        except OverflowError:
            self.fail("not_finite")
        if not math.isfinite(value):
            self.fail("not_finite")
        return value


class NamesField(serializers.DictField):
    """Values by name. A name has 1 to 100 characters, none of them NUL, which PostgreSQL does not keep."""

    default_error_messages = {"bad_name": "Give each value a name of 1 to 100 characters, without NUL."}

    def to_internal_value(self, data: Any) -> Any:
        found = super().to_internal_value(data)
        if not all(0 < len(name) <= _LONGEST_NAME and "\0" not in name for name in found):
            self.fail("bad_name")
        return found


def _by(name: str, name_field: str) -> dict[str, Any]:
    try:
        return {"pk": uuid.UUID(name)}
    except ValueError:
        return {name_field: name}
