"""The kill test: a role dies by SIGKILL at a random moment under 100 open streams, fifty times and more.

What is true is read from the clients' own logs and the engines' own request logs, never from the gateway's journal:
every admitted request has exactly one usage record, with exact tokens, or, where its gateway was lost, tokens within
one progress interval.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil
import pytest

from penstock.testing import CANARY
from tests.e2e.clients import StreamLog, stream
from tests.e2e.stack import Stack, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1500)]

RUNS = int(os.environ.get("PENSTOCK_KILL_RUNS", "50"))
STREAMS = 100
CROWD = 200
"""Streams beyond the replicas' slots: those that wait for one are admitted, with nothing of them sent to an engine."""
PROGRESS_INTERVAL_S = 1.0
VICTIMS = ("gateway", "gateway", "gateway", "loops", "agent")
BOOKED_S = 60.0
"""A writer that died holds its lease to the end: 20 s, and its process is back within eight."""
SLACK_S = 0.5
"""Between a token at the engine and the same token noted by the client, on a loaded machine."""


@pytest.fixture(scope="module")
def wide_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two gateways and two wide simulated replicas, so that 100 streams run at once and 200 do not."""
    running = Stack(tmp_path_factory.mktemp("kill") / "data", engine="simulated", gateways=2)
    try:
        running.start()
        running.manage(
            """
