"""By what right a request is served: inside a reservation of its tenant, or beyond, of what is lent.

What tenant, pool and reservations say of it is worked out when a model is first asked for, and again when one of these
records has changed.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol

from capacity.policy.cost import CostProfile
from serving.gateway import errors
from serving.gateway.access import Access
from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.errors import ApiError
from serving.gateway.placement import Lent, Owned
from serving.gateway.records import (
    DeploymentRecord,
    LimitRecord,
    PoolRecord,
    ProfileRecord,
    ReservationRecord,
    TenantRecord,
)
from serving.policy import classes
from serving.policy.admission import Estimate
from serving.policy.classes import BEST_EFFORT, RESERVED, ServiceClass

Take = Callable[[tuple[Demand, ...]], Granted | None]
Acquire = Callable[[tuple[Demand, ...], str], Awaitable[Granted | Refused]]
Refuse = Callable[[Refused, tuple[Demand, ...]], ApiError]
Estimating = Callable[[CostProfile], Estimate]


class View(Protocol):
    """``serving.gateway.snapshot.Snapshot``, as far as reservations are looked up in it."""

    @property
    def reservations_by_pool(self) -> Mapping[str, tuple[ReservationRecord, ...]]: ...

    @property
    def deployments(self) -> Mapping[str, DeploymentRecord]: ...


class Prices(Protocol):
    def version(self, pool: str, record: ProfileRecord) -> CostProfile: ...


class Share(NamedTuple):
    """A reservation of the tenant, its bucket, and the price it was sold by."""

    reservation: ReservationRecord
    bucket: LimitRecord
    profile: CostProfile


class Standing(NamedTuple):
    """``sold`` are all reservations of the pool, ``shares`` the tenant's own."""

    tenant: TenantRecord
    deployment: DeploymentRecord
    pool: PoolRecord
    sold: tuple[ReservationRecord, ...]
    shares: tuple[Share, ...]
    lends: bool
    largest_prefill_mu: float


class Admitted(NamedTuple):
    """``estimate`` by ``profile``, which is what the request will be charged by.

    ``bucket``: what holds its MU back, a reservation's or the tightest limit in MU; None: nothing does.
    """

    service_class: ServiceClass
    claim: Lent | Owned
    granted: Granted | None
    profile: CostProfile
    estimate: Estimate
    bucket: LimitRecord | None


class Standings:
    def __init__(self, prices: Prices, size: int = 50_000) -> None:
        self._prices = prices
        self._size = size
        self._known: dict[tuple[str, str], Standing] = {}
        self._buckets: dict[str, LimitRecord] = {}

    def find(self, view: View, access: Access) -> Standing:
        tenant, deployment, pool = access.principal.tenant, access.deployment, access.pool
        sold = view.reservations_by_pool.get(pool.id, ())
        at = (tenant.id, deployment.id)
        found = self._known.get(at)
        if (
            found is not None
            and found.sold is sold
            and found.pool is pool
            and found.deployment is deployment
            and found.tenant is tenant
        ):
            return found
        if len(self._known) >= self._size:
            self._known.clear()
        own = [one for one in sold if one.tenant == tenant.id]
        longest = max((d.max_model_len or 0 for d in view.deployments.values() if d.pool == pool.id), default=0)
        made = self._known[at] = Standing(
            tenant,
            deployment,
            pool,
            sold,
            tuple(self._share(one, longest or None) for one in classes.first_to_end(own)),
            classes.lends(pool, tenant),
            classes.largest_prefill_mu(access.profile, deployment.max_model_len),
        )
        return made

    def _share(self, reservation: ReservationRecord, longest: int | None) -> Share:
        """``longest``: the longest context of the pool's deployments, which share the bucket."""
        profile = self._prices.version(reservation.pool, reservation.profile)
        made = classes.bucket_of(reservation, largest_mu=classes.largest_request_mu(profile, longest))
        known = self._buckets.get(made.id)
        if known != made:
            if len(self._buckets) >= self._size:
                self._buckets.clear()
            # The same object for all keys and deployments: grants go by it.
            known = self._buckets[made.id] = made
        return Share(reservation, known, profile)


async def admit(
    standing: Standing, access: Access, estimating: Estimating, *, take: Take, acquire: Acquire, refuse: Refuse
) -> Admitted:
    """Charge the request to the first reservation that holds it, else let it be best effort.

    ``take`` and ``acquire`` are those of grants; ``refuse`` makes the answer to a limit that stands in the way. Raises
    ApiError 403 or 429 where nothing is lent, and 429 for a limit.
    """
    who = access.principal.key.id
    # A time is promised where the request goes no further: in the one reservation that it must wait for, or below.
    of_share = who if not standing.lends and len(standing.shares) == 1 else ""
    refused: Refused | None = None
    for share in standing.shares:
        if not classes.holds(share.reservation, time.time()):
            continue
        estimate = estimating(share.profile)
        wanted = (*access.demands(estimate.limit_tokens, estimate.mu, is_paid=True), Demand(share.bucket, estimate.mu))
        answer = take(wanted) or await acquire(wanted, of_share)
        if isinstance(answer, Granted):
            owned = Owned(standing.pool.ttft_objective_ms, standing.pool.claw_back_s)
            return Admitted(RESERVED, owned, answer, share.profile, estimate, share.bucket)
        if answer.limit.id != share.bucket.id:
            if standing.lends:
                break
            raise refuse(answer, wanted)
        refused = answer if refused is None or answer.retry_after_s < refused.retry_after_s else refused
    if not standing.lends:
        raise _not_lent(standing, refused)
    estimate = estimating(access.profile)
    demands = access.demands(estimate.limit_tokens, estimate.mu)
    granted = take(demands)
    if granted is None and demands:
        answer = await acquire(demands, who)
        if isinstance(answer, Refused):
            raise refuse(answer, demands)
        granted = answer
    pool = standing.pool
    is_reserved = bool(standing.sold) and any(classes.holds(one, time.time()) for one in standing.sold)
    lent = Lent(standing.tenant.id, estimate.mu, pool.best_effort_wait_s, standing.largest_prefill_mu, is_reserved)
    return Admitted(BEST_EFFORT, lent, granted, access.profile, estimate, access.tightest_mu)


def _not_lent(standing: Standing, refused: Refused | None) -> ApiError:
    name = standing.deployment.name
    if refused is None:
        return errors.forbidden(
            f"'{name}' is served to reservations only, and you have none that holds now. Ask your operator for one.",
            code="reservation_required",
        )
    wait_s = min(3600.0, max(0.001, refused.retry_after_s))
    return ApiError(
        429,
        f"Your reservation for '{name}' is used up for the moment: {max(0.0, refused.remaining):.3g} MU are left in "
        f"its bucket. Nothing beyond it is lent. Try again in {wait_s:.3g} s.",
        code="reservation_exhausted",
        type="tokens",
        headers=[*errors.retry_after(wait_s), (b"x-penstock-reason", b"reservation")],
    )
