"""What pages say of two limits of one kind, where the smaller holds."""

from __future__ import annotations

from tenants.models import Limit

_WHOSE = {Limit.SetBy.OPERATOR: "operator's limit", Limit.SetBy.TENANT: "tenant's own limit"}


def whose(limit: Limit) -> str:
    return _WHOSE[Limit.SetBy(limit.set_by)]


def held_instead(limit: Limit) -> str:
    """A sentence of the other one, where that one holds; else empty. Starts with a space."""
    other = limit.holding.in_force
    return "" if other.pk == limit.pk else f" The {whose(other)} beside it, {other.value:,}, holds: the smaller does."


def left_over(limit: Limit) -> str:
    """What holds once ``limit`` is removed, as a sentence; empty where nothing does. Starts with a space."""
    held = limit.holding
    other = next((one for one in (held.operators, held.tenants) if one is not None and one.pk != limit.pk), None)
    return f" The {whose(other)}, {other.value:,}, still holds." if other is not None else ""
