"""The kill test: a role dies by SIGKILL at a random moment under 100 open streams, again and again.

Streams end as they like: whole, left by their clients, failed by an engine, or with their gateway. What is true is read
from the clients' own logs and the engines' own request logs, never from the gateway's journal: every admitted request
has exactly one usage record, with exact tokens, or, where its gateway was lost, tokens within one progress interval; no
token is lost between engines and records; roll-ups are the sum of the records; nothing is held any more in the end; and
the limits of the second tenant's key hold all through, whatever is killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
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
from serving.gateway.state import connect
from tests.e2e.clients import StreamLog, stream
from tests.e2e.stack import Stack, wait_for
from tests.faults import afterwards
from tests.faults.afterwards import bare, engine_log

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.faults,
    pytest.mark.together("kills"),
    pytest.mark.slow,
    pytest.mark.timeout(1500),
]

DEFAULT_RUNS = 25
RUNS = int(os.environ.get("PENSTOCK_KILL_RUNS", DEFAULT_RUNS))
STREAMS = 100
CROWD = 400
"""Streams beyond the replicas' slots: those that wait for one are admitted, with nothing of them sent to an engine."""
PROGRESS_INTERVAL_S = 1.0
VICTIMS = ("gateway", "gateway", "loops", "agent", "state", "emptied state")
GATEWAYS = 2
AT_ONCE, PER_MINUTE = 8, 40
"""Limits of the second tenant's key."""
LIMITED = 0.25
"""This part of the streams come with the second tenant's key, which has limits: more than they let through."""
LEFT, FAULTY = 0.15, 0.35
"""Parts of the streams that their clients leave, and of the runs in which an engine fails streams for a moment."""
BOOKED_S = 60.0
"""A writer that died holds its lease to the end: 20 s, and its process is back within eight."""
SLACK_S = 0.5
"""Between a token at the engine and the same token noted by the client, on a loaded machine."""


@pytest.fixture(scope="module")
def wide_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two gateways and two wide simulated replicas, so that 100 streams run at once and 200 do not."""
    running = Stack(tmp_path_factory.mktemp("kill") / "data", engine="simulated", gateways=GATEWAYS)
    try:
        running.start()
        running.manage(
            f"""
from serving.models import Deployment
from serving import services
from tenants.models import ApiKey
from tenants.services import limit_set
key = ApiKey.objects.get(tenant__slug="alder-health")
for kind, value in (("concurrency", {AT_ONCE}), ("requests_per_min", {PER_MINUTE})):
    limit_set(tenant=key.tenant, api_key=key, kind=kind, value=value, set_by="operator", actor="test")
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


@dataclass(frozen=True)
class Plan:
    """What is killed, when, how many streams there are, and over how many seconds they are opened."""

    victim: str
    kill_at: float
    """Seconds after the first stream; of a crowd, after the first was seen to wait for a slot."""
    spread_s: float
    streams: int = STREAMS
    least_tokens: int = 5
    fault_at: float | None = None
    fault_after_tokens: int = 0


@dataclass(frozen=True)
class Run:
    """One kill as its clients saw it. Times are UNIX seconds; at ``until`` all roles were back."""

    seed: int
    plan: Plan
    logs: list[StreamLog]
    since: float
    killed: float
    until: float


def draw(seed: int, rng: random.Random) -> Plan:
    """Of five seeds in a row one kills a gateway while all streams are being admitted at once, one while admitted
    requests wait for a slot, between admit line and first upstream byte, and three the next of the victims anywhere:
    no role is left out by chance."""
    block, kind = divmod(seed, 5)
    if kind == 0:
        return Plan("gateway", rng.uniform(0.0, 0.25), 0.02)
    if kind == 1:
        return Plan("gateway", rng.uniform(0.0, 0.5), 0.1, CROWD, least_tokens=200)
    fault_at = rng.uniform(0.0, 2.0) if rng.random() < FAULTY else None
    victim, kill_at = VICTIMS[(3 * block + kind - 2) % len(VICTIMS)], rng.uniform(0.0, 3.0)
    return Plan(victim, kill_at, 0.5, fault_at=fault_at, fault_after_tokens=rng.randint(20, 300))


