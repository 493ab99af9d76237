"""Fields that several parts of the REST API read."""

from __future__ import annotations

import json
import re
from typing import Any

from rest_framework import serializers

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""As JSON writes it: a backslash that is itself written as two does not begin it."""


class JsonObjectField(serializers.DictField):
    """A JSON object that every database can store: no NUL, no infinite number."""

    default_error_messages = {"unstorable": "Leave out NUL characters and infinite numbers."}

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().to_internal_value(data)
        try:
            text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        except ValueError:
            self.fail("unstorable")
        if _NUL.search(text):
            self.fail("unstorable")
        return found
