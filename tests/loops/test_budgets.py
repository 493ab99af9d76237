"""What the books have of a budget's period, against sums over the single requests; and how the state is told."""

from __future__ import annotations

import datetime
import random
from typing import Any

import msgspec
import pytest
import redis

from capacity.models import BooksState, CostProfile, UsageRecord
from capacity.policy import cost
from capacity.services import profile_add
from capacity.usage.books import finalise_minutes
from capacity.usage.writer import write_batch
from penstock.budgets import spent
from penstock.loops.budgets import tell_budgets
from serving.gateway.state import EPOCH
from serving.models import Deployment
from tenants.models import ApiKey, Limit
from tenants.services import limit_set, membership_add
from tests import factories
from tests.factories import Traffic, batch
from tests.replay import replayed

pytestmark = pytest.mark.django_db

NOW = datetime.datetime(2026, 11, 26, 15, 42, 30, tzinfo=datetime.UTC)
PRICES = cost.CostProfile(version=1, base=0.0, alpha=0.01, beta=0.2, gamma=0.0, epsilon=0.0, cached_factor=0.1)


@pytest.fixture
def world(db: None) -> dict[str, Any]:
    return replayed("world of the budgets", make_world)


def make_world() -> dict[str, Any]:
    """A tenant with two keys, one of them made by a member who also uses the playground, two priced pools, and three
    weeks of usage of it and of another tenant, up to now."""
    key, _ = factories.api_key()
    tenant = key.tenant
    of_member, _ = factories.api_key(tenant)
    member = membership_add(tenant=tenant, user=factories.user(), actor="t")
    ApiKey.objects.filter(pk=of_member.pk).update(created_by=member.user)
    deployments = [factories.deployment() for _ in range(2)]
    for deployment, price in zip(deployments, (2.0, 5.0), strict=True):
        priced(deployment.pool, price)
    strangers = factories.api_key()[0]
    rng = random.Random(7)
    pairs = []
    for _ in range(250):
        deployment = rng.choice(deployments)
        of = rng.choice([key.pk, of_member.pk, member.user_id, strangers.pk])
        whose = strangers.tenant_id if of == strangers.pk else tenant.pk
        traffic = Traffic(str(whose), str(of), str(deployment.pool_id), str(deployment.pk))
        back = rng.choice([600.0, 40_000.0, 2_000_000.0]) * rng.random()
        fields = {"mu": rng.uniform(0.1, 9.0), "service_class": rng.choice(["best_effort", "reserved"])}
        pairs.append(traffic.pair(NOW.timestamp() - back, **fields))
    pairs.sort(key=lambda pair: pair[1].at)
    write_batch(batch(*pairs, watermark=NOW.timestamp(), closed=True))
    finalise_minutes(NOW)
    return {"tenant": tenant, "key": key, "member": member, "of_member": of_member, "deployments": deployments}


def priced(pool: Any, price: float) -> None:
    kind = CostProfile.objects.filter(pool=pool).first()
    assert kind
    profile_add(pool=pool, hardware_type=kind.hardware_type, profile=PRICES, price_per_1000_mu=price, actor="t")
    # Usage records of the factories name version 1.
    CostProfile._base_manager.filter(pool=pool).exclude(version=1).delete()
    CostProfile._base_manager.filter(pool=pool, version=1).update(price_per_1000_mu=price)


def truth(since: datetime.datetime, until: datetime.datetime, *, money: bool, **only: Any) -> dict[str, float]:
    """By pool, from the single requests."""
    prices = {str(row.pool_id): row.price_per_1000_mu or 0.0 for row in CostProfile.objects.all()}
    found: dict[str, float] = {}
    for record in UsageRecord.objects.filter(ended_at__gte=since, ended_at__lt=until, **only):
        pool = str(record.pool_id)
        amount = record.actual_mu
        if money:
            amount = 0.0 if record.service_class == "reserved" else amount * prices[pool] / 1000
        found[pool] = found.get(pool, 0.0) + amount
    return found


