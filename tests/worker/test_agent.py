"""The agent as a process: orders in, engines up, reports out; what survives whose death."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request

import psutil
import pytest

from tests.worker.conftest import AgentUnderTest, order, wait_for
from worker.spec import HostOrders, ReplicaReport, seal

pytestmark = pytest.mark.slow


def health(report: ReplicaReport) -> int:
    address = report.address
    assert address is not None
    with urllib.request.urlopen(f"http://{address.host}:{address.port}/health", timeout=5) as answer:
        return int(answer.status)


def test_an_order_becomes_a_ready_engine_with_metrics(agent: AgentUnderTest) -> None:
    agent.give(order("r1"))
    agent.start()
    ready = agent.wait_replica("r1", "ready", metrics={"running": 2.0, "waiting": 1.0})
    assert ready.engine_version == "0.0.fake"
    assert ready.max_model_len == 512
    assert ready.pid is not None
    assert ready.pid_started == pytest.approx(psutil.Process(ready.pid).create_time(), abs=0.1)
    assert ready.ready_at is not None
    assert ready.launched_at is not None
    assert ready.ready_at >= ready.launched_at
    assert health(ready) == 200
    listening = {c.laddr.ip for c in psutil.Process(ready.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert os.getsid(ready.pid) == ready.pid, "an engine has a session of its own"
    report = agent.reports() or wait_for("a report", agent.reports)
    assert report[-1].generation == agent.generation
    assert report[-1].cores >= 1
    assert report[-1].memory_bytes > 1e9


def test_a_nudge_is_as_good_as_the_standing_orders(agent: AgentUnderTest) -> None:
    from celery import Celery

    agent.start()
    wait_for("a first report", agent.reports)
    producer = Celery("test", broker=f"redis+socket://{agent.server.url.removeprefix('unix://')}", set_as_current=False)
    producer.conf.update(broker_transport_options={"global_keyprefix": "agent:"})
    orders = HostOrders(host_id=agent.host_id, generation=7, replicas=(order("r1"),))
    envelope = seal(orders, secret=agent.secret)
    producer.send_task("worker.orders", args=[envelope], queue=f"host.{agent.host_id}", ignore_result=True)
    agent.wait_replica("r1", "ready")
    producer.close()


def test_garbage_from_whoever_shares_the_broker_ends_nothing(agent: AgentUnderTest) -> None:
    agent.start()
    wait_for("a first report", agent.reports)
    queue = f"agent:host.{agent.host_id}"
    for garbage in (b"no JSON", b"\xff", json.dumps([1]), json.dumps({"body": "x"}), "[" * 100_000):
        agent.client.lpush(queue, garbage)
    wait_for("the queue to be read", lambda: agent.client.llen(queue) == 0 or None)
    agent.client.set(f"agent:orders:{agent.host_id}", b"\xff")
    wait_for("a refusal in the log", lambda: "standing orders are refused" in agent.log.read_text())
    assert agent.process is not None
    assert agent.process.poll() is None
    agent.give(order("r1"))
    agent.wait_replica("r1", "ready")
    assert "Traceback" not in agent.log.read_text()


def test_orders_of_a_forger_or_an_older_generation_change_nothing(agent: AgentUnderTest) -> None:
    agent.give(order("r1"), generation=5)
    agent.start()
    agent.wait_replica("r1", "ready")
    forged = HostOrders(host_id=agent.host_id, generation=9, replicas=())
    agent.client.set(f"agent:orders:{agent.host_id}", json.dumps(seal(forged, secret=b"x" * 32)))
    wait_for("a refusal in the log", lambda: "signature does not match" in agent.log.read_text())
    agent.give(generation=4)
    time.sleep(2.5)
    assert agent.reports()[-1].generation == 5
    assert len(agent.processes("r1")) == 2


def test_engines_survive_the_death_of_their_agent_and_are_adopted(agent: AgentUnderTest) -> None:
    agent.give(order("r1"), order("r2", options={"delay": 3.0}))
    agent.start()
    ready = agent.wait_replica("r1", "ready")
    starting = agent.wait_replica("r2", "starting")
    while starting.pid is None:
        starting = agent.wait_replica("r2", "starting")
    agent.end(signal.SIGKILL)
    assert health(ready) == 200
    agent.reports()
    agent.start()
    adopted = agent.wait_replica("r1", "ready", adopted=True)
    assert (adopted.pid, adopted.address) == (ready.pid, ready.address)
    second = agent.wait_replica("r2", "ready", adopted=True)
    assert second.pid == starting.pid, "an engine that was still loading is adopted, too, not started twice"
    assert agent.end(signal.SIGTERM) == 0
    assert health(ready) == 200, "an orderly end of the agent leaves engines serving"


def test_a_restarted_agent_goes_on_without_its_broker(agent: AgentUnderTest) -> None:
    agent.give(order("r1"))
    agent.start()
    ready = agent.wait_replica("r1", "ready")
    agent.end(signal.SIGKILL)
    agent.server.stop(signal.SIGKILL)
    for pid in agent.processes("r1"):
        os.kill(pid, signal.SIGKILL)
    agent.start()
    state = agent.folder / "replicas" / "r1" / "state.json"
    wait_for("a verdict", lambda: json.loads(state.read_text())["phase"] == "failed")
    agent.server.start()
    failed = agent.wait_replica("r1", "failed", seconds=30)
    assert "ended" in failed.reason
    assert ready.pid not in agent.processes()


def test_stop_reaches_the_whole_group(agent: AgentUnderTest) -> None:
    agent.give(order("r1", options={"mode": "ignore-term", "stop_grace_s": 1.0}))
    agent.start()
    agent.wait_replica("r1", "ready")
    assert len(agent.processes("r1")) == 2
    agent.give(order("r1", intent="stop"))
    stopped = agent.wait_replica("r1", "stopped")
    assert "did not end when asked" in stopped.reason
    assert agent.processes("r1") == []
    agent.give(order("r1", options={"mode": "serve"}))
    agent.wait_replica("r1", "ready")
    agent.give(order("r1", intent="stop"))
    assert "stopped by order" in agent.wait_replica("r1", "stopped").reason
    assert agent.processes("r1") == []


def test_kill_keeps_evidence_of_a_frozen_core_first(agent: AgentUnderTest) -> None:
    agent.give(order("r1"))
    agent.start()
    agent.wait_replica("r1", "ready", metrics={"running": 2.0, "waiting": 1.0})
    core = next(pid for pid in agent.processes("r1") if os.getsid(pid) != pid)
    os.kill(core, signal.SIGSTOP)
    agent.give(order("r1", intent="stop", kill=True, evidence=True))
    stopped = agent.wait_replica("r1", "stopped")
    evidence = stopped.evidence
    assert {each["pid"]: each["status"] for each in evidence["processes"]}[core] == "stopped"
    assert evidence["metrics"]["running"] == 2.0
    assert evidence["health"]["status"] == 200, "the front answers although the core is frozen"
    assert "listening" in evidence["log_tail"]
    assert agent.processes("r1") == []


def test_an_unexpected_exit_with_code_0_is_a_failure_until_the_attempt_rises(agent: AgentUnderTest) -> None:
    agent.give(order("r1", options={"mode": "crash"}))
    agent.start()
    ready = agent.wait_replica("r1", "ready")
    failed = agent.wait_replica("r1", "failed")
    assert failed.exit_code == 0
    assert "ended with code 0 while it served" in failed.reason
    wait_for("the leftover core to be killed", lambda: agent.processes("r1") == [] or None)
    time.sleep(1.0)
    assert agent.processes("r1") == [], "nothing restarts by itself"
    agent.give(order("r1", attempt=1))
    again = agent.wait_replica("r1", "ready", attempt=1)
    assert again.pid != ready.pid
    folder = agent.folder / "replicas" / "r1"
    assert (folder / "engine.log.1").read_text() == (folder / "engine.log").read_text() == "listening\n"


def test_failures_say_why(agent: AgentUnderTest) -> None:
    agent.give(
        order("port", options={"mode": "exit-at-start"}),
        order("options", options={"nonsense": 1}),
        order("runtime", runtime="no-such"),
        order("path", artifact={"kind": "path", "value": "/no/such/model"}),
        order("slow", options={"mode": "never-healthy", "start_limit_s": 1.0}),
        order("mute", options={"mode": "bad-warm-up", "warm_up_limit_s": 0.5}),
    )
    agent.start()
    reasons = {}

    def ask() -> bool:
        for report in agent.reports():
            reasons.update({each.replica_id: each.reason for each in report.replicas if each.phase == "failed"})
        return len(reasons) == 6

    wait_for("six failures", ask, seconds=30)
    assert "The port is taken." in reasons["port"]
    assert reasons["options"] == "option nonsense: remove it"
    assert "no runtime 'no-such'" in reasons["runtime"]
    assert "There is no folder /no/such/model" in reasons["path"]
    assert "Not healthy 1 s after its launch (health answers 503)" in reasons["slow"]
    assert "no such model" in reasons["mute"]
    wait_for("all their processes to end", lambda: agent.processes() == [] or None)


def test_processes_nobody_knows_are_swept_and_strangers_left_alone(agent: AgentUnderTest, tmp_path: object) -> None:
    import subprocess
    import sys

    sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
    ours = os.environ | {"PENSTOCK_AGENT_DIR": str(agent.folder), "PENSTOCK_REPLICA_ID": "lost"}
    other = os.environ | {"PENSTOCK_AGENT_DIR": "/elsewhere", "PENSTOCK_REPLICA_ID": "lost"}
    orphan = subprocess.Popen(sleep, env=ours, start_new_session=True)
    stranger = subprocess.Popen(sleep, env=other, start_new_session=True)
    try:
        agent.start()
        assert orphan.wait(15) == -signal.SIGKILL
        assert stranger.poll() is None
    finally:
        for process in (orphan, stranger):
            process.kill()
            process.wait()


def test_a_replica_no_order_names_is_stopped_and_forgotten(agent: AgentUnderTest) -> None:
    agent.give(order("r1"), order("r2"))
    agent.start()
    agent.wait_replica("r1", "ready")
    agent.wait_replica("r2", "ready")
    agent.give(order("r2"))
    wait_for("its end", lambda: agent.processes("r1") == [] or None)
    wait_for("its absence", lambda: [r for r in agent.reports() if {x.replica_id for x in r.replicas} == {"r2"}])
    assert len(agent.processes("r2")) == 2


def test_stop_engines_ends_everything_when_the_agent_is_dead(agent: AgentUnderTest) -> None:
    agent.give(order("r1"), order("r2", options={"delay": 60.0}))
    agent.start()
    first = agent.wait_replica("r1", "ready")
    agent.wait_replica("r2", "starting")
    refused = agent.command("--stop-engines")
    assert refused.returncode == 3
    assert "stop it first" in refused.stderr
    assert agent.command().returncode == 3, "a second agent keeps out of the folder"
    agent.end(signal.SIGKILL)
    done = agent.command("--stop-engines")
    assert done.returncode == 0, done.stderr
    assert agent.processes() == []
    agent.reports()
    agent.start()
    phases: dict[str, int | None] = {}

    def ask() -> bool:
        for report in agent.reports():
            phases.update({each.phase: each.pid for each in report.replicas if each.replica_id == "r1"})
        return "ready" in phases

    wait_for("the next agent to start it again", ask)
    assert phases["ready"] != first.pid
    assert not {"stopped", "failed"} & set(phases), "stopped on purpose is no failure, not even for a moment"


def test_drain_leaves_the_engine_alone_and_tells_what_is_left(agent: AgentUnderTest) -> None:
    agent.give(order("r1"))
    agent.start()
    ready = agent.wait_replica("r1", "ready", metrics={"running": 2.0, "waiting": 1.0})
    agent.give(order("r1", intent="drain", drain_s=1.5))
    agent.wait_replica("r1", "draining", reason="3 requests in the engine")
    agent.wait_replica("r1", "draining", reason="drain limit of 2 s passed; 3 requests in the engine")
    assert health(ready) == 200
    agent.give(order("r1"))
    assert agent.wait_replica("r1", "ready").pid == ready.pid


def test_the_simulated_engine_is_launched_like_any_other(agent: AgentUnderTest) -> None:
    agent.give(order("s1", runtime="simulated"))
    agent.start()
    ready = agent.wait_replica("s1", "ready")
    assert ready.address is not None
    body = json.dumps({"model": "demo", "prompt": "hi", "max_tokens": 5, "ignore_eos": True}).encode()
    url = f"http://{ready.address.host}:{ready.address.port}/v1/completions"
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 5
    assert ready.engine_version
    agent.give(order("s1", intent="stop"))
    assert agent.wait_replica("s1", "stopped").reason == "stopped by order"
