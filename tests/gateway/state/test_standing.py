"""By whose word limits hold is told: the state's, the gateway's own, or nobody's until all have reported."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from serving.gateway.demands import Demand, Granted, Phase, Refused
from serving.gateway.grants import Grants
from serving.gateway.metrics import Metrics
from serving.gateway.records import LimitRecord
from serving.gateway.state import State
from tests.gateway.state.team import settled_epoch, until

RATE = LimitRecord(id="r", kind="requests_per_min", value=60.0)
BUDGET = LimitRecord(id="b.20261126", kind="mu_per_day", value=100.0, ends_at=4e9)


def shown(grants: Grants) -> str:
    """What the metrics say."""
    text = Metrics(dict, lambda: grants.standing.phase).text().decode()
    family = next(f for f in text_string_to_metric_families(text) if f.name == "penstock_gateway_limits")
    (name,) = [sample.labels["by"] for sample in family.samples if sample.value == 1.0]
    return name


async def test_a_gateway_says_by_whose_word_it_admits(valkey_server: Any) -> None:
    server = valkey_server()
    settled_epoch(server.url)
    state = State(server.url)
    grants = Grants(state, "gw")
    assert grants.standing.phase == shown(grants) == "unknown"
    assert grants.standing.gateways == 0
    await grants.start()
    try:
        await until(lambda: grants.standing.phase == "arbiter")
        assert shown(grants) == "arbiter"
        assert grants.standing[1:] == (1, None, None)
        granted = await grants.acquire([Demand(RATE), Demand(BUDGET, 60.0)])
        assert isinstance(granted, Granted)
        server.stop(signal.SIGKILL)
        await until(lambda: grants.standing.phase == "alone")
        assert shown(grants) == "alone"
        standing = grants.standing
        assert standing.alone_s is not None
        assert standing.alone_left_s is not None
        assert standing.alone_s + standing.alone_left_s == 600.0
        # The budget goes on from where it was, and so it does when the state comes back with nothing.
        refused = await grants.acquire([Demand(BUDGET, 50.0)])
        assert isinstance(refused, Refused)
        assert refused.remaining == 40.0
        assert isinstance(await grants.acquire([Demand(BUDGET, 15.0)]), Granted)
        grants.settle(granted, {BUDGET.id: 10.0})
        server.wipe()
        server.start()
        seen: list[Phase] = []
        async with asyncio.timeout(10):
            while grants.standing.phase != "arbiter":
                if grants.standing.phase not in seen:
                    seen.append(grants.standing.phase)
                await asyncio.sleep(0.01)
        assert seen[-1] == "reporting"
        refused = await grants.acquire([Demand(BUDGET, 76.0)])
        assert isinstance(refused, Refused)
        assert refused.remaining == 75.0
        assert refused.retry_after_s > 86_400
        assert isinstance(await grants.acquire([Demand(BUDGET, 75.0)]), Granted)
    finally:
        await grants.stop()
        await state.close()
