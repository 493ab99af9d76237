"""What the books have of budgets: the sum of what was used in the present day or month, up to a final minute."""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from django.db.models import Sum

from capacity.models import BooksState, CostProfile, Pool, UsageRecord
from capacity.usage.rows import RESERVED
from capacity.usage.sums import Used, used_between
from penstock.published import limit_record
from serving.gateway.records import LimitRecord
from serving.models import Deployment
from serving.policy import budgets
from tenants import budgets as told
from tenants.models import ApiKey, Limit
from tenants.policy.limits import BUDGETS, holdings


class Spent(NamedTuple):
    """``amount`` of the budget ``id``, as gateways know one period of it, which is over at ``ends_at``.

    ``limit`` names the stored one; ``pool`` is empty where its budget is one for all pools.
    """

    id: str
    amount: float
    ends_at: float
    limit: UUID
    pool: str


def spent(limits: Iterable[Limit], until: datetime.datetime, *, now: float | None = None) -> Iterator[Spent]:
    """What is used of the budgets ``limits`` in their present periods, up to the minute ``until``."""
    now = time.time() if now is None else now
    held = holdings(limits)
    tenants = {one.lasting.tenant_id for one in held}
    scopes = _Scopes(tenants)
    for kind in ("_per_day", "_per_month"):
        period = budgets.period_of(kind, now)
        since = datetime.datetime.fromtimestamp(period.starts_at, datetime.UTC)
        if until <= since:
            continue
        used: dict[UUID, list[Used]] = defaultdict(list)
        for row in used_between(since=since, until=until, tenants=tenants):
            used[row.tenant].append(row)
        for one in held:
            if one.lasting.kind.endswith(kind):
                yield from _of_limit(
                    one.lasting,
                    limit_record(one.lasting, one.in_force),
                    scopes,
                    used[one.lasting.tenant_id],
                    since,
                    until,
                    now,
                )


def budget_states(limits: Sequence[Limit], *, now: float | None = None) -> dict[UUID, told.BudgetState]:
    """What is used of the budgets among ``limits``, which know what stands beside them, as the books have it: they come
    a minute or two behind."""
    now = time.time() if now is None else now
    found = [limit for limit in limits if limit.kind in BUDGETS]
    if not found:
        return {}
    books = BooksState.objects.filter(pk=1).first()
    until = books.final_until if books is not None else None
    beside = {one.pk: one for limit in found for one in (limit.holding.operators, limit.holding.tenants) if one}
    rows = list(spent(beside.values(), until, now=now)) if until is not None else []
    slugs = {str(pk): slug for pk, slug in Pool.everything.values_list("pk", "slug")} if rows else {}
    states = {}
    for limit in found:
        held = limit.holding
        value = float(held.in_force.value)
        parts = [
            told.Used(slugs.get(row.pool, row.pool), row.amount, max(0.0, value - row.amount))
            for row in rows
            if row.limit == held.lasting.pk
        ]
        if not parts and not (limit.kind.startswith("mu_") and not limit.model):
            parts = [told.Used("", 0.0, value)]
        ends_at = budgets.period_of(limit.kind, now).ends_at
        states[limit.pk] = told.BudgetState(datetime.datetime.fromtimestamp(ends_at, datetime.UTC), until, parts)
    return states


def _of_limit(
    limit: Limit,
    record: LimitRecord,
    scopes: _Scopes,
    used: Iterable[Used],
    since: datetime.datetime,
    until: datetime.datetime,
    now: float,
) -> Iterator[Spent]:
    keys, deployments = scopes.keys(limit), scopes.deployments(limit)
    amounts: dict[UUID, float] = defaultdict(float)
    is_money = limit.kind.startswith("money_")
    if deployments is not None and not deployments:
        # No deployment of this name: an adapter's, of which the roll-ups do not tell.
        amounts.update(_of_adapter(limit, keys, since, until, is_money=is_money))
    else:
        for row in used:
            if (keys is None or row.key in keys) and (deployments is None or row.deployment in deployments):
                amounts[row.pool] += row.money if is_money else row.mu
    if record.held_as(pool="", now=now).id == record.held_as(pool="x", now=now).id:
        parts = {"": sum(amounts.values())}
    else:
        parts = {str(pool): amount for pool, amount in amounts.items()}
    for pool, amount in parts.items():
        period = record.held_as(pool=pool, now=now)
        yield Spent(period.id, amount, period.ends_at, limit.pk, pool)


def _of_adapter(
    limit: Limit, keys: set[UUID] | None, since: datetime.datetime, until: datetime.datetime, *, is_money: bool
) -> Mapping[UUID, float]:
    rows = UsageRecord.objects.filter(
        tenant_id=limit.tenant_id, ended_at__gte=since, ended_at__lt=until, model=limit.model
    )
    if keys is not None:
        rows = rows.filter(key_id__in=keys)
    if not is_money:
        return dict(rows.order_by().values_list("pool_id").annotate(Sum("actual_mu")))
    found: dict[UUID, float] = defaultdict(float)
    paid = rows.exclude(service_class=RESERVED).order_by().values_list("pool_id", "profile_version")
    prices = CostProfile.objects.filter(price_per_1000_mu__gt=0).values_list("pool_id", "version", "price_per_1000_mu")
    rates = {(pool, version): price or 0.0 for pool, version, price in prices}
    for pool, version, mu in paid.annotate(Sum("actual_mu")):
        found[pool] += mu * rates.get((pool, version), 0.0) / 1000
    return found


class _Scopes:
    """Whose requests a limit speaks of, and of which deployments; None: of all."""

    def __init__(self, tenants: Iterable[UUID]) -> None:
        self._made: dict[tuple[UUID, UUID], set[UUID]] = defaultdict(set)
        made = ApiKey.objects.filter(tenant__in=tenants).exclude(created_by=None)
        for tenant, user, key in made.values_list("tenant_id", "created_by_id", "pk"):
            self._made[tenant, user].add(key)
        self._named: dict[str, set[UUID]] = defaultdict(set)
        # Of removed ones, too: who serves a model anew gives nobody its budget back.
        for pk, name in Deployment.everything.values_list("pk", "name"):
            self._named[name].add(pk)

    def keys(self, limit: Limit) -> set[UUID] | None:
        if limit.api_key_id is not None:
            return {limit.api_key_id}
        if limit.member is not None:
            user = limit.member.user_id
            return self._made[limit.tenant_id, user] | {user}
        return None

    def deployments(self, limit: Limit) -> set[UUID] | None:
        return self._named.get(limit.model, set()) if limit.model else None
