"""Breach minutes are what the definition makes of what clients saw: a host lost, a pool oversold, a replica slow.

All roles are processes, engines take real time, and three promises are broken side by side in one minute of the clock,
while loops and web are killed. The oracle (``tests/faults/definition.py``) works from the clients' own notes; where
those lie too near to a limit to tell, between two machines' clocks, from the raw row of that request.
"""

from __future__ import annotations

import asyncio
import datetime
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from tests.e2e.second_host import SecondHost
from tests.e2e.stack import Stack, wait_for
from tests.e2e.test_command_line import MAKE_TOKEN
from tests.faults.definition import MINUTE_S, Judged, Seen, Sold, credited, ledger
from tests.faults.promises import FAST, RULE, TIGHT, Sender, sell, set_up

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.faults,
    pytest.mark.together("kills"),
    pytest.mark.slow,
    pytest.mark.timeout(480),
]

HERE, THERE = {"rack": "first"}, {"rack": "second"}
POOLS = (
    ("lost", {**FAST, "host_labels": THERE}, 16, 1.0),
    ("oversold", {**TIGHT, "host_labels": HERE}, 2, 2.0),
    ("slow", {**FAST, "host_labels": HERE}, 16, 1.0),
)
SOLD = (("lara", "lost", 80.0), ("omar", "oversold", 100.0), ("olga", "oversold", 100.0), ("sven", "slow", 80.0))
BORROWER = "bess"
WARM_S = 8.0
"""So long at least all is well before a minute begins in which it is not."""
NEAR = 0.4
"""A client's figure within this share of a limit decides nothing, nor does one so near to a minute's end."""
EDGE_S = 1.0
TIERS = ((0.999, 0.1), (0.99, 0.25), (0.95, 1.0))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Stack]:
    running = Stack(tmp_path / "data", engine="simulated", gateways=2)
    try:
        yield running.start()
        assert running.stop() == 0
    except BaseException:
        print(running.tail(120))
        running.kill_all()
        raise


@pytest.fixture
def second(house: Stack, tmp_path: Path) -> Iterator[SecondHost]:
    made = SecondHost(house, tmp_path / "second", labels=THERE)
    try:
        yield made
    finally:
        made.stop()


