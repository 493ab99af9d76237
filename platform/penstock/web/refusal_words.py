"""What a refusal is called, and what to do about it, by the reason that clients read."""

from __future__ import annotations

from typing import Literal, NamedTuple

Group = Literal["limit", "room", "other"]


class Words(NamedTuple):
    """``page`` (a tenant's page by the name of its address) is where to do it; empty where that is no page."""

    name: str
    advice: str
    group: Group
    page: str = ""


_RATE = "Clients that wait as retry-after says are admitted. Spread requests, or have the limit raised."
_BUDGET = "Waiting does not help before the period ends. Have the budget raised, or use less."
_ROOM = "Best effort gives way to reservations. Retry as retry-after says; what must always be served needs one."
_PLATFORM = "The platform's matter; clients that retry get through. Tell the operator if it lasts."

WORDS: dict[str, Words] = {
    "requests_per_min": Words("Limit of requests/min", _RATE, "limit", "tenant-limits"),
    "tokens_per_min": Words("Limit of tokens/min", _RATE, "limit", "tenant-limits"),
    "mu_per_min": Words("Limit of MU/min", _RATE, "limit", "tenant-limits"),
    "concurrency": Words(
        "Limit of requests at once",
        "Send the next when one has ended, or have the limit raised.",
        "limit",
        "tenant-limits",
    ),
    "mu_per_day": Words("Budget of MU per day", _BUDGET, "limit", "tenant-limits"),
    "mu_per_month": Words("Budget of MU per month", _BUDGET, "limit", "tenant-limits"),
    "money_per_day": Words("Budget of money per day", _BUDGET, "limit", "tenant-limits"),
    "money_per_month": Words("Budget of money per month", _BUDGET, "limit", "tenant-limits"),
    "reservation": Words(
        "Reservation used up",
        "This pool lends nothing beyond reservations. Spread requests, or ask for a larger one.",
        "limit",
        "tenant-reservations",
    ),
    "reservation_required": Words(
        "A reservation is needed",
        "This pool is served to reservations only. Ask for one.",
        "other",
        "tenant-reservations",
    ),
    "capacity_exceeded": Words("No room for best effort", _ROOM, "room", "tenant-reservations"),
    "capacity_reclaimed": Words("Given back to a reservation", _ROOM, "room", "tenant-reservations"),
    "no_ready_replica": Words("No replica was ready", _PLATFORM, "room"),
    "engine_busy": Words("The engine was busy", _PLATFORM, "room"),
    "limits_unavailable": Words("Limits could not be checked", _PLATFORM, "room"),
    "journal_unavailable": Words("Usage could not be recorded", _PLATFORM, "room"),
    "gateway_stopping": Words("The gateway was stopping", _PLATFORM, "room"),
    "model_not_found": Words(
        "No such model", "Name one of those that GET /v1/models lists.", "other", "tenant-quickstart"
    ),
    "model_not_allowed": Words(
        "The key may not use the model", "Allow the model on the key, or use another key.", "other", "tenant-keys"
    ),
    "model_not_supported": Words(
        "The model cannot be asked this", "Send it to a route that the model answers: the error names them.", "other"
    ),
    "context_length_exceeded": Words(
        "The prompt is too long", "Shorten the prompt, or ask for fewer tokens (max_tokens).", "other"
    ),
    "request_too_large": Words("The body is too large", "Send less in one request.", "other"),
}


def words_of(reason: str, status: int) -> Words:
    """Of any reason: those that are not known here are faults of the request, or the platform's from 500 on."""
    known = WORDS.get(reason)
    if known is not None:
        return known
    name = reason.replace("_", " ").capitalize()
    if status >= 500:
        return Words(name, _PLATFORM, "room")
    return Words(name, "The request itself is at fault: the answer's message says what must change.", "other")
