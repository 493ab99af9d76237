"""Who sets a plain limit, who may change it, and which of two holds.

Of each kind and model, a tenant, a key or a member has at most two limits: one that the operator set, and one of the
tenant's own. The smaller holds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

KINDS = (
    "requests_per_min",
    "tokens_per_min",
    "mu_per_min",
    "concurrency",
    "mu_per_day",
    "mu_per_month",
    "money_per_day",
    "money_per_month",
)
BUDGETS = frozenset(kind for kind in KINDS if kind.endswith(("_per_day", "_per_month")))
"""Kinds that are used up until the calendar's day or month (UTC) is over."""

OPERATOR = "operator"
TENANT = "tenant"

ASK_OPERATOR = (
    "Ask an operator of the platform to change or remove it. You can set a limit of your own beside it; the smaller of "
    "the two holds."
)


class Bound(Protocol):
    """A limit, as far as is asked here. One of the tenant as a whole has neither ``api_key_id`` nor ``member_id``."""

    @property
    def tenant_id(self) -> Hashable: ...
    @property
    def api_key_id(self) -> Hashable: ...
    @property
    def member_id(self) -> Hashable: ...
    @property
    def kind(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def set_by(self) -> str: ...
    @property
    def value(self) -> int: ...


L = TypeVar("L", bound=Bound)


@dataclass(frozen=True)
class Holding(Generic[L]):
    """The limits of one kind and model on one tenant, key or member: the operator's, the tenant's own, or both."""

    operators: L | None
    tenants: L | None

    @property
    def in_force(self) -> L:
        """The smaller one; of two of one size, the operator's."""
        both = [one for one in (self.operators, self.tenants) if one is not None]
        return min(both, key=lambda one: one.value)

    @property
    def lasting(self) -> L:
        """The one whose id names what gateways count by.

        Not the one that holds: what is used up, and who holds a seat, must not be forgotten when the other becomes the
        smaller one, least of all by an act of the tenant's.
        """
        found = self.operators or self.tenants
        assert found is not None  # noqa: S101 (for the type checker; a holding is of one limit at least)
        return found


def holdings(limits: Iterable[L]) -> list[Holding[L]]:
    """``limits`` by what they hold, in the order in which each first comes."""
    found: dict[tuple[Hashable, ...], dict[str, L]] = {}
    for limit in limits:
        scope = (limit.tenant_id, limit.api_key_id, limit.member_id, limit.kind, limit.model)
        found.setdefault(scope, {})[limit.set_by] = limit
    return [Holding(both.get(OPERATOR), both.get(TENANT)) for both in found.values()]


def set_by_whom(*, is_operator: bool) -> str:
    """Whose limits somebody sets who does not say: an operator the operator's, everybody else the tenant's."""
    return OPERATOR if is_operator else TENANT


def limit_refusal(set_by: str, *, is_operator: bool) -> str | None:
    """Why somebody who may change the tenant's limits may not change this one, in words; None where they may.

    An operator changes the tenant's own too, for the tenant.
    """
    if set_by == OPERATOR and not is_operator:
        return "This limit is set by the operator of the platform."
    return None
