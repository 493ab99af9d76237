"""Filters that several parts of the REST API offer."""

from __future__ import annotations

import datetime
from typing import Any

import django_filters
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django_filters.fields import IsoDateTimeField


class MomentField(IsoDateTimeField):
    """In UTC: PostgreSQL reads no offset above 16 h. Not one that falls out of the calendar in another time zone."""

    def to_python(self, value: Any) -> Any:
        found = super().to_python(value)
        if found is None:
            return None
        if not 1970 <= found.year < 9999:
            raise ValidationError("Give a moment between 1970 and 9998.", "invalid")
        return found.astimezone(datetime.UTC)


class RemovedFilterSet(django_filters.FilterSet):
    """Lists what is there, or with ``removed=true`` what was removed."""

    removed = django_filters.BooleanFilter(method="untouched", label="Those that were removed, instead of the others.")

    def untouched(self, rows: QuerySet[Any], name: str, value: bool) -> QuerySet[Any]:
        return rows  # Said or not, it is decided below.

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        found: QuerySet[Any] = super().filter_queryset(queryset)
        return found.filter(removed_at__isnull=not self.form.cleaned_data.get("removed"))


class MomentFilter(django_filters.IsoDateTimeFilter):
    field_class = MomentField
