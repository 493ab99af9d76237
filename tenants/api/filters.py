"""Filters that several parts of the REST API offer."""

from __future__ import annotations

import datetime
from typing import Any

import django_filters
from django.core.exceptions import ValidationError
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


class MomentFilter(django_filters.IsoDateTimeFilter):
    field_class = MomentField