def test_breach_minutes_are_the_oracles(house: Stack, second: SecondHost) -> None:
    second.start()
    keys = set_up(house, second.first, POOLS, [*(tenant for tenant, _, _ in SOLD), BORROWER])
    wait_for("three replicas", lambda: ready(house) == {"lost", "oversold", "slow"}, seconds=60)
    sold = sell(house, SOLD)
    begin = max(one.starts_at for one in sold.values())
    wait_for("the start of what was sold", lambda: time.time() > begin + 0.5, seconds=10)
    lara, omar, sven = (
        Sender(tenant, pool, keys[tenant], rate)
        for tenant, pool, rate in (("lara", "lost", 1.0), ("omar", "oversold", 0.7), ("sven", "slow", 1.0))
    )
    olga = Sender("olga", "oversold", keys["olga"], 1.2)
    bess = Sender(BORROWER, "slow", keys[BORROWER], 0.5)
    senders = [lara, omar, sven, olga, bess]
    bad = asyncio.run(three_troubles(house, second, [lara, omar, sven, bess], olga))
    until = bad + MINUTE_S
    kill(house, "celery", "penstock")
    kill(house, "penstock.asgi")
    wait_for("the bad minute's judgement", lambda: judged_until(house) >= until or None, seconds=150, every=0.5)
    seen = decided(house, senders)
    first = int(min(one.starts_at for one in sold.values()) // MINUTE_S) * MINUTE_S
    minutes = range(first, until, MINUTE_S)
    wanted = ledger(seen, sold.values(), {name: RULE for name, *_ in POOLS}, minutes)
    told = rows(house, until)
    print_both(sold, wanted)
    assert told.keys() == wanted.keys()
    for key, minute in wanted.items():
        mine = asdict(minute)
        assert {name: told[key][name] for name in mine} == pytest.approx(mine, rel=1e-3, abs=2e-3), key
        assert bool(told[key]["reason"]) == minute.is_breach
    # Each trouble was one, and what came before was none: else there was nothing to compare.
    assert wanted[sold["lara"].id, bad].unserved + wanted[sold["lara"].id, bad].throttled > 0
    assert wanted[sold["sven"].id, bad].slow > 0
    assert sum(wanted[sold[name].id, bad].throttled for name in ("omar", "olga")) > 0
    assert all(wanted[sold[name].id, bad].is_breach for name in ("lara", "sven"))
    assert wanted[sold["sven"].id, bad].lent_mu + wanted[sold["sven"].id, bad - MINUTE_S].lent_mu > 0
    months_are(house, sold, wanted)


async def three_troubles(house: Stack, second: SecondHost, always: list[Sender], surge: Sender) -> int:
    """Everybody sends; from a full minute on one host is lost, one pool gets what it was sold for twice, one replica is
    slow. Returns that minute (UNIX s).
    """
    over, surging = asyncio.Event(), asyncio.Event()
    slow = address_of(house, "slow")
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=90)) as session:
        sending = [asyncio.ensure_future(sender.send(house, session, over)) for sender in always]
        bad = int((time.time() + WARM_S) // MINUTE_S + 1) * MINUTE_S
        await until(bad + 3)
        second.lose()
        await set_fault(session, slow, {"mode": "slow", "factor": 20.0})
        sending.append(asyncio.ensure_future(surge.send(house, session, surging)))
        await until(bad + 15)
        kill(house, "celery", "penstock")
        await until(bad + 22)
        second.boot()
        await until(bad + 40)
        surging.set()
        await set_fault(session, slow, {"mode": "none"})
        await until(bad + 50)
        over.set()
        await asyncio.gather(*sending)
    return bad


async def until(when: float) -> None:
    await asyncio.sleep(max(0.0, when - time.time()))


async def set_fault(session: aiohttp.ClientSession, address: str, fault: dict[str, Any]) -> None:
    async with session.post(f"{address}/fault", json=fault) as answer:
        assert answer.status == 200


def ready(house: Stack) -> set[str]:
    found = house.rows(
        "select d.name from serving_replica r join serving_deployment d on d.id = r.deployment_id"
        " where r.state = 'ready' and d.name in ('lost', 'oversold', 'slow')"
    )
    return {row["name"] for row in found}


def address_of(house: Stack, deployment: str) -> str:
    (row,) = house.rows(
        "select r.address from serving_replica r join serving_deployment d on d.id = r.deployment_id"
        " where r.state = 'ready' and d.name = ?",
        deployment,
    )
    return str(row["address"])


def kill(house: Stack, *words: str) -> None:
    for process in house.role(*words):
        process.send_signal(signal.SIGKILL)


# ------------------------------------------------------------------------------------------- what is compared
def decided(house: Stack, senders: list[Sender]) -> list[Seen]:
    """The clients' notes; of those that are too near to a limit, and for a moment of the warm-up, the raw rows."""
    found, asked = [], 0
    raw = {row["client_request_id"]: row for row in house.usage("client_request_id like '%-%'")}
    for sender in senders:
        for log, one in zip(sender.logs, sender.seen(), strict=True):
            assert log.status, f"{log.client_id} had no answer: {log.error}"
            assert log.client_id in raw, f"{log.client_id}, answered {log.status}, is not in the books"
            if is_near(one):
                asked += 1
                row = raw[log.client_id]
                one = replace(
                    one,
                    sent_at=unix(row["admitted_at"]),
                    first_at=unix(row["first_byte_at"]) if row["first_byte_at"] else None,
                    ended_at=unix(row["ended_at"]),
                )
            found.append(one)
        kinds = Counter((log.service_class, log.status, log.done and not log.error) for log in sender.logs)
        print(f"{sender.tenant} of {sender.pool}: {dict(kinds)}")
    print(f"{asked} of {len(found)} requests were too near to a limit for their clients to tell")
    # Inside what it was sold, a tenant is served inside its reservation.
    assert all(one.is_reserved for one in found if one.tenant != BORROWER)
    return found


def is_near(one: Seen) -> bool:
    if min(one.ended_at % MINUTE_S, MINUTE_S - one.ended_at % MINUTE_S) < EDGE_S:
        return True
    if one.status != 200:
        return False
    return any(
        abs(value - limit) < NEAR * limit for value, limit in ((one.ttft_ms, RULE.ttft_ms), (one.tpot_ms, RULE.tpot_ms))
    )


def unix(text: str) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()


def judged_until(house: Stack) -> float:
    (row,) = house.rows("select guaranteed_until as at from capacity_booksstate")
    return unix(row["at"]) if row["at"] else 0.0


def rows(house: Stack, until: float) -> dict[tuple[str, int], dict[str, Any]]:
    found = {}
    for row in house.rows("select * from capacity_guaranteeminute"):
        at = int(unix(row["starts_at"]))
        if at < until:
            pk = str(row["reservation_id"])
            found[str(uuid.UUID(pk)), at] = {**row, "is_breach": bool(row["is_breach"])}
    return found


def print_both(sold: dict[str, Sold], wanted: dict[tuple[str, int], Judged]) -> None:
    names = {one.id: one.tenant for one in sold.values()}
    for (pk, minute), one in sorted(wanted.items(), key=lambda item: (item[0][1], names[item[0][0]])):
        print(f"{datetime.datetime.fromtimestamp(minute, datetime.UTC):%H:%M} {names[pk]}: {one}")


def months_are(house: Stack, sold: dict[str, Sold], wanted: dict[tuple[str, int], Judged]) -> None:
    """Attainment and credit over the API, of all minutes that were judged by then: those after held no request."""
    token = house.manage(MAKE_TOKEN).rpartition("token:")[2].split()[0]
    wait_for("web", lambda: is_up(house), seconds=30)
    months = {f"{datetime.datetime.fromtimestamp(minute, datetime.UTC):%Y-%m}" for _, minute in wanted}
    told: dict[str, list[dict[str, Any]]] = {}
    for month in months:
        answer = httpx.get(
            f"{house.console_url}/api/v1/guarantees",
            params={"month": month},
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
        )
        assert answer.status_code == 200, answer.text
        for row in answer.json()["results"]:
            told.setdefault(row["id"], []).append(row)
    for one in sold.values():
        breaches = sum(minute.is_breach for (pk, _), minute in wanted.items() if pk == one.id)
        assert sum(row["breach_minutes"] for row in told[one.id]) == breaches, one.tenant
        for row in told[one.id]:
            attained, share = credited(row["minutes"], row["breach_minutes"], TIERS)
            assert (row["attainment"], row["credit_share"]) == pytest.approx((attained, share))


def is_up(house: Stack) -> bool:
    try:
        return httpx.get(f"{house.console_url}/sign-in/", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
