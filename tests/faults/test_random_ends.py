"""Nothing leaks and nothing counts twice, however requests end and whatever is killed meanwhile.

Each seed sends two hundred requests of two keys and a member, with limits of every kind, through two gateways; they are
finished, left by their clients, failed by an engine or lost with a gateway, and gateways and the state (with its data
or without) die by SIGKILL: ten thousand of them in the fifty seeds that run by default. What is true is what the
clients and the engines noted, and the usage records once they agree with these. Here the test itself books, as the
loops do; ``test_kill`` kills the loops of a whole installation, too.
"""

from __future__ import annotations

import datetime
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
import redis
from django.test import Client
from django.utils import timezone

from capacity.models import UsageRecord, UsageRollup
from capacity.policy import cost
from capacity.policy.verification import Verification
from capacity.services import profile_add
from capacity.usage.books import finalise_minutes
from capacity.usage.file import usage_file
from serving.gateway.state import connect
from serving.policy import budgets
from tests import factories
from tests.faults import afterwards
from tests.faults.conservation import Account, Tokens
from tests.faults.random_ends import GATEWAYS, PRICE_PER_1000_MU, Installation, Request, Round
from tests.gateway.harness import PROFILE, cluster, wait_for

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(1800),
]

SEEDS = int(os.environ.get("PENSTOCK_ENDS_SEEDS", "50"))
PRICED = ("base", "alpha", "beta", "gamma", "epsilon", "cached_factor")
PROGRESS_S, SLACK_S = 1.0, 0.4
WAYS = 3
"""How often a request makes way for owners at most, as the documentation says."""
EXCHANGE_S = 0.7
"""What a gateway had told within this before a kill, or was about to tell, may be told again, or by nobody."""


@pytest.fixture
def installation(transactional_db: None) -> Iterator[Installation]:
    profile = cost.CostProfile(version=1, **{name: PROFILE[name] for name in PRICED})
    known = factories.pool(profile=profile)
    priced = profile_add(
        pool=known,
        hardware_type=factories.hardware(),
        profile=profile,
        price_per_1000_mu=PRICE_PER_1000_MU,
        actor=factories.ACTOR,
    )
    with cluster() as made:
        running = Installation(made, str(known.pk), PROFILE | {"version": priced.version})
        yield running
        for path in running.log_paths():
            lines = path.read_text().splitlines()
            print(*[line[:300] for line in lines if '"level":"info"' not in line][-40:], sep="\n")


def test_nothing_leaks_and_nothing_counts_twice(installation: Installation) -> None:
    base = int(os.environ.get("PENSTOCK_ENDS_SEED", str(random.randrange(1 << 30))))
    client, account = connect(installation.cluster.state_url), Account()
    ends: Counter[str] = Counter()
    kills: Counter[str] = Counter()
    for seed in range(base, base + SEEDS):
        rng = random.Random(seed)
        made = installation.round(seed, rng)
        installation.run(made, rng)
        ends.update(request.end for request in made.requests)
        kills[made.fault] += 1
        began = min(request.sent for request in made.requests)
        when = [f"{what} {at - began:.2f}" for what, at, _ in made.kills]
        print(
            f"seed {seed}: {made.fault}, killed {when}; {Counter(request.end for request in made.requests)}", flush=True
        )
        entries = installation.engine_entries()
        records = booked(installation, made, entries, client)
        tokens_add_up(made, records, entries, account)
        bounds_hold(made, records, entries)
        settled(installation, made, records, client)
    account.check()
    print(f"{sum(ends.values())} requests of {SEEDS} seeds, ends {dict(ends)}, rounds with kills of {dict(kills)}")
    print(account)
    books_add_up(installation, client)
    client.close()


