"""What there is, in the words of a manifest; and the calls of the REST API that carry a manifest's steps out."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any
from urllib.parse import quote

from penstock.cli.remote.api import Api, ApiError
from penstock.cli.remote.manifest import Entry, Step, merged
from penstock.cli.remote.manifest_kinds import DRAINING, HAS_BEGUN, INVITED, IS_ONE_OF, PARTS, SECTIONS, Key
from penstock.cli.remote.manifest_shapes import PRICE, moment

_REVISION = ("runtime", "options", "target_concurrency")
Rows = dict[Key, dict[str, Any]]


class Stock:
    """The objects of an installation, read once and as far as they are asked for. Raises ApiError."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.ids: dict[Key, str] = {}
        self.ends: dict[Key, str] = {}
        """Of reservations that follow each other, the last."""

    def rows(self, sections: Iterable[str], tenants: Iterable[str] | None = None) -> Rows:
        """All objects of ``sections``, with what stands within ``tenants`` (slugs; None: within all that are seen)."""
        found: Rows = {}
        for section in sections:
            if section == "reservations":
                found |= self.reservations()
                continue
            for row in self._api.every(SECTIONS_AT[section]):
                fields = READ[section](self._api, row)
                name = row[SECTIONS[section].names[0]]
                found[(section, "", name)] = fields
                self.ids[(section, "", name)] = row["id"]
        for slug in [key[2] for key in found if key[0] == "tenants"] if tenants is None else tenants:
            for part in PARTS:
                found |= self.part(slug, part)
        return found

    def part(self, tenant: str, part: str) -> Rows:
        """One kind of what stands within a tenant. An open invitation counts as the member that it makes."""
        found: Rows = {}
        if part == "limits":
            return self.limits(tenant)
        for row in self._api.every(f"/tenants/{quote(tenant)}/{part}"):
            if part == "keys" and not row["is_usable"]:
                continue
            names = (
                (row["user"]["email"].lower(),) if part == "members" else tuple(row[name] for name in PARTS[part].names)
            )
            key = (part, tenant, *names)
            if key in found:
                continue  # Keys may share a name; the newest comes first.
            found[key] = {name: row[name] for name in PARTS[part].fields if name in row}
            self.ids[key] = row["id"]
        if part == "members":
            for row in self._api.every(f"/tenants/{quote(tenant)}/invitations", {"state": "open"}):
                found.setdefault((part, tenant, row["email"].lower()), {"role": row["role"], INVITED: True})
        return found

    def limits(self, tenant: str, holders: Iterable[Key] | None = None) -> Rows:
        """The limits of a tenant, and of ``holders`` (keys and members of it that were read before; None: all)."""
        path = f"/tenants/{quote(tenant)}"
        places = {(f"{path}/limits", "", "")}
        known = [key for key in self.ids if key[0] in ("keys", "members") and key[1] == tenant]
        for holder in known if holders is None else holders:
            if holder in self.ids:
                names = (holder[2], "") if holder[0] == "keys" else ("", holder[2])
                places.add((f"{path}/{holder[0]}/{self.ids[holder]}/limits", *names))
        return {
            ("limits", tenant, row["kind"], row["model"], row["set_by"], *names): {"value": row["value"]}
            for place, *names in sorted(places)
            for row in self._api.every(place)
        }

    @cached_property
    def is_operator(self) -> bool:
        return bool(self._api.get("/me")["is_operator"])

    def reservations(self) -> Rows:
        """What is sold or asked for and not over, by tenant, pool and note. Those that follow each other are one: what
        the first says, until the last ends."""
        called: dict[Key, list[dict[str, Any]]] = {}
        for tenant in [""] if self.is_operator else [row["slug"] for row in self._api.every("/tenants")]:
            path = f"/tenants/{quote(tenant)}/reservations" if tenant else "/reservations"
            for state in ("requested", "draft", "active"):
                for row in self._api.every(path, {"state": state}):
                    key = ("reservations", "", tenant or row["tenant"], row["pool"], row["note"])
                    called.setdefault(key, []).append(row)
        return {key: self._line(key, rows) for key, rows in called.items()}

    def _line(self, key: Key, rows: list[dict[str, Any]]) -> dict[str, Any]:
        sold = [row for row in rows if row["state"] != "requested"]
        rows = sorted(sold or rows, key=lambda row: str(row["starts_at"]))
        first, last = rows[0], rows[-1]
        self.ids[key], self.ends[key] = first["id"], last["id"]
        starts_at = moment(first["starts_at"])
        fields = {name: first[name] for name in SECTIONS["reservations"].fields if name in first}
        fields |= {
            "ends_at": last["ends_at"],
            "price": None if first["price"] is None else float(first["price"]),
            "state": "sold" if sold else "requested",
            HAS_BEGUN: starts_at is not None and starts_at <= datetime.datetime.now(datetime.UTC),
        }
        if not sold:
            fields = {name: value for name, value in fields.items() if name not in ("burst_mu", "price", "currency")}
        follows = all(after["renews"] == before["id"] for before, after in pairwise(rows))
        return fields if follows else {**fields, IS_ONE_OF: len(rows)}


