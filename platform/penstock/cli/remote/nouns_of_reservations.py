"""Reservations, for the command line of operators and of tenants."""

from __future__ import annotations

from penstock.cli.remote.resources import Field, Resource, Verb

SHAPE = (
    Field("mu_per_min", "MU/min", "number"),
    Field("input_tokens", "input tokens of a typical request", "number"),
    Field("cached_share", "share of the input that is in the prefix cache, 0 to 1", "number"),
    Field("output_tokens", "output tokens of a typical request", "number"),
    Field("units", 'units of modalities, as {"image_token": 600}', "json"),
    Field("requests_per_min", "so many of these a minute", "number"),
)
_TIMES = (
    Field("starts_at", "ISO time (now)"),
    Field("ends_at", "ISO time (until it is cancelled)"),
)
_NOTE = Field("note", "what it is for")
_OVERRIDE = Field("override_reason", "sell it although it does not fit, and why")
_AGREED = (
    Field("burst_mu", "MU at once (10 s of the rate, and at least the largest request)", "number"),
    Field("price", "money per MU/min and month", "number"),
    Field("currency", "three letters, e.g. EUR"),
)
TERMS = (*_TIMES, *_AGREED, _NOTE, _OVERRIDE)
_REASON = Field("reason", "why; the tenant reads it")
_FACTOR = Field("accepted_factor", "factor of the conversion, where another version of the price is in force", "number")
_END = Field("ends_at", "ISO time; none is said with an empty text")
_SIZE = Field("mu_per_min", "MU/min", "number", is_place=True, is_required=True)
_POOL = Field("pool", "slug or id", is_place=True, is_required=True)
RESERVATIONS = Resource(
    "reservations",
    "what is sold and asked for",
    "/tenants/{tenant}/reservations",
    ("tenant", "pool", "mu_per_min", "state", "starts_at", "ends_at", "verdict", "id"),
    names=("id",),
    platform_path="/reservations",
    verbs=(
        Verb(
            "request",
            "ask for one; an operator decides about it",
            "POST",
            fields=(_POOL, _SIZE, *_TIMES, _NOTE),
            is_on_list=True,
            at="tenant",
        ),
        Verb(
            "sell",
            "promise one, if it can be kept",
            "POST",
            fields=(Field("tenant", "slug or id", is_place=True, is_required=True), _POOL, _SIZE, *TERMS),
            is_on_list=True,
            at="platform",
        ),
        Verb("approve", "promise what was asked for", "POST", "/approve", (*_AGREED, _OVERRIDE), at="platform"),
        Verb("refuse", "decline what was asked for", "POST", "/refuse", (_REASON,), at="platform"),
        Verb(
            "change",
            "another size, time, burst, price or note",
            "POST",
            "/change",
            (Field("mu_per_min", "MU/min", "number"), *_TIMES, *_AGREED, _NOTE, _OVERRIDE),
            at="platform",
        ),
        Verb("cancel", "take a request back, or end what is sold", "POST", "/cancel", (_REASON,)),
        Verb("restore", "take a refusal or a cancellation back", "POST", "/restore", (_END, _OVERRIDE), at="platform"),
        Verb(
            "renew",
            "a further term from its end on",
            "POST",
            "/renew",
            (_END, Field("mu_per_min", "in the version in force", "number"), _FACTOR, *_AGREED, _NOTE, _OVERRIDE),
            at="platform",
        ),
        Verb("convert", "count it in the price in force", "POST", "/convert", (_FACTOR, _OVERRIDE), at="platform"),
        Verb("conversion", "what its MU are worth in the price in force", "GET", "/conversion"),
    ),
    filters=(
        Field("state", "requested, draft, active, ended, cancelled or refused"),
        Field("pool", "slug of the pool"),
    ),
    nothing="nothing is sold or asked for: penstock sell TENANT POOL --mu-per-min N",
)
