"""A real agent runs the simulated engine: ready, serving, metrics, and a hang that only SIGKILL ends."""

from __future__ import annotations

import json

import httpx

from tests.worker.conftest import AgentUnderTest, order, wait_for
from tests.worker.simulated.conftest import FAST
from worker.runtimes.simulated import REQUEST_LOG


def test_an_agent_starts_it_reports_its_metrics_and_kills_it_when_it_hangs(agent: AgentUnderTest) -> None:
    agent.start()
    wanted = order("r1", runtime="simulated", served_name="sim", options=dict(FAST), target_concurrency=4)
    agent.give(wanted)
    ready = agent.wait_replica("r1", "ready")
    assert ready.address is not None
    assert ready.engine_version.endswith("+simulated")
    assert ready.max_model_len == 8192
    url = f"http://{ready.address.host}:{ready.address.port}"
    body = {"model": "sim", "prompt": "Hello", "max_tokens": 9, "ignore_eos": True}
    assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200

    def counted() -> bool:
        reports = [each for report in agent.reports() for each in report.replicas]
        # One token more: the warm-up's.
        return any(each.metrics.get("generation_tokens_total") == 10 for each in reports)

    wait_for("the tokens in a report", counted)
    noted = [json.loads(line) for line in (agent.folder / "replicas" / "r1" / REQUEST_LOG).read_text().splitlines()]
    assert [line["output_tokens"] for line in noted] == [1, 9]
    httpx.post(f"{url}/fault", json={"mode": "hang"})
    agent.give(order("r1", runtime="simulated", served_name="sim", intent="stop", kill=True, evidence=True))
    stopped = agent.wait_replica("r1", "stopped")
    assert stopped.evidence
    assert agent.processes("r1") == []
