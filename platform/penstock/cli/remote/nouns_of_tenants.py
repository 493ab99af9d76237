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
            Field("name", "name"), Field("slug", "short name in addresses"), Field("is_active", "yes or no", "switch")
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
