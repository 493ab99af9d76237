"""Tenants and what belongs to them, for the command line."""

from __future__ import annotations

from penstock.cli.remote.resources import Field, Resource, Verb, change, create

NAME = Field("name", "name", is_place=True, is_required=True)
TENANTS = Resource(
    "tenants",
    "the customers of the installation",
    "/tenants",
    ("slug", "name", "is_active", "created_at", "id"),
    names=("slug", "name"),
    verbs=(
        create(NAME, Field("slug", "short name in addresses (made from the name)")),
        change(
            Field("name", "name"),
            Field("slug", "short name in addresses"),
            Field("is_active", "yes or no", "switch"),
            Field("best_effort", "it may use more than it has reserved", "switch"),
        ),
    ),
    nothing="no tenants yet: penstock tenants create NAME",
)
_KEY_FIELDS = (
    Field("scopes", "what it may do: inference, usage, manage", "words"),
    Field("models_allowed", "served model names; none: all", "words"),
    Field("allowed_ips", "networks in CIDR form; none: all", "words"),
)
KEYS = Resource(
    "keys",
    "API keys of a tenant",
    "/tenants/{tenant}/keys",
    ("name", "public_id", "scopes", "is_usable", "expires_at", "last_used_at", "id"),
    names=("name", "public_id"),
    verbs=(
        create(NAME, *_KEY_FIELDS, Field("expires_at", "ISO time at which it ends"), secret="secret"),  # noqa: S106
        change(Field("name", "name"), *_KEY_FIELDS),
        Verb(
            "rotate",
            "a new key with the same rights; the old one works on for a while",
            "POST",
            "/rotate",
            (Field("overlap_s", "seconds for which the old one works (86400)", "number"),),
            secret="secret",  # noqa: S106
        ),
        Verb("revoke", "refuse it from now on", "POST", "/revoke", is_undoable=False),
    ),
    nothing="no keys yet: penstock keys create NAME",
)
MEMBERS = Resource(
    "members",
    "people of a tenant and their roles",
    "/tenants/{tenant}/members",
    ("user.email", "user.name", "role", "created_at", "id"),
    names=("user.email",),
    verbs=(
        change(Field("role", "owner, admin, developer or viewer")),
        Verb("remove", "end a membership", "DELETE", is_undoable=False),
    ),
    nothing="no members yet",
)
INVITATIONS = Resource(
    "invitations",
    "one-time links into a tenant",
    "/tenants/{tenant}/invitations",
    ("email", "role", "state", "invited_by", "expires_at", "id"),
    names=("email",),
    verbs=(
        create(
            Field("email", "address of the person", is_place=True, is_required=True),
            Field("role", "owner, admin, developer or viewer (developer)"),
            Field("valid_for_h", "hours until it expires (168)", "number"),
            secret="accept_url",  # noqa: S106
            help="invite somebody; the link is printed once",
        ),
        Verb("revoke", "let the link open nothing", "POST", "/revoke", is_undoable=False),
    ),
    filters=(Field("state", "open, accepted, expired or revoked"),),
    nothing="nobody is invited: penstock invitations create ADDRESS",
)
_KIND = Field(
    "kind",
    "requests_per_min, tokens_per_min, mu_per_min or concurrency; a budget: mu_per_day, mu_per_month, money_per_day or "
    "money_per_month",
    is_place=True,
    is_required=True,
)
_LIMITED = Field("model", "a served model name; else all together")
_SET_BY = Field("set_by", "whose: operator or tenant; else the operator's for operators, the tenant's for others")
LIMITS = Resource(
    "limits",
    "plain limits and budgets of a tenant, a key or a member: the operator's and the tenant's own; the smaller holds",
    "/tenants/{tenant}/limits",
    ("kind", "model", "value", "set_by", "is_in_force", "budget.resets_at", "updated_at", "id"),
    names=("kind",),
    filters=(Field("set_by", "operator or tenant"),),
    has_rows=False,
    under={"key": KEYS, "member": MEMBERS},
    verbs=(
        Verb(
            "set",
            "set one, whether or not there is one",
            "PUT",
            "/{kind}",
            (
                _KIND,
                Field("value", "per minute, day or month (UTC), or at once", "number", is_place=True, is_required=True),
                _LIMITED,
                _SET_BY,
            ),
            is_on_list=True,
        ),
        Verb(
            "remove",
            "remove one: what it held back is free, as far as the other does not hold",
            "DELETE",
            "/{kind}",
            (_KIND, _LIMITED, _SET_BY),
            is_on_list=True,
        ),
    ),
    nothing="no limits: penstock limits set tokens_per_min 100000",
)
USAGE = Resource(
    "usage",
    "requests of a tenant, newest first; for operators who name none, of all",
    "/tenants/{tenant}/usage",
    ("ended_at", "model", "input_tokens", "cached_tokens", "output_tokens", "actual_mu", "outcome", "id"),
    names=("id",),
    platform_path="/usage",
    filters=(
        Field("since", "ended then or later, ISO time"),
        Field("until", "ended before, ISO time"),
        Field("model", "served model name"),
        Field("outcome", "completed, client_closed, refused, …"),
        Field("client_request_id", "the client's own id"),
    ),
    nothing="no requests in that time",
)
ANCHORS = Resource(
    "anchors",
    "where a tenant's chain of usage records stood each day: keep them, and verify with them",
    "/tenants/{tenant}/usage/anchors",
    ("day", "sequence", "hash"),
    names=("day",),
    nothing="no anchors yet: the first is taken when a day (UTC) with usage is over",
)
GUARANTEES = Resource(
    "guarantees",
    "how a tenant's reservations were kept in a month",
    "/tenants/{tenant}/guarantees",
    (
        "pool",
        "mu_per_min",
        "month",
        "minutes",
        "breach_minutes",
        "attainment",
        "credit_share",
        "credit_amount",
        "currency",
        "id",
    ),
    names=("pool",),
    filters=(Field("month", "as 2026-11 (UTC; this month)"),),
    has_rows=False,
    verbs=(
        Verb(
            "minutes",
            "what each minute of a reservation was, newest first",
            "GET",
            "/{reservation}/minutes",
            (
                Field("reservation", "id of the reservation", is_place=True, is_required=True),
                Field("is_breach", "yes: breach minutes alone", "switch"),
                Field("since", "began then or later, ISO time"),
                Field("until", "began before, ISO time"),
            ),
            is_on_list=True,
            columns=(
                "starts_at",
                "entitled_mu",
                "used_mu",
                "lent_mu",
                "throttled_mu",
                "slow_mu",
                "unserved_mu",
                "is_breach",
                "reason",
            ),
        ),
    ),
    nothing="nothing was promised then, or no minute of it is final yet",
)
INVOICES = Resource(
    "invoices",
    "what a tenant owes: invoices of months, and notes that correct them",
    "/tenants/{tenant}/invoices",
    ("name", "tenant", "month", "kind", "totals", "corrects", "issued_at", "id"),
    names=("name",),
    alias="invoice",
    platform_path="/invoices",
    filters=(Field("month", "as 2026-11 (UTC)"), Field("kind", "invoice, credit_note or debit_note")),
    has_rows=False,
    nothing="nothing was issued yet: penstock invoices preview shows what this month comes to",
)
_SINCE = (
    Field("since", "from this ISO time on"),
    Field("until", "before this ISO time"),
    Field("action", "noun.verb, e.g. api_key.revoke"),
    Field("actor", "e-mail address, or the name of the machinery"),
)
AUDIT = Resource(
    "audit",
    "who did what in a tenant, newest first",
    "/tenants/{tenant}/audit",
    ("at", "actor", "action", "object_name", "after", "id"),
    names=("id",),
    filters=_SINCE,
    nothing="nothing was done in that time",
)
