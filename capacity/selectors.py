"""Reads of this app that pages and loops share: prices in force, what is sold, what was used."""

import datetime
import uuid
from typing import Literal

from django.db.models import Exists, OuterRef, Q, QuerySet, Sum

from capacity.models import CostProfile, Host, Pool, Reservation, UsageRollup
from capacity.policy.claw_back import deadline_s
from capacity.usage.reads import terms_of
from capacity.usage.rows import RESERVED
from tenants.models import Tenant

Group = Literal["pool_id", "deployment_id"]
HOLDING = ("pending", "starting", "ready", "draining", "stopping")
"""States in which a replica holds its part of its host."""
_MINUTE = datetime.timedelta(minutes=1)


def replicas_holding(host: Host) -> list[tuple[uuid.UUID, str]]:
    """Ids of the replicas that hold a part of the host, with the names of their deployments.

    Replicas belong to a higher app: here they are known by the name of their relation alone.
    """
    rows = Host.everything.filter(pk=host.pk, replicas__state__in=HOLDING).order_by("replicas__created_at")
    return list(rows.values_list("replicas__pk", "replicas__deployment__name"))


def replicas_left(pool: Pool) -> list[tuple[uuid.UUID, str, str, str]]:
    """Replicas of the pool's removed deployments that hold a part of a host: id, deployment, state and host."""
    left = {"removed_at__isnull": False, "replicas__state__in": HOLDING, "replicas__host__isnull": False}
    rows = Pool.everything.filter(pk=pool.pk, **{f"deployments__{name}": value for name, value in left.items()})
    named = ("replicas__pk", "name", "replicas__state", "replicas__host__name")
    return list(rows.order_by("deployments__replicas__created_at").values_list(*(f"deployments__{n}" for n in named)))


def profiles_in_force(*, at: datetime.datetime) -> dict[uuid.UUID, CostProfile]:
    """The profile in force at ``at`` by pool id: one query. A pool without a price is absent."""
    return {row.pool_id: row for row in _in_force(at)}


def profile_in_force(*, pool_id: uuid.UUID, at: datetime.datetime) -> CostProfile | None:
    """The pool's profile in force at ``at``; None when it has no price yet."""
    return _in_force(at).filter(pool_id=pool_id).first()


def _in_force(at: datetime.datetime) -> QuerySet[CostProfile]:
    known = CostProfile.objects.filter(effective_from__lte=at, withdrawn_at=None)
    newer = known.filter(pool=OuterRef("pool")).filter(
        Q(effective_from__gt=OuterRef("effective_from"))
        | Q(effective_from=OuterRef("effective_from"), version__gt=OuterRef("version"))
    )
    return known.exclude(Exists(newer)).select_related("hardware_type")


def pools_usable(tenant: Tenant) -> QuerySet[Pool]:
    """The pools that the tenant may use: those of everybody, and those that list it."""
    listed = Pool.tenants.through.objects.filter(tenant=tenant).values("pool")
    return Pool.objects.filter(Q(is_public=True) | Q(pk__in=listed))


def claw_back_s(profile: CostProfile, *, context_tokens: int | None) -> float:
    """Seconds within which owners of a pool with this price have back what was lent (``policy.claw_back``)."""
    supply = profile.replica_mu_per_min
    return deadline_s(terms_of(profile), context_tokens=context_tokens, supply_mu_per_min=supply)


def reference_mu_per_min(profile: CostProfile | None) -> float:
    """What one reference replica of a pool supplies; 100 MU/min by definition until the pool has a price."""
    return profile.replica_mu_per_min if profile else 100.0


def reservations_running(*, at: datetime.datetime) -> QuerySet[Reservation]:
    """What is sold at ``at``: promised, begun and not over. By its times: its state follows within a minute."""
    return Reservation.objects.filter(
        Q(ends_at=None) | Q(ends_at__gt=at), state__in=Reservation.PROMISED, starts_at__lte=at
    )


def sold_mu_per_min(*, at: datetime.datetime) -> dict[uuid.UUID, float]:
    """Reserved MU/min by pool id at ``at``. A pool of which nothing is sold is absent."""
    rows = reservations_running(at=at).order_by()
    return dict(rows.values_list("pool_id").annotate(sold=Sum("mu_per_min")))


def usage_rows(
    *, period: str, since: datetime.datetime, until: datetime.datetime, tenant_id: uuid.UUID | None = None
) -> QuerySet[UsageRollup]:
    """Roll-ups that start in ``[since, until)``, of one tenant or of all, in no order."""
    rows = UsageRollup.objects.filter(period=period, starts_at__gte=since, starts_at__lt=until).order_by()
    return rows if tenant_id is None else rows.filter(tenant_id=tenant_id)


def used_mu_per_min(
    *,
    now: datetime.datetime,
    group: Group,
    tenant_id: uuid.UUID | None = None,
    is_reserved: bool | None = None,
) -> dict[uuid.UUID, float]:
    """MU settled in the last 60 s by pool or deployment: of this calendar minute, and the rest of the one before.

    ``is_reserved``: only what was inside reservations, or only what was beyond.

    Assumes an even flow within the minute before (the sliding-window counter). Long requests count when they end.
    """
    minute = now.replace(second=0, microsecond=0)
    rows = usage_rows(
        period=UsageRollup.Period.MINUTE, since=minute - _MINUTE, until=minute + _MINUTE, tenant_id=tenant_id
    )
    if is_reserved is not None:
        of_class = Q(service_class=RESERVED)
        rows = rows.filter(of_class if is_reserved else ~of_class)
    left = max(0.0, 1.0 - (now - minute) / _MINUTE)
    used: dict[uuid.UUID, float] = {}
    for identifier, starts_at, mu in rows.values_list(group, "starts_at").annotate(sum=Sum("mu")):
        used[identifier] = used.get(identifier, 0.0) + mu * (1.0 if starts_at == minute else left)
    return used