@pytest.mark.parametrize("kind", ["mu_per_day", "mu_per_month", "money_per_day", "money_per_month"])
@pytest.mark.parametrize("of", ["tenant", "key", "member", "model"])
def test_what_the_books_have_is_the_sum_of_the_requests(world: dict[str, Any], kind: str, of: str) -> None:
    model = world["deployments"][0].name if of == "model" else ""
    named = {name: world[name] for name in ("member",) if of == name}
    if of == "key":
        named = {"api_key": world["key"]}
    limit = limit_set(tenant=world["tenant"], kind=kind, value=100, set_by="operator", model=model, actor="t", **named)
    until = BooksState.objects.get(pk=1).final_until
    assert until == datetime.datetime(2026, 11, 26, 15, 42, tzinfo=datetime.UTC)
    since = (
        NOW.replace(hour=0, minute=0, second=0)
        if kind.endswith("day")
        else datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
    )
    only: dict[str, Any] = {"tenant_id": world["tenant"].pk}
    if of == "key":
        only["key_id"] = world["key"].pk
    elif of == "member":
        only["key_id__in"] = [world["member"].user_id, world["of_member"].pk]
    elif of == "model":
        only["deployment_id"] = world["deployments"][0].pk
    by_pool = truth(since, until, money=kind.startswith("money"), **only)
    assert by_pool, "the test must have something to add up"
    name = f"{since:%Y%m%d}"
    if kind.startswith("mu_") and not model:
        expected = {f"{limit.pk}.{pool}.{name}": amount for pool, amount in by_pool.items()}
    else:
        expected = {f"{limit.pk}.{name}": sum(by_pool.values())}
    told = {one.id: one.amount for one in spent(Limit.objects.all(), until, now=NOW.timestamp())}
    assert told == {name: pytest.approx(amount) for name, amount in expected.items()}


def test_a_model_that_is_served_anew_gives_no_budget_back(world: dict[str, Any]) -> None:
    old = world["deployments"][0]
    limit_set(tenant=world["tenant"], kind="mu_per_month", value=100, set_by="operator", model=old.name, actor="t")
    until = BooksState.objects.get(pk=1).final_until
    before = list(spent(Limit.objects.all(), until, now=NOW.timestamp()))
    assert before
    Deployment.everything.filter(pk=old.pk).update(removed_at=NOW, is_enabled=False)
    assert factories.deployment(pool=old.pool, name=old.name).name == old.name
    assert list(spent(Limit.objects.all(), until, now=NOW.timestamp())) == before


def test_the_state_is_told_once_and_again_when_it_has_begun_anew(
    world: dict[str, Any], state: redis.Redis, django_assert_max_num_queries: Any
) -> None:
    state.set(EPOCH, "test.1000")
    assert tell_budgets(state, now=NOW.timestamp()) == 0, "there is no budget"
    limit = limit_set(tenant=world["tenant"], kind="money_per_month", value=10, set_by="tenant", actor="t")
    with django_assert_max_num_queries(10):
        assert tell_budgets(state, now=NOW.timestamp()) == 1
    key = f"penstock:budget:{limit.pk}.20261101"

    def books() -> Any:
        return msgspec.msgpack.decode(state.hget(key, "books"))  # type: ignore[arg-type]

    amount, minute = books()
    assert amount > 0
    assert minute == int(NOW.timestamp() // 60)
    assert tell_budgets(state, now=NOW.timestamp()) == 0, "nothing is new"
    state.flushall()
    assert tell_budgets(state, now=NOW.timestamp()) == 1
    assert books() == [amount, minute]
    # A newer word is not taken back by an older one, and a corrected one of the same minute counts.
    state.hset(key, "books", msgspec.msgpack.encode([amount + 1, minute + 1]))
    limit_set(tenant=world["tenant"], kind="money_per_month", value=11, set_by="tenant", actor="t")
    assert tell_budgets(state, now=NOW.timestamp()) == 1
    assert books() == [amount + 1, minute + 1]
