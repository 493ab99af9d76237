"""Things break and the house mends itself: a frozen engine, a killed agent, a stopped control plane, a killed state."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import psutil
import pytest

from tests.e2e.clients import stream
from tests.e2e.stack import Stack, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.together("own engines"),
]


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation of its own, with the simulated and the real demo, that these tests may break."""
    running = Stack(tmp_path_factory.mktemp("fragile") / "data", engine="vllm", gateways=2)
    try:
        yield running.start()
        assert running.stop() == 0
    except BaseException:
        print(running.tail(150))
        running.kill_all()
        raise


def replicas(stack: Stack, deployment: str, state: str = "ready") -> list[dict[str, Any]]:
    return stack.rows(
        "select r.*, d.name from serving_replica r join serving_deployment d on d.id = r.deployment_id"
        " where d.name = ? and r.state = ? order by r.created_at",
        deployment,
        state,
    )


def complete(stack: Stack, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": "hello", "max_tokens": 3, "ignore_eos": True} | fields
    return httpx.post(
        f"{stack.base_url}/completions", json=body, headers={"Authorization": f"Bearer {stack.key()}"}, timeout=30
    )


def test_replicas_are_added_while_load_rises(fragile: Stack) -> None:
    fragile.manage(
        """
from serving.models import Deployment
from serving import services
services.deployment_update(
    deployment=Deployment.objects.get(name="demo-sim"), actor="test", min_replicas=1, max_replicas=3
)
"""
    )
    before = wanted(fragile)
    deadline = time.monotonic() + 200
    grown = asyncio.run(load_until(fragile, lambda: wanted(fragile) > before, deadline))
    assert grown, "no replica was added under load"
    wait_for("more replicas serving", lambda: len(replicas(fragile, "demo-sim")) > before, seconds=60)


def test_killed_agent_leaves_engines_serving_and_adopts_them(fragile: Stack) -> None:
    before = {row["id"]: row["pid"] for row in replicas(fragile, "demo-sim")}
    assert before
    agent = fragile.role("-m worker", "agent.json")[0]
    agent.send_signal(signal.SIGKILL)
    assert complete(fragile, "demo-sim").status_code == 200
    wait_for("a new agent", lambda: fragile.role("-m worker", "agent.json") or None, seconds=30)
    wait_for("reports of the new agent", lambda: agent.pid not in reporting_pids(fragile), seconds=30)
    time.sleep(3)  # long enough for a wrong restart to show
    assert {row["id"]: row["pid"] for row in replicas(fragile, "demo-sim")} == before
    assert all(psutil.pid_exists(pid) for pid in before.values())
    assert complete(fragile, "demo-sim").status_code == 200


def reporting_pids(stack: Stack) -> set[int]:
    return {
        json.loads(row["report"] or "{}").get("agent_pid", 0) for row in stack.rows("select report from capacity_host")
    }


def test_stopped_control_plane_loses_no_usage(fragile: Stack) -> None:
    mark = f"frozen-{uuid.uuid4().hex[:8]}"
    stopped = [*fragile.role("celery", "penstock"), *fragile.role("penstock.asgi")]
    assert stopped
    for process in stopped:
        process.suspend()
    try:
        logs = asyncio.run(many(fragile, mark, 20))
    finally:
        for process in stopped:
            process.resume()
    assert [log.status for log in logs] == [200] * 20
    assert all(log.done for log in logs)
    rows = wait_for("all usage rows", lambda: with_count(fragile, f"{mark}-%", 20), seconds=60)
    assert sorted(row["output_tokens"] for row in rows) == sorted(log.output_tokens for log in logs)


def test_killed_state_comes_back_and_nothing_is_lost(fragile: Stack) -> None:
    mark = f"stateless-{uuid.uuid4().hex[:8]}"

    async def during() -> list[Any]:
        work = asyncio.ensure_future(many_async(fragile, mark, 20, spread_s=4.0))
        await asyncio.sleep(1.0)
        fragile.role("valkey-server")[0].send_signal(signal.SIGKILL)
        return list(await work)

    logs = asyncio.run(during())
    assert [log.status for log in logs] == [200] * 20
    assert all(log.done and not log.error for log in logs)
    rows = wait_for("all usage rows", lambda: with_count(fragile, f"{mark}-%", 20), seconds=90)
    assert sorted(row["output_tokens"] for row in rows) == sorted(log.output_tokens for log in logs)


def with_count(stack: Stack, pattern: str, count: int) -> list[dict[str, Any]] | None:
    rows = stack.usage("client_request_id like ?", pattern)
    assert len(rows) <= count
    return rows if len(rows) == count else None


async def many(stack: Stack, mark: str, count: int) -> list[Any]:
    return await many_async(stack, mark, count, spread_s=1.0)


async def many_async(stack: Stack, mark: str, count: int, *, spread_s: float) -> list[Any]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def one(index: int) -> Any:
            await asyncio.sleep(spread_s * index / count)
            return await stream(
                session,
                stack.base_url,
                stack.key(),
                model="demo-sim",
                client_id=f"{mark}-{index}",
                max_tokens=10 + index,
                prompt="hello",
            )

        return list(await asyncio.gather(*(one(index) for index in range(count))))


@pytest.mark.vllm
def test_frozen_core_of_real_vllm_is_found_and_replaced(fragile: Stack) -> None:
    old = wait_for("demo-tiny ready", lambda: replicas(fragile, "demo-tiny"), seconds=900, every=1.0)[0]
    wait_for("demo-tiny at the gateways", lambda: fragile.is_serving("demo-tiny"), seconds=30)
    frozen = core_of(old["pid"])
    frozen.suspend()
    started = time.monotonic()
    assert httpx.get(f"{old['address']}/health", timeout=5).status_code == 200
    incident = wait_for(
        "an incident",
        lambda: fragile.rows("select * from serving_incident where replica_id = ? and kind = 'hang'", old["id"]),
        seconds=120,
    )[0]
    found_s = time.monotonic() - started
    wait_for("the frozen engine's end", lambda: not psutil.pid_exists(old["pid"]), seconds=30)
    new = wait_for("a new replica", lambda: replicas(fragile, "demo-tiny"), seconds=300, every=1.0)[0]
    wait_for("serving again", lambda: fragile.is_serving("demo-tiny"), seconds=30)
    print(f"frozen core: found in {found_s:.1f} s, serving again after {time.monotonic() - started:.1f} s")
    assert new["id"] != old["id"]
    evidence = wait_for("evidence", lambda: evidence_of(fragile, incident["id"]), seconds=30)
    assert {"log_tail", "processes", "metrics"} <= set(evidence["agent"])
    assert {each["pid"]: each["status"] for each in evidence["agent"]["processes"]}[frozen.pid] == "stopped"
    assert time.monotonic() - started < 300


def core_of(pid: int) -> psutil.Process:
    """The engine core: the busiest child of the API server that is not multiprocessing's resource tracker."""
    children = [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
    return max(children, key=lambda child: child.memory_info().rss)


def evidence_of(stack: Stack, incident: str) -> dict[str, Any] | None:
    evidence = json.loads(stack.rows("select evidence from serving_incident where id = ?", incident)[0]["evidence"])
    return evidence if "agent" in evidence else None


def highest(stack: Stack) -> int:
    rows = stack.rows("select max(after) as n from serving_scalingdecision where deployment_name = 'demo-sim'")
    return int(rows[0]["n"] or 0)


def wanted(stack: Stack) -> int:
    return int(stack.rows("select desired_replicas as n from serving_deployment where name = 'demo-sim'")[0]["n"])


async def load_until(stack: Stack, done: Any, deadline: float) -> bool:
    """Closed loop of twice as many clients as one replica takes, with long answers, until ``done``."""
    over = asyncio.Event()

    async def client(session: aiohttp.ClientSession, index: int) -> None:
        while not over.is_set():
            await stream(
                session,
                stack.base_url,
                stack.key(),
                model="demo-sim",
                client_id=f"load-{os.getpid()}-{index}",
                max_tokens=200,
                prompt="word " * 200,
            )

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        clients = [asyncio.ensure_future(client(session, index)) for index in range(64)]
        while not done() and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
        over.set()
        await asyncio.gather(*clients)
    return bool(done())


def test_replicas_are_released_when_the_load_has_gone(fragile: Stack) -> None:
    """Runs last: the load of the first test has gone meanwhile, and release is slow on purpose."""
    # Half of the last two hours' peak stays, whatever the load: traffic that vanishes tends to come back at once.
    wait_for("replicas released when idle", lambda: wanted(fragile) < highest(fragile), seconds=420, every=1.0)
    decisions = fragile.rows("select * from serving_scalingdecision where deployment_name = 'demo-sim' order by at")
    changes = [row for row in decisions if row["before"] != row["after"]]
    for row in changes:
        print(f"{row['at']}: {row['before']} -> {row['after']}: {row['reason']}")
    assert any(row["after"] > row["before"] for row in changes)
    assert any(row["after"] < row["before"] for row in changes)
    assert all(row["reason"] and json.loads(row["inputs"]) for row in changes)
