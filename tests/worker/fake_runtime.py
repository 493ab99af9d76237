"""A runtime that launches ``fake_engine.py``: the agent under test is real, only the engine is small."""

from __future__ import annotations

from pathlib import Path

from worker.runtimes.base import (
    CostMethod,
    EnvironmentSpec,
    HostFacts,
    LaunchPlan,
    MetricTable,
    OptionError,
    Readiness,
    WeightsSpec,
)
from worker.runtimes.vllm import METRICS
from worker.spec import ReplicaOrder

ENGINE = Path(__file__).with_name("fake_engine.py")


class FakeRuntime:
    name = "fake"

    def environment(self, *, order: ReplicaOrder, host: HostFacts) -> EnvironmentSpec | None:
        return None

    def weights(self, *, order: ReplicaOrder) -> WeightsSpec | None:
        if order.artifact.get("kind") == "path":
            return WeightsSpec(kind="path", value=order.artifact["value"])
        return None

    def launch_plan(
        self, *, order: ReplicaOrder, host: HostFacts, environment: Path | None, weights: Path | None, port: int
    ) -> LaunchPlan:
        options = order.options
        if "nonsense" in options:
            raise OptionError("option nonsense: remove it")
        argv = [host.python, str(ENGINE), "--port", str(port), "--model", order.served_name]
        argv += ["--mode", options.get("mode", "serve"), "--delay", str(options.get("delay", 0.0))]
        return LaunchPlan(
            argv=tuple(argv),
            env={"FAKE": "1"},
            host="127.0.0.1",
            port=port,
            readiness=Readiness(
                health_path="/health",
                warm_up_path="/v1/completions",
                warm_up_body={"model": order.served_name, "prompt": "x", "max_tokens": 1},
                start_limit_s=options.get("start_limit_s", 20.0),
                warm_up_limit_s=options.get("warm_up_limit_s", 5.0),
            ),
            stop_grace_s=options.get("stop_grace_s", 3.0),
        )

    def metric_table(self, engine_version: str) -> MetricTable:
        return METRICS

    def cost_method(self, *, order: ReplicaOrder) -> CostMethod:
        return "saturated"

    def explain_exit(self, *, exit_code: int | None, log_tail: str) -> str:
        return "The port is taken." if "Address already in use" in log_tail else ""
