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
from serving.gateway.charges import in_the_way, no_allowance
from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.errors import ApiError, LimitReached
from serving.gateway.placement import Lent, Owned
from serving.gateway.records import (
    Charge,
    DeploymentRecord,
    LimitRecord,
    PoolRecord,
    ProfileRecord,
    ReplicaRecord,
    ReservationRecord,
    TenantRecord,
)
from serving.policy import allowance, classes
from serving.policy.admission import Estimate
from serving.policy.allowance import Hold, Unsettled
from serving.policy.classes import BEST_EFFORT, RESERVED, ServiceClass

Take = Callable[[tuple[Demand, ...]], Granted | None]
Acquire = Callable[[tuple[Demand, ...], str], Awaitable[Granted | Refused]]
Refuse = Callable[[Refused, tuple[Demand, ...]], ApiError]
Estimating = Callable[[CostProfile], Estimate]
Bounding = Callable[[CostProfile, Estimate, float], float]
"""The most that a request can take in a minute (``allowance.most_mu``), by a price and what a slot serves in one."""


class View(Protocol):
    """``serving.gateway.snapshot.Snapshot``, as far as reservations are looked up in it."""

    @property
    def reservations_by_pool(self) -> Mapping[str, tuple[ReservationRecord, ...]]: ...

    @property
    def deployments(self) -> Mapping[str, DeploymentRecord]: ...

    @property
    def replicas_by_deployment(self) -> Mapping[str, tuple[ReplicaRecord, ...]]: ...


class Prices(Protocol):
    def version(self, pool: str, record: ProfileRecord) -> CostProfile: ...


class Share(NamedTuple):
    """A reservation of the tenant, its bucket, its allowance, and the price it was sold by.

    ``slot_mu``: what a slot serves in a minute, by that price.
    """

    reservation: ReservationRecord
    bucket: LimitRecord
    allowance_mu: float
    profile: CostProfile
    slot_mu: float


class Standing(NamedTuple):
    """``sold`` are all reservations of the pool, ``shares`` the tenant's own."""

    tenant: TenantRecord
    deployment: DeploymentRecord
    replicas: tuple[ReplicaRecord, ...]
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
    passed: tuple[Charge, ...] = ()
    """Reservations that had no room for it."""


class Standings:
    def __init__(self, prices: Prices, size: int = 50_000) -> None:
        self._prices = prices
        self._size = size
        self._known: dict[tuple[str, str], Standing] = {}
        self._buckets: dict[str, LimitRecord] = {}

    def find(self, view: View, access: Access) -> Standing:
        tenant, deployment, pool = access.principal.tenant, access.deployment, access.pool
        sold = view.reservations_by_pool.get(pool.id, ())
        replicas = view.replicas_by_deployment.get(deployment.id, ())
        at = (tenant.id, deployment.id)
        found = self._known.get(at)
        if (
            found is not None
            and found.sold is sold
            and found.pool is pool
            and found.deployment is deployment
            and found.tenant is tenant
            and found.replicas is replicas
        ):
            return found
        if len(self._known) >= self._size:
            self._known.clear()
        own = [one for one in sold if one.tenant == tenant.id]
        longest = max((d.max_model_len or 0 for d in view.deployments.values() if d.pool == pool.id), default=0) or None
        # A slot's MU are of the pool's present price.
        largest, slot_mu = classes.largest_request_mu(access.profile, longest), allowance.slot_mu(replicas)

        def share(reservation: ReservationRecord) -> Share:
            profile = self._prices.version(reservation.pool, reservation.profile)
            largest_mu = classes.largest_request_mu(profile, longest)
            bucket = self._same(classes.bucket_of(reservation, largest_mu=largest_mu))
            allowance_mu = allowance.allowance_mu(reservation.mu_per_min, bucket.value)
            in_its_mu = largest_mu / largest if largest and largest_mu else 1.0
            return Share(reservation, bucket, allowance_mu, profile, slot_mu * in_its_mu)

        made = self._known[at] = Standing(
            tenant,
            deployment,
            replicas,
            pool,
            sold,
            tuple(share(one) for one in classes.first_to_end(own)),
            classes.lends(pool, tenant),
            classes.largest_prefill_mu(access.profile, deployment.max_model_len),
        )
        return made

    def _same(self, made: LimitRecord) -> LimitRecord:
        """The same object for all keys and deployments: grants go by it."""
        known = self._buckets.get(made.id)
        if known != made:
            if len(self._buckets) >= self._size:
                self._buckets.clear()
            known = self._buckets[made.id] = made
        return known


class Desk(NamedTuple):
    """Where requests are charged: ``take`` and ``acquire`` are those of grants; ``refuse`` makes the answer to a limit
    that stands in the way. ``alone``: how many gateways there are, while none hears of the others; else 0."""

    take: Take
    acquire: Acquire
    refuse: Refuse
    unsettled: Unsettled
    alone: int = 0