def booked(
    installation: Installation, made: Round, entries: list[dict[str, Any]], client: redis.Redis
) -> dict[str, UsageRecord]:
    """The usage records of a round by their id, once all that must be there are."""
    answered = {request.name for request in made.requests if request.status == 200}

    def complete() -> tuple[dict[str, UsageRecord]] | None:
        installation.book(client)
        found = {str(record.pk): record for record in UsageRecord.objects.filter(tenant_id=made.tenant)}
        is_whole = answered <= {record.client_request_id for record in found.values()}
        return (found,) if is_whole and {entry["id"] for entry in entries} <= set(found) else None

    (found,) = wait_for(f"usage records of seed {made.seed}", complete, seconds=30, every=0.1)
    per_client = Counter(record.client_request_id for record in found.values())
    assert max(per_client.values(), default=0) <= 1, f"counted twice: {per_client.most_common(3)}"
    return found


def tokens_add_up(
    made: Round, records: dict[str, UsageRecord], entries: list[dict[str, Any]], account: Account
) -> None:
    """Each record against what the engines noted of its attempts."""
    requests = {request.name: request for request in made.requests}
    attempts: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        account.counted(_counted(entry))
        attempts.setdefault(entry["id"], []).append(entry)
    for name, record in records.items():
        noted = attempts.get(name, [])
        where = f"seed {made.seed}, {record.client_request_id}, {record.outcome}"
        request = requests[record.client_request_id]
        assert str(record.key_id) == made.keys[request.who], where
        # Two attempts, each sent again where it met a kept connection that the engine closed without a word, and those
        # that made way for an owner.
        ways = sum(attempt["outcome"] == "made_way" for attempt in record.attempts)
        has_made_way = bool(record.attempts) and record.attempts[-1]["outcome"] == "made_way"
        assert ways <= WAYS, where
        assert len(record.attempts) - ways <= 2, where
        assert len(noted) <= 2 * (2 + ways) or record.outcome == "gateway_lost", where
        account.record(
            record.outcome,
            Tokens(record.input_tokens, record.cached_tokens, record.output_tokens),
            [_counted(entry) for entry in noted],
            has_made_way=has_made_way,
        )
        if request.whole:
            assert record.outcome == "completed", where
        if not noted or has_made_way:
            assert record.output_tokens == 0, f"{where}: tokens without an engine"
            continue
        assert record.output_tokens <= noted[-1]["generated"], f"{where}: more than the engine made"
        _seen_until_late(made, request, record, noted[-1], where)


def _counted(entry: dict[str, Any]) -> Tokens:
    return Tokens(entry["read"], entry["cached"], entry["generated"])


def _seen_until_late(made: Round, request: Request, record: UsageRecord, entry: dict[str, Any], where: str) -> None:
    """What was cut is booked up to the moment of the cut; what a gateway took with it, up to its last progress."""
    if record.outcome == "client_closed":
        known_until = request.ended - SLACK_S
    elif record.outcome == "gateway_lost":
        assert record.lower_bound, where
        known_until = max(at for at, _ in made.killed(str(request.gateway))) - PROGRESS_S - SLACK_S
    else:
        return
    if request.is_stream:
        due = sum(at <= known_until for at in entry["times"])
        assert record.output_tokens >= due, f"{where}: {record.output_tokens} booked, {due} were due"
        assert not due or record.input_tokens == entry["read"], f"{where}: input"
    else:
        assert record.lower_bound or not entry["generated"], where


def bounds_hold(made: Round, records: dict[str, UsageRecord], entries: list[dict[str, Any]]) -> None:
    """Limits at once and ever: nobody was let through beyond them. Of what is estimated, only what a request took
    beyond its estimate, which settlement charges as a debt, may come on top.

    While the state is away each gateway knows the others up to 2 s before: up to its own part may be admitted again.
    """
    again = (GATEWAYS - 1) / GATEWAYS if made.killed("state") else 0.0
    spans = [(entry["id"], (entry["at"], max(entry["times"], default=entry["at"]))) for entry in entries]
    for whose, limit in _limits(made):
        rows = _rows_of(made, whose, records)
        most = limit["value"] * (1 + again)
        if limit["kind"] == "requests_per_min":
            assert len(rows) <= most, f"seed {made.seed}: {len(rows)} requests of {limit}"
        if limit["kind"] == "concurrency":
            counts = afterwards.most_at_once([span for name, span in spans if name in rows])
            at_once = max((count for _, count in counts), default=0)
            assert at_once <= most, f"seed {made.seed}: {at_once} at once of {limit}"
        if limit["kind"] not in ("requests_per_min", "concurrency"):
            used = sum(_amount(limit["kind"], record) for record in rows.values())
            debts = sum(_beyond_estimate(limit["kind"], record) for record in rows.values())
            assert used <= most + debts + 1e-6 * (1 + used), (
                f"seed {made.seed}: {used} used of {limit}, {debts} in debt"
            )


