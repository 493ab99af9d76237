"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any


def as_json(value: Any) -> None:
    """All in ASCII: what others wrote must not steer the terminal, and programs read it the same."""
    print(json.dumps(value, indent=2))


def table(rows: Iterable[dict[str, Any]], columns: Sequence[str], *, nothing: str) -> None:
    """One line per row, as wide as the terminal at most; ``nothing`` is said where there is none."""
    lines = [[cell(row, name) for name in columns] for row in rows]
    if not lines:
        print(nothing, file=sys.stderr)
        return
    heads = [name.rpartition(".")[2].replace("_", " ").upper() for name in columns]
    widths = [max(_width(line[i]) for line in [heads, *lines]) for i in range(len(columns))]
    room = shutil.get_terminal_size((160, 24)).columns if sys.stdout.isatty() else 10_000
    for line in [heads, *lines]:
        text = "  ".join(value + " " * (width - _width(value)) for value, width in zip(line, widths, strict=True))
        print(text.rstrip()[:room])


def details(row: dict[str, Any]) -> None:
    """A row, one field per line."""
    width = max(map(len, row), default=0)
    for name in row:
        print(f"{name.replace('_', ' '):<{width}}  {cell(row, name)}")


def value_at(row: dict[str, Any], name: str) -> Any:
    """The value at ``name``, which may be a path with dots; None where there is none."""
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def cell(row: dict[str, Any], name: str) -> str:
    """The value at ``name`` as people read it."""
    return clean(_told(value_at(row, name), name))


def _told(value: Any, name: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and not any(isinstance(one, dict | list) for one in value):
        return ", ".join(map(str, value))
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return _when(value) if isinstance(value, str) and name.endswith(("_at", "_since", "at")) else str(value)


def _when(text: str) -> str:
    """An ISO time in the viewer's own zone, to the second."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text
    return at.replace(tzinfo=at.tzinfo or UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clean(text: str, keep: str = " ") -> str:
    """``text`` without control characters but ``keep``: what others wrote must not steer the terminal."""
    return "".join(c if c in keep or unicodedata.category(c)[0] != "C" else " " for c in text)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
