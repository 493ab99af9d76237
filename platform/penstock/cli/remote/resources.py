"""The nouns of the command line: where each is in the REST API, what is shown of it, and what can be done to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "number", "switch", "words", "json", "optional-number"]


@dataclass(frozen=True)
class Field:
    """``name`` in the API; on the command line ``--name-with-dashes``, or a place when ``is_place``."""

    name: str
    help: str
    kind: Kind = "text"
    is_place: bool = False
    is_required: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True)
class Verb:
    """Something done with or to a row. ``path`` is appended to the row's own, or to the list's where ``is_on_list``."""

    name: str
    help: str
    method: Literal["GET", "POST", "PATCH", "PUT", "DELETE"]
    path: str = ""
    fields: tuple[Field, ...] = ()
    is_on_list: bool = False
    is_undoable: bool = True
    """False: it asks first, unless ``--yes`` is given."""
    secret: str = ""
    """The field of the answer that is shown this once."""


@dataclass(frozen=True)
class Resource:
    """``names``: fields by which a person may call a row, beside its id. ``path`` may hold ``{tenant}``."""

    noun: str
    help: str
    path: str
    columns: tuple[str, ...]
    names: tuple[str, ...] = ("name",)
    verbs: tuple[Verb, ...] = ()
    filters: tuple[Field, ...] = ()
    nothing: str = "nothing there yet"

    @property
    def is_of_tenant(self) -> bool:
        return "{tenant}" in self.path


def create(*fields: Field, secret: str = "", help: str = "make one") -> Verb:
    return Verb("create", help, "POST", fields=fields, is_on_list=True, secret=secret)


def change(*fields: Field) -> Verb:
    return Verb("set", "change what is given", "PATCH", fields=fields)


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

RESOURCES = (TENANTS, KEYS)