def _limits(made: Round) -> Iterator[tuple[str, dict[str, Any]]]:
    for whose, limits in made.limits.items():
        for limit in limits:
            yield whose, limit


def _rows_of(made: Round, whose: str, records: dict[str, UsageRecord]) -> dict[str, UsageRecord]:
    return {
        name: record for name, record in records.items() if whose == "tenant" or str(record.key_id) == made.keys[whose]
    }


def settled(installation: Installation, made: Round, records: dict[str, UsageRecord], client: redis.Redis) -> None:
    """All that is charged was used, and all that was used is charged: exactly, but for what kills left untold."""

    def wrong() -> list[str]:
        return [*afterwards.held(client), *_wrongly_charged(installation, made, records, client)]

    end = time.monotonic() + 30.0
    while (found := wrong()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not found, f"seed {made.seed}, {made.fault}, kills {made.kills}:\n" + "\n".join(found)


def _wrongly_charged(
    installation: Installation, made: Round, records: dict[str, UsageRecord], client: redis.Redis
) -> list[str]:
    found = []
    for whose, limit in _limits(made):
        kind = limit["kind"]
        if kind == "concurrency":
            continue
        used = sum(_amount(kind, record) for record in _rows_of(made, whose, records).values())
        charged = _charged(limit, installation.pool if whose != "reservation" else "", client)
        untold = _untold(made, whose, limit)
        # A gateway that dies while the state is away takes with it what it had to tell.
        is_told = not made.killed("state") or len({what for what, *_ in made.kills}) == 1
        least = used - untold if is_told else 0.0
        most = used + untold + _late_refunds(made, whose, limit)
        if not least - 1e-5 * (1 + used) <= charged <= most + 1e-5 * (1 + used):
            found.append(f"{whose} {limit}: {used} used, {charged} charged, up to {untold} untold")
    return found


def _late_refunds(made: Round, whose: str, limit: dict[str, Any]) -> float:
    """A refund of what was taken from a lease does not reach below what stood in the bucket when the state heard of it:
    into an empty one each gateway's largest does not count. A bucket that drains is rid of it within a second.
    """
    if not limit["kind"].startswith(("tokens_per_min", "mu_per_min")):
        return 0.0
    most = [_most(limit["kind"], request) for request in made.requests if request.counts_for(whose)]
    return GATEWAYS * max(most, default=0.0) if limit["value"] > 64 * min(most, default=0.0) / 8 else 0.0


def _most(kind: str, request: Request) -> float:
    """The most that a request can have been charged for."""
    most = {"requests": 1.0, "tokens": float(request.most_tokens), "mu": request.most_mu}
    most["money"] = request.most_mu * PRICE_PER_1000_MU / 1000
    return most[kind.partition("_")[0]]


def _amount(kind: str, record: UsageRecord) -> float:
    amounts = {"requests": 1.0, "tokens": record.input_tokens + record.output_tokens, "mu": record.actual_mu}
    amounts["money"] = record.actual_mu * PRICE_PER_1000_MU / 1000 * (record.service_class != "reserved")
    return float(amounts[kind.partition("_")[0]])


def _beyond_estimate(kind: str, record: UsageRecord) -> float:
    """How much more a request took than it was admitted for; of tokens no more output than it asked for."""
    if kind.startswith("tokens"):
        return float(max(0, record.input_tokens - record.estimated_input_tokens))
    more = max(0.0, record.actual_mu - record.estimated_mu)
    if kind.startswith("mu"):
        return more
    return more * PRICE_PER_1000_MU / 1000 * (record.service_class != "reserved")


def _charged(limit: dict[str, Any], pool: str, client: redis.Redis) -> float:
    """What stands in the state of a limit; in MU it holds for each pool by itself, unless ``pool`` is empty."""
    name = limit["id"] + (f".{pool}" if limit["kind"].startswith("mu_") and pool else "")
    if limit["kind"].endswith("_per_min"):
        fields = cast("dict[bytes, bytes]", client.hgetall(f"penstock:grant:{name}"))
        return sum(float(value) for key, value in fields.items() if key == b"level" or key.startswith(b"lease:"))
    period = budgets.period_of(limit["kind"], time.time()).name
    fields = cast("dict[bytes, bytes]", client.hgetall(f"penstock:budget:{name}.{period}"))
    told = [msgspec.msgpack.decode(value) for key, value in fields.items() if key != b"books"]
    return float(sum(running + lease + sum(amount for _, amount in ended) for running, lease, ended, _ in told))


def _untold(made: Round, whose: str, limit: dict[str, Any]) -> float:
    """What may be charged wrongly: of requests that ran when a gateway died, or when the state did, and leases."""
    total = 0.0
    for what, at, back in made.kills:
        for request in made.requests:
            is_of = request.counts_for(whose) and what in ("state", str(request.gateway))
            if is_of and request.was_open(at - EXCHANGE_S, back + EXCHANGE_S):
                total += _most(limit["kind"], request)
        total += limit["value"] / 8
    return total


def books_add_up(installation: Installation, client: redis.Redis) -> None:
    """Roll-ups of minutes, final ones, hours and days, the API and every tenant's usage file: all from the records."""
    installation.book(client)
    closing = finalise_minutes(timezone.now())
    records = list(UsageRecord.objects.all())
    final = [record for record in records if record.ended_at < closing.final_until]
    for period in UsageRollup.Period:
        assert _totals(UsageRollup.objects.filter(period=period)) == pytest.approx(_expected(records)), period
    minutes = UsageRollup.objects.filter(period="minute", is_final=True)
    assert _totals(minutes) == pytest.approx(_expected(final))
    browser, since = Client(), timezone.now() - datetime.timedelta(days=1)
    browser.force_login(factories.user(is_operator=True))
    answer = browser.get("/api/v1/usage/rollups", {"period": "minute", "since": since.isoformat(), "limit": 1000})
    assert answer.status_code == 200, answer.content
    rows = answer.json()["results"]
    expected = _expected(records)
    assert {name: sum(row[name] for row in rows) for name in _SUMMED} == pytest.approx(expected)
    verified, billed = 0, 0.0
    for tenant in {record.tenant_id for record in records}:
        check = Verification()
        for line in b"".join(usage_file(tenant_id=tenant, tenant="t", since=None)).splitlines():
            check.feed(msgspec.json.decode(line))
        check.finish()
        assert not check.findings
        verified += check.records
        billed += sum(part.exact_mu for part in check.billed.values())
    classes = dict(Counter(record.service_class for record in records))
    print(f"{len(records)} records {classes}, {len(final)} in final minutes; {verified} in usage files that verify")
    assert (verified, billed) == (len(records), pytest.approx(expected["mu"]))


_SUMMED = ("requests", "input_tokens", "cached_tokens", "output_tokens", "mu", "money")


def _totals(rows: Any) -> dict[str, float]:
    found = list(rows.values(*_SUMMED))
    return {name: sum(row[name] for row in found) for name in _SUMMED}


def _expected(records: list[UsageRecord]) -> dict[str, float]:
    totals = {name: float(sum(getattr(record, name) for record in records)) for name in _SUMMED[1:4]}
    totals |= {kind: sum(_amount(kind, record) for record in records) for kind in ("mu", "money")}
    return totals | {"requests": float(len(records))}
