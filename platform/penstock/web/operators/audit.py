"""The audit log: who did what to which object, newest first."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from django.http import HttpResponse
from django.utils import timezone

from penstock.web.access import UserRequest
from penstock.web.look import moment
from penstock.web.moments import read_moment, read_place
from penstock.web.operators.frame import read_page, show
from penstock.web.operators.lists import text_of
from tenants.models import AuditEntry, Tenant

ROWS = 50
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_UNITS = {"_mu_per_min": "MU/min", "_bytes": "bytes", "_ms": "ms", "_s": "s"}
"""Units by how the name of a value ends."""
_NOTHING = "none"
_FILTERS = ("actor", "action", "object", "tenant", "since", "until")


@dataclass(frozen=True)
class Change:
    """A value of the object: what it was (empty where the object is new) and what it is (empty where it is gone)."""

    name: str
    before: str
    after: str
    unit: str = ""


@dataclass(frozen=True)
class Row:
    entry: AuditEntry
    changes: list[Change]
    tenant: Tenant | None


@dataclass(frozen=True)
class Place:
    """Of an entry in the log. Two may be written at one moment: its time alone is none."""

    at: datetime.datetime
    id: UUID

    def __str__(self) -> str:
        return f"{self.at.isoformat()}_{self.id}"

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """What ``str`` gave, from an address; None when it is absent or malformed."""
        found = read_place(text)
        return cls(*found) if found else None


def page_of(rows: QuerySet[AuditEntry], text: str) -> dict[str, object]:
    """What a template needs of the page of ``rows`` after the place ``text``: the newest page where it is none."""
    before = Place.parse(text)
    if before is not None:
        rows = rows.filter(Q(at__lt=before.at) | Q(at=before.at, id__lt=before.id))
    found = list(rows[: ROWS + 1])
    older = Place(found[ROWS - 1].at, found[ROWS - 1].id) if len(found) > ROWS else None
    return {"rows": rows_of(found[:ROWS]), "older": older, "is_paged": before is not None}


@read_page
def audit_log(request: UserRequest) -> HttpResponse:
    """The log, filtered by who, what, which object, which tenant and when (UTC), in pages."""
    given = {name: text_of(request, name) for name in _FILTERS}
    rows, errors = entries(given)
    context = {
        **page_of(rows, text_of(request, "before")),
        "is_filtered": any(given.values()),
        "given": given,
        "errors": errors,
        "tenants": Tenant.objects.order_by("name").only("slug", "name")[:500],
        "today": AuditEntry.objects.filter(at__gte=timezone.now() - datetime.timedelta(days=1)).count(),
    }
    return show(request, "operators/audit.html", context, current="operators:audit-log")


def entries(given: Mapping[str, str]) -> tuple[QuerySet[AuditEntry], dict[str, str]]:
    """The entries that pass the filters, newest first, and what is wrong with a filter, by its name."""
    rows, errors = AuditEntry.objects.order_by("-at", "-id"), {}
    if given["actor"]:
        rows = rows.filter(actor__icontains=given["actor"])
    if given["action"]:
        rows = rows.filter(action__istartswith=given["action"])
    if text := given["object"]:
        rows = rows.filter(Q(object_name__icontains=text) | Q(object_type__iexact=text) | Q(object_id=text))
    if given["tenant"]:
        tenant = Tenant.objects.filter(slug=given["tenant"]).first()
        rows = rows.filter(tenant_id=tenant.pk) if tenant else rows.none()
    for name, lookup in (("since", "at__gte"), ("until", "at__lt")):
        if not given[name]:
            continue
        # A browser's field for a moment knows no zone; the label says that it is UTC.
        at = read_moment(given[name])
        if at is None:
            errors[name] = "Write a day and a time since 1970, e.g. 2026-05-31T08:00."
        else:
            rows = rows.filter(**{lookup: at})
    return rows, errors


def rows_of(found: list[AuditEntry]) -> list[Row]:
    """The entries with what they changed, and their tenants: one query."""
    tenants = Tenant.objects.in_bulk({entry.tenant_id for entry in found if entry.tenant_id})
    return [Row(entry, changes(entry), tenants.get(entry.tenant_id) if entry.tenant_id else None) for entry in found]


def changes(entry: AuditEntry) -> list[Change]:
    """What the act changed, by name; of a new or a removed object all its values."""
    before, after = (value if isinstance(value, dict) else {} for value in (entry.before, entry.after))
    names = [*before, *(name for name in after if name not in before)]
    made = []
    for name in names:
        ending, unit = next(((end, unit) for end, unit in _UNITS.items() if name.endswith(end)), ("", ""))
        was, now = (_told(values[name]) if name in values else "" for values in (before, after))
        shown = name.removesuffix(ending).replace("_", " ")
        made.append(Change(shown, was, now, "" if (now or was) == _NOTHING else unit))
    return made


def _told(value: Any) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        at = read_moment(value) if _MOMENT.fullmatch(value) else None
        return value if at is None else moment(at, "stamp")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    if isinstance(value, dict) and all(isinstance(one, str) for one in value.values()):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return json.dumps(value, ensure_ascii=False)
