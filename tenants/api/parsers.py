"""JSON bodies that everything behind the parser can walk through."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rest_framework import exceptions
from rest_framework.parsers import JSONParser

DEEPEST = 100
"""Levels of nesting. Python gives up at about 1,000 of its own, and so does whoever writes the body down."""
TOO_DEEP = f"Nest the JSON document at most {DEEPEST} levels deep."
TORN = "A text holds half of a surrogate pair (U+D800 to U+DFFF): send whole characters."


class BoundedJSONParser(JSONParser):
    """Refuses what is nested deeper than ``DEEPEST`` levels, and texts that no database and no answer can hold."""

    def parse(
        self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        try:
            found: dict[str, Any] = super().parse(stream, media_type, parser_context)
        except RecursionError:
            raise exceptions.ParseError(TOO_DEEP) from None
        if is_too_deep(found):
            raise exceptions.ParseError(TOO_DEEP)
        if is_torn(json.dumps(found, ensure_ascii=False)):
            raise exceptions.ParseError(TORN)
        return found


def is_torn(text: str) -> bool:
    """Whether ``text`` holds half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def is_too_deep(value: Any) -> bool:
    """Whether objects and lists stand in each other more than ``DEEPEST`` levels deep."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _within(outer) if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