def _host(api: Api, row: Mapping[str, Any]) -> dict[str, Any]:
    is_draining = row["state"] == "draining"
    fields = {"labels": row["labels"], "is_cordoned": is_draining or row["state"] == "cordoned"}
    return {**fields, DRAINING: True} if is_draining else fields


def _pool(api: Api, row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: row[name] for name in SECTIONS["pools"].fields if name in row and name != "price"}
    in_force = row["price"]
    if in_force is not None:
        versions = api.every(f"/pools/{quote(row['slug'])}/profiles")
        newest = next((one for one in versions if one["version"] == in_force["version"]), None)
        if newest is not None:
            fields["hardware_type"] = newest["hardware_type"]
            fields["price"] = {name: newest[name] for name in PRICE if newest[name] is not None}
    return fields


def _deployment(api: Api, row: Mapping[str, Any]) -> dict[str, Any]:
    known = SECTIONS["deployments"].fields
    current = row["revision"] or {}
    return {name: row[name] for name in known if name in row} | {
        name: current[name] for name in _REVISION if name in current
    }


def _plain(section: str) -> Callable[[Api, Mapping[str, Any]], dict[str, Any]]:
    return lambda api, row: {name: row[name] for name in SECTIONS[section].fields if name in row}


SECTIONS_AT = {section: f"/{section}" for section in SECTIONS}
READ: dict[str, Callable[[Api, Mapping[str, Any]], dict[str, Any]]] = {
    "tenants": _plain("tenants"),
    "hosts": _host,
    "models": _plain("models"),
    "pools": _pool,
    "deployments": _deployment,
}