async def admit(
    standing: Standing,
    access: Access,
    estimating: Estimating,
    bounding: Bounding,
    mark: Callable[[], str],
    *,
    desk: Desk,
) -> Admitted:
    """Charge the request to the first reservation that holds it, else let it be best effort. ``mark``: see ``Lent``.

    Raises ApiError 403 or 429 where nothing is lent, and 429 for a limit.
    """
    who = access.principal.key.id
    # A time is promised where the request goes no further: in the one reservation that it must wait for, by a plain
    # limit, or below.
    of_share = who if not standing.lends and len(standing.shares) == 1 else ""
    refused: Refused | None = None
    passed: tuple[Charge, ...] = ()
    for share in standing.shares:
        if not classes.holds(share.reservation, time.time()):
            continue
        estimate = estimating(share.profile)
        most_mu = bounding(share.profile, estimate, share.slot_mu)
        plain = access.demands(estimate.limit_tokens, estimate.mu, is_paid=True)
        asked = await charge(share, plain, estimate.mu, most_mu, who, of_share, desk=desk)
        answer, passed = asked.answer, (*passed, *asked.passed)
        if isinstance(answer, Granted):
            owned = Owned(standing.pool.ttft_objective_ms, standing.pool.claw_back_s, standing.tenant.id)
            return Admitted(RESERVED, owned, answer, share.profile, estimate, share.bucket, passed)
        if answer.limit.id != share.bucket.id:
            raise desk.refuse(answer, asked.wanted)
        passed = (*passed, in_the_way(answer, asked.wanted))
        refused = answer if refused is None or answer.retry_after_s < refused.retry_after_s else refused
    if not standing.lends:
        if refused is not None and desk.alone > 1:
            raise errors.unavailable(
                f"What is left of your reservation for '{standing.deployment.name}' cannot be told at the moment, and "
                "this gateway's part of it is used up. Try again shortly.",
                code="limits_unavailable",
                retry_after_s=1.0,
            )
        raise _not_lent(standing, refused, passed)
    estimate = estimating(access.profile)
    demands = access.demands(estimate.limit_tokens, estimate.mu)
    granted = desk.take(demands)
    if granted is None and demands:
        answer = await desk.acquire(demands, who)
        if isinstance(answer, Refused):
            raise desk.refuse(answer, demands)
        granted = answer
    pool = standing.pool
    is_reserved = bool(standing.sold) and any(classes.holds(one, time.time()) for one in standing.sold)
    lent = Lent(
        standing.tenant.id,
        estimate.mu,
        pool.best_effort_wait_s,
        standing.largest_prefill_mu,
        is_reserved,
        key=who,
        mark=mark,
    )
    return Admitted(BEST_EFFORT, lent, granted, access.profile, estimate, access.tightest_mu, passed)


class Asked(NamedTuple):
    """What a reservation and the plain limits said, to which demands; ``passed``: an allowance that had no room."""

    answer: Granted | Refused
    wanted: tuple[Demand, ...]
    passed: tuple[Charge, ...]


async def charge(
    share: Share, plain: tuple[Demand, ...], mu: float, most_mu: float, who: str, of_share: str, *, desk: Desk
) -> Asked:
    """Ask the reservation for ``mu``, while its allowance holds what may come on top of that, or else for ``most_mu``.

    ``of_share`` is promised a time by the bucket, and ``who`` by plain limits.
    """
    name, discount = share.reservation.id, most_mu - mu
    hold: Hold | None = None
    passed: tuple[Charge, ...] = ()
    if discount > 0.0:
        room = desk.unsettled.room(name, share.allowance_mu, alone=desk.alone)
        if room > 0.0:
            hold = desk.unsettled.hold(name, discount)
        else:
            passed, mu = (no_allowance(share.bucket, share.allowance_mu, discount, room),), most_mu
    wanted = (*plain, Demand(share.bucket, mu))
    answer: Granted | Refused | None = None
    try:
        answer = desk.take(wanted) or await desk.acquire(wanted, of_share)
        if isinstance(answer, Refused) and answer.limit.id != share.bucket.id and not of_share:
            # A plain limit, which no other class passes by: what it has promised the key, or promises now, is for this
            # request inside the reservation.
            answer = await desk.acquire(wanted, who)
        if isinstance(answer, Granted):
            answer.hold = hold
        return Asked(answer, wanted, passed)
    finally:
        if hold is not None and not isinstance(answer, Granted):
            hold.release()


def _not_lent(standing: Standing, refused: Refused | None, passed: tuple[Charge, ...]) -> ApiError:
    name = standing.deployment.name
    if refused is None:
        return errors.forbidden(
            f"'{name}' is served to reservations only, and you have none that holds now. Ask your operator for one.",
            code="reservation_required",
        )
    wait_s = min(3600.0, max(0.001, refused.retry_after_s))
    return LimitReached(
        f"Your reservation for '{name}' is used up for the moment: {max(0.0, refused.remaining):.3g} MU are left in "
        f"its bucket. Nothing beyond it is lent. Try again in {wait_s:.3g} s.",
        code="reservation_exhausted",
        type="tokens",
        headers=[*errors.retry_after(wait_s), (b"x-penstock-reason", b"reservation")],
        obstacles=passed,
        retry_after_s=wait_s,
    )
