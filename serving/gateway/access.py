"""What one key may do with one model: worked out when it is first asked for, and again when a record has changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from capacity.policy.cost import CostProfile
from serving.gateway import errors
from serving.gateway.auth import Principal
from serving.gateway.demands import Demand
from serving.gateway.errors import Header
from serving.gateway.records import DeploymentRecord, LimitRecord, PoolRecord
from serving.gateway.standing_headers import Shown, shown_of
from serving.policy import admission, budgets
from serving.policy.admission import Meter


class View(Protocol):
    """``serving.gateway.snapshot.Snapshot``, as far as a model's name is resolved with it."""

    @property
    def deployments_by_name(self) -> Mapping[str, DeploymentRecord]: ...

    @property
    def pools(self) -> Mapping[str, PoolRecord]: ...


class Prices(Protocol):
    def profile(self, pool: PoolRecord) -> CostProfile: ...


class Access(NamedTuple):
    """``headers`` go out with every answer; ``fixed`` are the demands that are the same for every request."""

    principal: Principal
    deployment: DeploymentRecord
    pool: PoolRecord
    profile: CostProfile
    fixed: tuple[Demand, ...]
    metered: tuple[tuple[LimitRecord, Meter], ...]
    """The others, and what of a request counts for each. Money is last, and not there where nothing costs any."""
    unpaid: int
    """How many of these count what has no price."""
    ends_at: float
    """Until when the budgets among them hold, in UNIX seconds."""
    headers: tuple[Header, ...]
    shown: tuple[Shown, ...]
    """The limits that answers tell what is left of."""
    tightest_mu: LimitRecord | None

    def demands(self, tokens: int, mu: float, *, is_paid: bool = False) -> tuple[Demand, ...]:
        """What a request that may use ``tokens``, and is expected to cost ``mu``, asks of its limits. ``is_paid``: by a
        reservation, so that it costs no money."""
        amounts = admission.metered(tokens=tokens, mu=mu, money=mu * self.profile.price_per_1000_mu / 1000)
        metered = self.metered[: self.unpaid] if is_paid else self.metered
        return (*self.fixed, *[Demand(limit, amounts[meter]) for limit, meter in metered])


class AccessBook:
    """Raises from ``find`` what the client is told: 404 for a model it cannot see, 403 for one its key may not use."""

    def __init__(self, prices: Prices, size: int = 50_000) -> None:
        self._prices = prices
        self._size = size
        self._known: dict[tuple[str, str], Access] = {}
        self._limits: dict[str, LimitRecord] = {}

    def find(self, view: View, principal: Principal, name: str) -> Access:
        deployment = view.deployments_by_name.get(name)
        pool = view.pools.get(deployment.pool) if deployment is not None else None
        at = (principal.key.id, name)
        found = self._known.get(at)
        if (
            found is not None
            and found.deployment is deployment
            and found.pool is pool
            and found.principal.key is principal.key
            and found.principal.tenant is principal.tenant
            and time.time() < found.ends_at
        ):
            return found
        if deployment is None or pool is None or not is_visible(pool, principal):
            raise errors.model_not_found(name)
        if principal.key.models and name not in principal.key.models:
            raise errors.forbidden(f"This API key may not use the model '{name}'.", code="model_not_allowed")
        if len(self._known) >= self._size:
            self._known.clear()
        made = self._known[at] = self._make(principal, deployment, pool, name)
        return made

    def _make(self, principal: Principal, deployment: DeploymentRecord, pool: PoolRecord, name: str) -> Access:
        """``name``: what was asked for, the deployment's own or that of an adapter on it."""
        tenant, key = principal.tenant, principal.key
        limits_of = (*tenant.limits, *tenant.more_limits, *key.limits, *key.more_limits)
        found = admission.applicable(limits_of, deployment.name, name)
        now, profile = time.time(), self._prices.profile(pool)
        limits = [self._held_as(limit, pool, now) for limit in found]
        headers = admission.limit_headers(limits).items()
        metered = sorted(
            ((limit, admission.METER[limit.kind]) for limit in limits if limit.kind in admission.METER),
            key=lambda one: one[1],
        )
        unpaid = sum(meter != admission.MONEY for _, meter in metered)
        return Access(
            principal,
            deployment,
            pool,
            profile,
            tuple(Demand(limit) for limit in limits if limit.kind in ("requests_per_min", "concurrency")),
            tuple(metered if profile.price_per_1000_mu else metered[:unpaid]),
            unpaid,
            budgets.day_ends_at(now),
            tuple((name.encode(), value.encode()) for name, value in headers),
            shown_of(limits),
            min(
                (limit for limit in limits if limit.kind.startswith("mu_")), key=lambda limit: limit.value, default=None
            ),
        )

    def _held_as(self, limit: LimitRecord, pool: PoolRecord, now: float) -> LimitRecord:
        """``limit.held_as``, the same object for all keys that it holds for: grants go by it."""
        made = limit.held_as(pool=pool.id, now=now)
        known = self._limits.get(made.id)
        if known != made:
            if len(self._limits) >= self._size:
                self._limits.clear()
            known = self._limits[made.id] = made
        return known


def is_visible(pool: PoolRecord, principal: Principal) -> bool:
    return pool.tenants is None or principal.tenant.id in pool.tenants