from serving.models import Deployment
from serving import services
deployment = Deployment.objects.get(name="demo-sim")
services.deployment_update(deployment=deployment, actor="test", min_replicas=2, max_replicas=2, pinned_replicas=2)
current = deployment.revisions.get(is_current=True)
services.revision_create(
    deployment=deployment, actor="test", runtime="simulated", options=current.options, target_concurrency=64
)
"""
        )
        wait_for("two wide replicas", lambda: ready_wide(running) == 2 or None, seconds=60)
        yield running
        assert running.stop() == 0
    except BaseException:
        print(running.tail(150))
        running.kill_all()
        raise


def ready_wide(stack: Stack) -> int:
    return int(
        stack.rows(
            "select count(*) as n from serving_replica r join serving_revision v on v.id = r.revision_id"
            " where r.state = 'ready' and v.target_concurrency = 64"
        )[0]["n"]
    )


@dataclass
class Tally:
    outcomes: Counter[str] = field(default_factory=Counter)
    never_forwarded: int = 0
    worst_gap_tokens: int = 0


def engine_log(stack: Stack, run: Run) -> dict[str, list[dict[str, Any]]]:
    """Gateway's request id → what the engines themselves noted of it during ``run``, one entry per attempt."""
    noted: dict[str, list[dict[str, Any]]] = {}
    for path in stack.data.glob("agent/replicas/*/requests.jsonl*"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if run.since <= entry["received_at"] < run.until and len(entry["request_id"]) == 36:
                noted.setdefault(bare(entry["request_id"]), []).append(entry)
    return noted


def bare(request_id: str) -> str:
    """A UUID as SQLite keeps it."""
    return request_id.replace("-", "")


@dataclass(frozen=True)
class Plan:
    """What is killed, when, how many streams there are, and over how many seconds they are opened."""

    victim: str
    kill_at: float
    spread_s: float
    streams: int = STREAMS
    least_tokens: int = 5


@dataclass(frozen=True)
class Run:
    """One kill as its clients saw it. Times are UNIX seconds; at ``until`` all roles were back."""

    seed: int
    logs: list[StreamLog]
    since: float
    killed: float
    until: float


def draw(rng: random.Random) -> Plan:
    """A fifth of the kills hit a gateway while all streams are being admitted at once, a fifth while admitted requests
    wait for a slot, between admit line and first upstream byte; the rest fall anywhere."""
    kind = rng.random()
    if kind < 0.2:
        return Plan("gateway", rng.uniform(0.0, 0.25), 0.02)
    if kind < 0.4:
        return Plan("gateway", rng.uniform(0.3, 1.5), 0.1, CROWD, least_tokens=200)
    return Plan(rng.choice(VICTIMS), rng.uniform(0.0, 3.0), 0.5)


async def hundred_streams(stack: Stack, seed: int, rng: random.Random, plan: Plan) -> tuple[list[StreamLog], float]:
    """Open the streams, kill one process of the role, and let everything end. Returns when it was killed."""
    killed = 0.0
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def one(index: int) -> StreamLog:
            await asyncio.sleep(rng.uniform(0.0, plan.spread_s))
            return await stream(
                session,
                stack.base_url,
                stack.key(),
                model="demo-sim",
                client_id=f"kill-{seed}-{index}",
                max_tokens=rng.randint(plan.least_tokens, 400),
                prompt=f"run {seed} {CANARY} {index} " + "word " * rng.randint(0, 40),
            )

        tasks = [asyncio.ensure_future(one(index)) for index in range(plan.streams)]
        processes = victims(stack, plan.victim)
        await asyncio.sleep(plan.kill_at)
        if processes:
            os.kill(rng.choice(processes).pid, signal.SIGKILL)
            killed = time.time()
        logs = await asyncio.gather(*tasks)
    return logs, killed


def victims(stack: Stack, victim: str) -> list[psutil.Process]:
    if victim == "gateway":
        return stack.gateway_processes()
    return stack.role("celery", "penstock") if victim == "loops" else stack.role("-m worker", "agent.json")


def test_no_admitted_request_is_lost_or_counted_twice(wide_stack: Stack) -> None:
    base = int(os.environ.get("PENSTOCK_KILL_SEED", str(random.randrange(1 << 30))))
    runs: list[Run] = []
    unbooked: list[Run] = []
    writer_back = 0.0
    for seed in range(base, base + RUNS):
        rng = random.Random(seed)
        plan = draw(rng)
        since = time.time()
        logs, killed = asyncio.run(hundred_streams(wide_stack, seed, rng, plan))
        wait_for("all roles back", lambda: whole(wide_stack), seconds=60)
        runs.append(Run(seed, logs, since, killed, time.time()))
        if plan.victim == "loops":
            writer_back = time.time()
        print(
            f"seed {seed}: {plan.victim} killed at {plan.kill_at:.3f} s; {Counter(ending(log) for log in logs)}",
            flush=True,
        )
        # The next kill does not wait until this one is booked: it may hit what is still under way.
        unbooked = still_unbooked(wide_stack, [*unbooked, runs[-1]], writer_back)
    while unbooked:
        time.sleep(0.5)
        unbooked = still_unbooked(wide_stack, unbooked, writer_back)
    tally = Tally()
    for run in runs:
        check(wide_stack, run, tally)
    print(
        f"{len(runs)} runs x {STREAMS} or {CROWD} streams, outcomes {dict(tally.outcomes)}, "
        f"admitted but never forwarded {tally.never_forwarded}, "
        f"largest gap of a lost gateway's record {tally.worst_gap_tokens} tokens"
    )
    assert tally.outcomes["completed"] > 0
    assert tally.outcomes["gateway_lost"] > 0
    assert tally.never_forwarded > 0, "no kill fell between an admit line and the first upstream byte"


def still_unbooked(stack: Stack, runs: list[Run], writer_back: float) -> list[Run]:
    """The runs of which a usage row is missing yet: within ``BOOKED_S`` it has to be there."""
    left = []
    for run in runs:
        if any(missing := missing_of(stack, run)):
            assert time.time() < max(run.until, writer_back) + BOOKED_S, f"seed {run.seed}: no usage row for {missing}"
            left.append(run)
    return left


def missing_of(stack: Stack, run: Run) -> tuple[set[str], set[str]]:
    """Requests without a usage row: by the client's id those that were answered, by the gateway's all at an engine."""
    rows = stack.usage("client_request_id like ?", f"kill-{run.seed}-%")
    answered = {log.client_id for log in run.logs if log.status == 200}
    booked = {bare(row["id"]) for row in stack.rows("select id from capacity_usagerecord")}
    return answered - {row["client_request_id"] for row in rows}, set(engine_log(stack, run)) - booked


def whole(stack: Stack) -> bool:
    if len(stack.gateway_processes()) != 2 or not victims(stack, "loops") or not victims(stack, "agent"):
        return False
    return stack.is_serving("demo-sim")


def ending(log: StreamLog) -> str:
    if log.done and not log.error:
        return "whole"
    if log.status == 200:
        return "broken"
    return str(log.status or "no answer")


def check(stack: Stack, run: Run, tally: Tally) -> None:
    """Compare usage rows with what clients and engines noted."""
    rows = stack.usage("client_request_id like ?", f"kill-{run.seed}-%")
    per_client = Counter(row["client_request_id"] for row in rows)
    # A busy machine may be killed before it has admitted anything: then there is none.
    assert max(per_client.values(), default=0) <= 1, f"seed {run.seed}: counted twice: {per_client.most_common(3)}"
    by_client = {log.client_id: log for log in run.logs}
    engines = engine_log(stack, run)
    for row in rows:
        tally.outcomes[row["outcome"]] += 1
        judge(run.seed, row, by_client[row["client_request_id"]], engines.get(bare(row["id"]), []), run.killed, tally)


def judge(
    seed: int, row: dict[str, Any], log: StreamLog, attempts: list[dict[str, Any]], killed: float, tally: Tally
) -> None:
    """One usage row against its client's and its engines' own notes."""
    where = f"seed {seed}, {row['client_request_id']}, {row['outcome']}"
    if row["outcome"] == "completed":
        assert [entry["finish"] for entry in attempts][-1:] == ["length"], where
        assert row["output_tokens"] == attempts[-1]["output_tokens"] == log.max_tokens, where
        assert row["input_tokens"] == attempts[-1]["prompt_tokens"], where
        if log.done:
            assert log.output_tokens == row["output_tokens"], where
        return
    if not attempts:
        assert row["output_tokens"] == 0, f"{where}: tokens without an engine"
        tally.never_forwarded += row["outcome"] == "gateway_lost"
        return
    assert row["output_tokens"] <= attempts[-1]["generated_tokens"], f"{where}: more than the engine made"
    if row["outcome"] == "gateway_lost":
        assert row["lower_bound"], where
        owed = log.tokens_at(killed - PROGRESS_INTERVAL_S - SLACK_S)
        assert row["output_tokens"] >= owed, f"{where}: {row['output_tokens']} booked, {owed} were due"
        tally.worst_gap_tokens = max(tally.worst_gap_tokens, log.output_tokens - row["output_tokens"])
