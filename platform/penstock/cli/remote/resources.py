"""The nouns of the command line: where each is in the REST API, what is shown of it, and what can be done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """Something done with or to a row.

    ``path`` is appended to the row's own, or to the list's where ``is_on_list``; ``{field}`` in it is filled in.
    """

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
    at: Literal["", "platform", "tenant"] = ""
    """Of a resource that is at two places: the one where this is done, if it is done at one alone."""
    columns: tuple[str, ...] = ()
    """Of a list that is the answer."""


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
    has_rows: bool = True
    """False: a list alone, whose rows cannot be asked for one by one."""
    alias: str = ""
    """Another word for the noun."""
    platform_path: str = ""
    """Where operators find those of all tenants, who name no tenant."""

    under: Mapping[str, Resource] = field(default_factory=dict)
    """What may have such rows of its own, by the option that names it: below its address they are called as here."""

    @property
    def is_of_tenant(self) -> bool:
        return "{tenant}" in self.path


def create(*fields: Field, secret: str = "", help: str = "make one") -> Verb:
    return Verb("create", help, "POST", fields=fields, is_on_list=True, secret=secret)


def change(*fields: Field) -> Verb:
    return Verb("set", "change what is given", "PATCH", fields=fields)
