"""Moments that an address of a page names. Whoever is signed in can write any there."""

from __future__ import annotations

import datetime
from uuid import UUID

from django.utils.dateparse import parse_datetime

FIRST_YEAR, LAST_YEAR = 1970, 9998
"""As the REST API has it: what lies further out falls out of the calendar in another time zone."""


def read_moment(text: str) -> datetime.datetime | None:
    """A moment in UTC, or the beginning of a day; one without a zone is in UTC. None for what is none."""
    try:
        found = parse_datetime(text) or parse_datetime(f"{text}T00:00")
        if found is None:
            return None
        moment = found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        return None
    return moment if FIRST_YEAR <= moment.year <= LAST_YEAR else None


def read_place(text: str) -> tuple[datetime.datetime, UUID] | None:
    """Where a page of rows begins, written as a moment with its zone, ``_`` and an id. None for what is none."""
    # A + that was not escaped has become a space.
    moment, _, identifier = text.replace(" ", "+").partition("_")
    try:
        if (found := parse_datetime(moment)) is None or found.tzinfo is None:
            return None
        at = found.astimezone(datetime.UTC)
        return (at, UUID(identifier)) if FIRST_YEAR <= at.year <= LAST_YEAR else None
    except (ValueError, OverflowError):
        return None
