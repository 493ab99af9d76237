"""The table beneath the console's charts: the same numbers, now and over the range, each with what explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.urls import reverse

from capacity.models import Pool
from penstock.web import figures
from penstock.web.series import Line


@dataclass(frozen=True)
class Measure:
    """A row. ``kind`` names its colour, ``cells`` are (key of the live figure, text).

    ``why`` says in a sentence what the number is, ``url`` leads to what explains it.
    """

    key: str
    name: str
    kind: str
    unit: str
    cells: tuple[tuple[str, str], ...]
    why: str
    url: str
    link: str


COLUMNS = (("now", "Now"), ("mean", "Mean"), ("least", "Least"), ("most", "Most"))

_MEASURES = (
    ("have", "Have", "have", "What ready replicas supply.", "deployments", "Deployments"),
    ("could", "Could have", "could", "As many replicas as deployments may have.", "deployments", "Deployments"),
    ("sold", "Sold", "sold", "Reservations that run.", "reservations", "Reservations"),
    ("offered", "Offered", "used", "What was asked for, refused or not.", "deployments", "Deployments"),
    ("reserved", "Used, reserved", "used", "Settled inside reservations.", "guarantees", "Guarantees"),
    ("best", "Used, best-effort", "best", "Settled beyond reservations.", "tenants", "Tenants"),
    ("lent", "Lent", "lent", "Reserved, left unused, and taken by best effort.", "guarantees", "Guarantees"),
)
_OF_POOL = {"deployments", "reservations"}
"""Pages whose list can be narrowed to a pool."""


@dataclass(frozen=True)
class AcceleratorMeasure:
    """A row of the accelerators' table; ``page`` explains it."""

    key: str
    name: str
    why: str
    page: str
    link: str


ACCELERATOR_MEASURES = (
    AcceleratorMeasure("have", "Have", "Healthy ones of hosts that are not lost.", "operators:hosts", "Hosts"),
    AcceleratorMeasure("used", "Used", "Held by replicas, whatever these do.", "operators:hosts", "Hosts"),
    AcceleratorMeasure(
        "sold",
        "Sold",
        "As many as supply what is sold, without a spare.",
        "operators:reservations",
        "Reservations",
    ),
)


def figures_of(series: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the table's cells, as ``have now``, by what the chart draws."""
    told: dict[str, str] = {}
    for key, *_ in _MEASURES:
        for (column, _), value in zip(COLUMNS, _summary(series[key]), strict=True):
            told[f"{key} {column}"] = figures.number(value)
    broken = [value for value in series["breached"] if value is not None]
    told["breached sum"] = figures.number(sum(broken)) if broken else figures.NONE
    return told


def accelerator_figures_of(series: Mapping[str, Any]) -> dict[str, str]:
    """The same of accelerators."""
    return {
        f"{key} {column}": figures.number(value)
        for key in ("have", "used", "sold")
        for (column, _), value in zip(COLUMNS, _summary(series[key]), strict=True)
    }


def breach_month(series: Mapping[str, Any]) -> str:
    """The month (UTC) of the newest breach in the range, as the guarantees page takes it; empty without one."""
    times = [at for at, minutes in zip(series["t"], series["breached"], strict=True) if minutes]
    return f"{datetime.fromtimestamp(times[-1], UTC):%Y-%m}" if times else ""


def _summary(line: Line) -> Sequence[float | None]:
    known = [value for value in line if value is not None]
    if not known:
        return (None, None, None, None)
    return known[-1], sum(known) / len(known), min(known), max(known)


def measures(series: Mapping[str, Any], pool: Pool | None) -> list[Measure]:
    """The table's rows, in the order of the chart."""
    told = figures_of(series)
    rows = []
    for key, name, kind, why, page, link in _MEASURES:
        query = f"?pool={pool.slug}" if pool and page in _OF_POOL else ""
        rows.append(
            Measure(
                key=key,
                name=name,
                kind=kind,
                unit=series["unit"],
                cells=tuple((f"{key} {column}", told[f"{key} {column}"]) for column, _ in COLUMNS),
                why=why,
                url=reverse(f"operators:{page}") + query,
                link=link,
            )
        )
    return rows