async def fail_for_a_moment(session: aiohttp.ClientSession, engine: str, plan: Plan) -> None:
    """Streams at ``engine`` that are longer than ``fault_after_tokens`` end with an error."""
    assert plan.fault_at is not None
    await asyncio.sleep(plan.fault_at)
    for fault in ({"mode": "error_done", "after_tokens": plan.fault_after_tokens}, {"mode": "none"}):
        async with session.post(f"{engine}/fault", json=fault) as answer:
            assert answer.status == 200
        await asyncio.sleep(0.2)


async def hundred_streams(stack: Stack, seed: int, rng: random.Random, plan: Plan) -> tuple[list[StreamLog], float]:
    """Open the streams, kill one process of the role, and let everything end. Returns when it was killed."""
    killed = 0.0
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def one(index: int) -> StreamLog:
            tenant = int(rng.random() < LIMITED)
            max_tokens = rng.randint(plan.least_tokens, 400)
            leave_after = rng.randint(1, max_tokens) if rng.random() < LEFT else None
            # Some prompts begin alike, so that a part of them is cached.
            prompt = f"run {rng.randint(0, 9)} {CANARY} " + "word " * rng.randint(0, 40) + f" {seed} {index}"
            await asyncio.sleep(rng.uniform(0.0, plan.spread_s))
            log = await stream(
                session,
                stack.base_url,
                stack.key(tenant),
                model="demo-sim",
                client_id=f"kill-{seed}-{index}",
                max_tokens=max_tokens,
                prompt=prompt,
                leave_after=leave_after,
            )
            log.tenant = tenant
            return log

        tasks = [asyncio.ensure_future(one(index)) for index in range(plan.streams)]
        if plan.fault_at is not None:
            engine = rng.choice(afterwards.engines(stack))
            tasks.append(asyncio.ensure_future(fail_for_a_moment(session, engine, plan)))  # type: ignore[arg-type]
        processes = victims(stack, plan.victim)
        if plan.streams == CROWD:
            processes = await crowded(stack, session) or processes
        await asyncio.sleep(plan.kill_at)
        if processes:
            if plan.victim == "emptied state":
                # The server goes on writing into what has no name any more, and finds nothing when it starts again.
                shutil.rmtree(stack.data / "state" / "appendonlydir")
            os.kill(rng.choice(processes).pid, signal.SIGKILL)
            killed = time.time()
        logs = (await asyncio.gather(*tasks))[: plan.streams]
    return logs, killed


async def crowded(stack: Stack, session: aiohttp.ClientSession) -> list[psutil.Process]:
    """The first gateway at which a request waits for a slot, once there is one; none: nothing waited for 10 s."""
    end = time.monotonic() + 10.0
    while time.monotonic() < end:
        # Both listen on one port: each of these connections reaches one of them.
        async with session.get(f"http://127.0.0.1:{stack.api_port}/readyz") as answer:
            told = await answer.json()
        if told["waiting"]:
            return stack.role("serving.gateway.server", str(told["gateway"]))
        await asyncio.sleep(0.02)
    return []


