"""The simulated runtime with an engine whose coefficients only its own process knows."""

from __future__ import annotations

from pathlib import Path

import msgspec

from worker.runtimes.base import HostFacts, LaunchPlan
from worker.runtimes.simulated import SimulatedRuntime
from worker.spec import ReplicaOrder

ENGINE = Path(__file__).with_name("hidden_engine.py")
TRUTH = "truth.json"


class HiddenRuntime(SimulatedRuntime):
    name = "hidden"

    def launch_plan(
        self, *, order: ReplicaOrder, host: HostFacts, environment: Path | None, weights: Path | None, port: int
    ) -> LaunchPlan:
        plan = super().launch_plan(order=order, host=host, environment=environment, weights=weights, port=port)
        assert plan.argv[1:3] == ("-m", "worker.simulated")
        argv = (plan.argv[0], str(ENGINE), "--truth", TRUTH, *plan.argv[3:])
        return msgspec.structs.replace(plan, argv=argv, env={"PYTHONPATH": str(ENGINE.parents[2])})