class Builder:
    """Carries steps out. ``do`` returns a secret or a link that is shown this once, else nothing."""

    def __init__(self, api: Api, stock: Stock) -> None:
        self._api, self._stock = api, stock
        self._acts: dict[str, Callable[[Step], str]] = {
            "tenants": self._tenant,
            "limits": self._limit,
            "keys": self._key,
            "members": self._member,
            "hosts": self._host,
            "models": self._model,
            "pools": self._pool,
            "deployments": self._deployment,
            "reservations": self._reservation,
        }

    def do(self, step: Step) -> str:
        """Raises ApiError."""
        return self._acts[step.entry.section](step)

    def _make_or_change(self, step: Step, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        entry = step.entry
        if step.act == "create":
            made: dict[str, Any] = self._api.post(path, {entry.kind.names[0]: entry.names[0], **body})
            self._stock.ids[entry.key] = made["id"]
            return made
        return self._api.patch(f"{path}/{self._stock.ids[entry.key]}", body) if body else {}

    def _tenant(self, step: Step) -> str:
        fields = dict(step.after)
        rights = {name: fields.pop(name) for name in ("is_active", "best_effort") if fields.get(name) is not None}
        self._make_or_change(step, "/tenants", fields)
        if rights and not (step.act == "create" and all(rights.values())):
            self._api.patch(f"/tenants/{quote(step.entry.names[0])}", rights)
        return ""

    def _limit(self, step: Step) -> str:
        kind, model, set_by, key, member = step.entry.names
        tenant, holder = step.entry.tenant, ""
        if key:
            holder = f"/keys/{self._stock.ids['keys', tenant, key]}"
        elif member:
            holder = f"/members/{self._stock.ids['members', tenant, member]}"
        body = {**step.after, "model": model, "set_by": set_by}
        self._api.put(f"/tenants/{quote(tenant)}{holder}/limits/{quote(kind)}", body)
        return ""

    def _reservation(self, step: Step) -> str:
        entry, fields = step.entry, dict(step.after)
        tenant, pool, note = entry.names
        reason = {name: entry.fields[name] for name in ("override_reason",) if name in entry.fields}
        if step.act == "create":
            is_request = fields.pop("state") == "requested"
            starts_at = moment(fields.get("starts_at"))
            if starts_at is not None and starts_at <= datetime.datetime.now(datetime.UTC):
                del fields["starts_at"]  # It began elsewhere, or was to: here it begins now.
            body = {"pool": pool, "note": note, **fields}
            if is_request:
                self._api.post(f"/tenants/{quote(tenant)}/reservations", body)
            else:
                self._api.post("/reservations", {"tenant": tenant, **body})
            return ""
        path = f"/reservations/{self._stock.ids[entry.key]}"
        if fields.pop("state", None) == "sold":
            agreed = {name: fields.pop(name) for name in ("burst_mu", "price", "currency") if name in fields}
            self._api.post(f"{path}/approve", agreed | reason)
        last = f"/reservations/{self._stock.ends[entry.key]}"
        if "ends_at" in fields and last != path:
            self._api.post(f"{last}/change", {"ends_at": fields.pop("ends_at")} | reason)
        if fields:
            self._api.post(f"{path}/change", fields | reason)
        return ""

    def _key(self, step: Step) -> str:
        made = self._make_or_change(step, f"/tenants/{quote(step.entry.tenant)}/keys", step.after)
        return str(made.get("secret", ""))

    def _member(self, step: Step) -> str:
        tenant, entry = quote(step.entry.tenant), step.entry
        if step.act == "create":
            return str(
                self._api.post(f"/tenants/{tenant}/invitations", {"email": entry.names[0], **step.after})["accept_url"]
            )
        self._api.patch(f"/tenants/{tenant}/members/{self._stock.ids[entry.key]}", step.after)
        return ""

    def _host(self, step: Step) -> str:
        path = f"/hosts/{quote(step.entry.names[0])}"
        if "labels" in step.after:
            self._api.patch(path, {"labels": step.after["labels"]})
        if "is_cordoned" in step.after:
            self._api.post(f"{path}/{'cordon' if step.after['is_cordoned'] else 'uncordon'}")
        return ""

    def _model(self, step: Step) -> str:
        self._make_or_change(step, "/models", step.after)
        return ""

    def _pool(self, step: Step) -> str:
        fields, slug = dict(step.after), step.entry.names[0]
        price, hardware = fields.pop("price", None), fields.get("hardware_type")
        if step.act == "create":
            price = dict(price) if price else price
            later = ("replica_mu_per_min", "price_per_1000_mu")
            supply = {name: price.pop(name) for name in later if price and name in price}
            self._make_or_change(step, "/pools", fields | ({"price": price} if price else {}))
            if not supply:
                return ""
            price, hardware = supply, None
        else:
            fields.pop("hardware_type", None)
            users = {name: fields.pop(name) for name in ("tenants",) if name in fields}
            self._make_or_change(step, "/pools", fields)
            if users:
                self._api.put(f"/pools/{quote(slug)}/tenants", users)
        if price is None and hardware is None:
            return ""
        there = _pool(self._api, self._api.get(f"/pools/{quote(slug)}"))
        wanted = there.get("price", {}) | (price or {})
        if wanted != there.get("price") or hardware not in (None, there.get("hardware_type")):
            body = {**wanted, "hardware_type": hardware or there["hardware_type"]}
            self._api.post(f"/pools/{quote(slug)}/profiles", body)
        return ""

    def _deployment(self, step: Step) -> str:
        fields = dict(step.after)
        if step.act == "create":
            if "options" in fields:
                fields["options"] = merged({}, fields["options"])
            self._make_or_change(step, "/deployments", fields)
            return ""
        path = f"/deployments/{self._stock.ids[step.entry.key]}"
        is_enabled = fields.pop("is_enabled", None)
        revision = {name: fields.pop(name) for name in _REVISION if name in fields}
        # What is refused most easily comes first, and nothing starts that is to stop.
        self._make_or_change(step, "/deployments", fields)
        if is_enabled is False:
            self._api.post(f"{path}/disable")
        if revision:
            self._api.post(f"{path}/revisions", next_revision(self._api.get(path)["revision"] or {}, revision))
        if is_enabled:
            self._api.post(f"{path}/enable")
        return ""


def next_revision(current: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The revision that follows ``current`` with what is named changed. Options of another runtime do not pass on."""
    kept = {name: current[name] for name in _REVISION if name in current}
    if named.get("runtime", kept.get("runtime")) != kept.get("runtime"):
        kept.pop("options", None)
    return (
        kept | dict(named) | ({"options": merged(kept.get("options"), named["options"])} if "options" in named else {})
    )


def known_names(current: Rows, api: Api, entries: Sequence[Entry]) -> dict[str, set[str]]:
    """Names that ``entries`` may refer to, of sections that they do not state themselves."""
    found = {section: {key[2] for key in current if key[0] == section} for section in SECTIONS}
    named = {entry.section for entry in entries}
    for section, needs in (
        ("deployments", "pools"),
        ("pools", "models"),
        ("pools", "tenants"),
        ("reservations", "pools"),
        ("reservations", "tenants"),
    ):
        if section in named and needs not in named:
            name = SECTIONS[needs].names[0]
            try:
                found[needs] |= {row[name] for row in api.every(SECTIONS_AT[needs])}
            except ApiError as error:
                if error.status != 403:
                    raise
                # Not a tenant's to list: the API says whether it may use the one that it names.
                found[needs] |= {entry.names[1] for entry in entries if entry.section == "reservations"}
    if "pools" in named:
        found["hardware-types"] = {row["slug"] for row in api.every("/hardware-types")}
    return found