def victims(stack: Stack, victim: str) -> list[psutil.Process]:
    if victim.endswith("state"):
        return stack.role("valkey-server")
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
        plan = draw(seed, rng)
        since = time.time()
        logs, killed = asyncio.run(hundred_streams(wide_stack, seed, rng, plan))
        wait_for("all roles back", lambda: whole(wide_stack), seconds=60)
        runs.append(Run(seed, plan, logs, since, killed, time.time()))
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
    check_limits(wide_stack, runs)
    print(afterwards.conservation(wide_stack, runs[0].since))
    records, final = afterwards.rollups_are_sums(wide_stack)
    print(f"roll-ups are the sums of {records} records, final minutes those of {final}")
    state = connect(f"unix://{wide_stack.data / 'state' / 'valkey.sock'}")
    wait_for("nothing held", lambda: not afterwards.held(state), seconds=30)
    state.close()
    print(
        f"{len(runs)} runs x {STREAMS} or {CROWD} streams, killed {dict(Counter(run.plan.victim for run in runs))}, "
        f"ends {dict(Counter(ending(log) for run in runs for log in run.logs))}, outcomes {dict(tally.outcomes)}, "
        f"admitted but never forwarded {tally.never_forwarded}, "
        f"largest gap of a lost gateway's record {tally.worst_gap_tokens} tokens"
    )
    assert tally.outcomes["completed"] > 0
    assert tally.outcomes["gateway_lost"] > 0
    # A short run of one's own may well miss that moment.
    if RUNS >= DEFAULT_RUNS:
        killed = {run.plan.victim for run in runs if run.killed}
        assert killed == set(VICTIMS), f"nothing but {killed} was killed"
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
    return answered - {row["client_request_id"] for row in rows}, set(engine_log(stack, run.since, run.until)) - booked


def whole(stack: Stack) -> bool:
    if len(stack.gateway_processes()) != 2 or not all(victims(stack, role) for role in ("loops", "agent", "state")):
        return False
    return stack.is_serving("demo-sim")


def ending(log: StreamLog) -> str:
    if log.left_at:
        return "left"
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
    engines = engine_log(stack, run.since, run.until)
    for row in rows:
        tally.outcomes[row["outcome"]] += 1
        judge(run.seed, row, by_client[row["client_request_id"]], engines.get(bare(row["id"]), []), run.killed, tally)


def check_limits(stack: Stack, runs: list[Run]) -> None:
    """The second tenant's key: so many at once, and so many a minute, whoever was killed.

    Gateways that lose the state know what the others were granted up to 2 s before: up to their own part of the limit
    may be admitted again (docs/protocols.md). Else nothing is beyond it.
    """
    limited = {log.client_id for run in runs for log in run.logs if log.tenant}
    left_at = {log.client_id: log.left_at or run.killed for run in runs for log in run.logs}
    engines, away = engine_log(stack, runs[0].since), [run.killed for run in runs if run.plan.victim.endswith("state")]
    spans, admitted = [], []
    for row in stack.usage("client_request_id like 'kill-%'"):
        if row["client_request_id"] not in limited:
            continue
        admitted.append(afterwards.unix(row["admitted_at"]))
        for entry in engines.get(bare(row["id"]), ()):
            end = entry["ended_at"] - afterwards.EPSILON_S
            # An engine learns late that a client has left, or that a gateway was killed.
            if entry["finish"] == "abort":
                end = min(end, left_at[row["client_request_id"]] or end)
            spans.append((entry["received_at"], end))
    share = (GATEWAYS - 1) / GATEWAYS
    at_once, beyond = afterwards.most_at_once(spans), afterwards.most_in_any_window(admitted, PER_MINUTE / 60)
    print(
        f"limited key: {len(admitted)} admitted, at most {max(count for _, count in at_once)} at once of {AT_ONCE}, "
        f"{max(most for *_, most in beyond):.1f} in any window of {PER_MINUTE}; the state was away {len(away)} times"
    )
    for at, count in at_once:
        again = share * AT_ONCE if any(at - 15 < moment < at for moment in away) else 0
        assert count <= AT_ONCE + again, f"{count} at once at {at}"
    for start, end, most in beyond:
        again = sum(share * PER_MINUTE for moment in away if start - 3 < moment < end)
        assert most <= PER_MINUTE + again + 0.1, f"{most} more than drains from {start} to {end}"


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
    if row["outcome"] == "client_closed" and log.left_at:
        assert row["output_tokens"] >= log.output_tokens, f"{where}: less than its client had"
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
