"""Fields that several parts of the REST API read."""

from __future__ import annotations

import json
import re
from typing import Any

from rest_framework import serializers

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""As JSON writes it: a backslash that is itself written as two does not begin it."""
UNSTORABLE = "Leave out NUL characters and infinite numbers."


def is_storable(value: Any) -> bool:
    """Whether every database can store ``value`` as JSON. Surrogate pairs and depth are the parser's to check."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return False
    return not _NUL.search(text)


class JsonObjectField(serializers.DictField):
    """A JSON object that every database can store: no NUL, no infinite number."""

    default_error_messages = {"unstorable": UNSTORABLE}

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().to_internal_value(data)
        if not is_storable(found):
            self.fail("unstorable")
        return found
