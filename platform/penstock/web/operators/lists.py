"""Lists of the operators' pages: sorted and filtered by the address, in pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest

PAGE_ROWS = 50


@dataclass(frozen=True)
class Column:
    """A heading that sorts: ``next`` is the value of ``sort`` that its link asks for."""

    next: str
    aria: str


@dataclass(frozen=True)
class Listing:
    """A page of rows. ``total`` counts all that pass the filters."""

    page: Page[Any]
    columns: Mapping[str, Column]
    sort: str
    is_filtered: bool

    @property
    def rows(self) -> Sequence[Any]:
        return list(self.page.object_list)

    @property
    def total(self) -> int:
        return self.page.paginator.count


def listing(
    request: HttpRequest,
    rows: QuerySet[Any],
    *,
    sorts: Mapping[str, str],
    default: str,
    is_filtered: bool = False,
    size: int = PAGE_ROWS,
) -> Listing:
    """The page of ``rows`` that the address asks for, by ``sort`` and ``page``; nonsense there counts as not given.

    ``sorts``: the column of the database behind each name; a leading minus in ``default`` or the address turns it.
    """
    chosen = request.GET.get("sort", "")
    chosen = chosen if chosen.removeprefix("-") in sorts else default
    name, is_down = chosen.removeprefix("-"), chosen.startswith("-")
    ordered = rows.order_by(f"{'-' if is_down else ''}{sorts[name]}", "pk")
    columns = {
        one: Column(
            next=f"-{one}" if one == name and not is_down else one,
            aria=("descending" if is_down else "ascending") if one == name else "",
        )
        for one in sorts
    }
    page = Paginator(ordered, size).get_page(request.GET.get("page"))
    return Listing(page=page, columns=columns, sort=chosen, is_filtered=is_filtered)


def text_of(request: HttpRequest, name: str) -> str:
    """What the address says under ``name``: trimmed, and nothing where it holds what no database can be asked for."""
    text = request.GET.get(name, "").strip()[:200]
    return "" if "\0" in text else text


def choice_of(request: HttpRequest, name: str, choices: Sequence[str]) -> str:
    """What the address says under ``name`` if it is one of ``choices``, else nothing."""
    text = request.GET.get(name, "")
    return text if text in choices else ""
