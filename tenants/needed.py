"""What may not be removed yet, because something still refers to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MOST_NAMED = 20
"""So many references are told by name; the reason counts them all."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Something that refers to what was to be removed: its kind, how it is called, and what it is about."""

    kind: str
    name: str
    detail: str = ""


class StillNeeded(Exception):
    """It cannot be removed as things are. ``hint`` says what to do first, ``references`` what stands in the way."""

    def __init__(self, reason: str, *, hint: str, references: Iterable[Reference] = ()) -> None:
        super().__init__(reason)
        self.hint = hint
        self.references = tuple(references)[:MOST_NAMED]
