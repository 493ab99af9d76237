"""The ledger is the oracle's of whatever the gateway's own dispatching made of lost hosts, oversell and slow replicas.

A virtual clock and many seeds; ``tests/faults/test_guarantees.py`` does the same with processes and real time.
``PENSTOCK_GUARANTEE_SEEDS`` says how many, from which others the first ``PENSTOCK_GUARANTEE_SEED``.
"""

from __future__ import annotations

import datetime
import os
import random
from collections import Counter
from dataclasses import asdict

import pytest

from bench.fairness import virtual
from capacity.models import GuaranteeMinute, Pool, Reservation, ReservationGap
from capacity.policy.cost import CostProfile
from capacity.usage.books import finalise_minutes
from capacity.usage.guarantees import guarantees_judge
from capacity.usage.lines import Usage
from capacity.usage.writer import write_batch
from tenants.models import Tenant
from tests import factories
from tests.capacity.broken_world import MU_PER_TOKEN, BrokenWorld, Sender
from tests.capacity.test_guarantees import Pair, T, at, book, reservation, traffic
from tests.factories import Traffic
from tests.faults.definition import Rule, Seen, Sold, ledger

FIRST = int(os.environ.get("PENSTOCK_GUARANTEE_SEED", "0"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("PENSTOCK_GUARANTEE_SEEDS", "3")))
MINUTES = 4
PRICE = CostProfile(version=1, base=0.0, alpha=0.001, beta=MU_PER_TOKEN, gamma=0.0, epsilon=0.0, cached_factor=1.0)
"""Its prompts are read in 7 ms: none is so long that it may take longer than the objective."""
RULE = Rule(ttft_ms=1000.0, tpot_ms=60.0, tolerated=0.05)


def sell(rng: random.Random, of: Pool, tenant: Tenant, mu: float) -> Sold:
    """From somewhere in the first minutes on, with a gap or without."""
    begins = rng.uniform(0.0, 90.0)
    row = reservation(of, tenant, mu, begins)
    gaps = []
    if rng.random() < 0.5:
        since = rng.uniform(begins + 10.0, 150.0)
        gap = (since, since + rng.uniform(5.0, 80.0))
        ReservationGap.objects.create(reservation=row, since=at(gap[0]), until=at(gap[1]))
        gaps.append((T + gap[0], T + gap[1]))
    return Sold(str(row.pk), str(tenant.pk), str(of.pk), mu, T + begins, gaps=tuple(gaps))


def troubles(rng: random.Random) -> list[tuple[float, str, str]]:
    """A replica is lost and comes back, another is slow for a while, both somewhen."""
    lost, slow = rng.sample(["r0", "r1", "r2"], 2)
    since, slow_since = rng.uniform(30.0, 160.0), rng.uniform(30.0, 160.0)
    found = [(since, "lose", lost), (since + rng.uniform(5.0, 60.0), "return", lost)]
    found += [(slow_since, "slow", slow), (slow_since + rng.uniform(5.0, 60.0), "heal", slow)]
    if rng.random() < 0.5:
        # All hosts at once: nobody is served.
        found += [(since + 1.0, "lose", name) for name in ("r0", "r1", "r2")]
        found += [(since + 12.0, "return", name) for name in ("r0", "r1", "r2")]
    return found


def pair_of(seen: Seen, by: Traffic) -> Pair:
    """The journal's lines of a request: what a gateway writes of what its client saw."""
    if seen.status == 200:
        outcome = "completed" if seen.is_whole else "engine_lost"
    else:
        outcome = "engine_lost" if seen.status == 502 else "refused"
    return by.pair(
        seen.ended_at,
        duration_s=seen.ended_at - seen.sent_at,
        outcome=outcome,
        status=seen.status,
        service_class="reserved" if seen.is_reserved else "best_effort",
        mu=seen.mu,
        usage=Usage(input_tokens=20, output_tokens=seen.output_tokens),
        first_byte_at=seen.first_at or 0.0,
    )


@pytest.mark.django_db
@pytest.mark.parametrize("seed", SEEDS)
def test_the_ledger_is_the_oracles_in_every_trouble(seed: int) -> None:
    rng = random.Random(seed)
    pool = factories.pool(ttft_objective_ms=1000, tpot_objective_ms=60, slo_share=RULE.tolerated, profile=PRICE)
    owners, borrower = [factories.tenant() for _ in range(3)], factories.tenant()
    sold = [sell(rng, pool, one, rng.uniform(40.0, 150.0)) for one in (*owners, owners[0])]
    world = BrokenWorld(sold, str(pool.pk), epoch=T, replicas=3, seed=seed)
    surge = rng.uniform(60.0, 150.0)
    senders = [Sender(str(one.pk), rng.uniform(0.5, 2.0)) for one in (*owners, borrower)]
    # What was sold is more than there is: for a while, an owner takes all of it.
    senders.append(Sender(str(owners[1].pk), 14.0, begins=surge, ends=surge + 25.0))
    virtual.run(world.run(senders, MINUTES * 60.0 - 20.0, troubles(rng)))
    by = {str(one.pk): traffic(pool, one) for one in (*owners, borrower)}
    pairs = [pair_of(one, by[one.tenant]) for one in world.seen]
    rng.shuffle(pairs)
    late, timely = pairs[: len(pairs) // 20], pairs[len(pairs) // 20 :]
    for sequence in range(1, MINUTES + 1):
        until = sequence * 60.0
        due = [pair for pair in timely if until - 60.0 <= pair[1].at - T < until]
        book(*due, sequence=sequence, until_s=until)
    write_batch(factories.batch(*late, segment="late", closed=True, watermark=T + MINUTES * 60))
    write_batch(factories.batch(sequence=MINUTES + 1, watermark=T + MINUTES * 60 + 5))
    finalise_minutes(at(MINUTES * 60.0 + 90.0))
    while guarantees_judge():
        pass
    minutes = [int(T) + 60 * number for number in range(MINUTES)]
    wanted = ledger(world.seen, sold, {str(pool.pk): RULE}, minutes)
    told = {(str(row.reservation_id), int(row.starts_at.timestamp())): row for row in GuaranteeMinute.objects.all()}
    assert told.keys() == wanted.keys()
    for key, minute in wanted.items():
        expected = asdict(minute)
        assert {name: getattr(told[key], name) for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-4), key
    ends = Counter(one.fate(RULE.ttft_ms, RULE.tpot_ms) for one in world.seen if one.is_reserved)
    print(f"seed {seed}: {dict(ends)}, {sum(one.is_breach for one in wanted.values())} of {len(wanted)} in breach")
    assert ends["served"] > 0
    assert ends["slow"] + ends["throttled"] + ends["unserved"] > 0
    for row in Reservation.objects.all():
        days = row.guarantee_days.get()
        own = [one for (pk, _), one in wanted.items() if pk == str(row.pk)]
        assert (days.minutes, days.breach_minutes) == (len(own), sum(one.is_breach for one in own))
        assert days.day == datetime.date(2026, 11, 20)
