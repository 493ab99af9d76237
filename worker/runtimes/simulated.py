"""The simulated engine as a runtime: no environment, no weights, the agent's own interpreter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from worker.options import probe_request
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
from worker.runtimes.vllm import METRICS, max_num_seqs
from worker.simulated.engine import Fault
from worker.simulated.profile import EngineProfile, ProfileError, check_profile
from worker.spec import ReplicaOrder

REQUEST_LOG = "requests.jsonl"
"""The engine's own request log, in the replica's folder."""

_START_MARGIN_S = 30.0


class SimulatedOptions(EngineProfile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a revision may fix: the engine profile, and how the process behaves.

    ``max_num_seqs`` 0 follows the target concurrency, ``speed`` is engine seconds per second.
    """

    max_num_seqs: int = 0
    speed: float = 1.0
    seed: int = 0
    max_num_queued_reqs: int = 0
    fault: Fault | None = None


def read_options(raw: dict[str, Any]) -> SimulatedOptions:
    """Check a revision's options. Raises OptionError that names the field."""
    try:
        options = msgspec.convert(raw, SimulatedOptions)
    except msgspec.ValidationError as error:
        known = ", ".join(SimulatedOptions.__struct_fields__)
        raise OptionError(f"simulated engine option: {error}. Known options: {known}.") from error
    if options.speed <= 0:
        raise OptionError("simulated engine option speed: it must be positive.")
    return options


class SimulatedRuntime:
    """``python -m worker.simulated`` with vLLM's API and metric names."""

    name = "simulated"

    def environment(self, *, order: ReplicaOrder, host: HostFacts) -> EnvironmentSpec | None:
        return None

    def weights(self, *, order: ReplicaOrder) -> WeightsSpec | None:
        return None

    def launch_plan(
        self, *, order: ReplicaOrder, host: HostFacts, environment: Path | None, weights: Path | None, port: int
    ) -> LaunchPlan:
        options = read_options(order.options)
        needed = max_num_seqs(order.target_concurrency)
        if options.max_num_seqs and options.max_num_seqs <= order.target_concurrency:
            raise OptionError(
                f"simulated engine option max_num_seqs: {options.max_num_seqs} leaves no slot for the probe beside "
                f"{order.target_concurrency} requests; leave it out, or set at least {order.target_concurrency + 1}."
            )
        fields = {name: getattr(options, name) for name in EngineProfile.__struct_fields__}
        try:
            profile = check_profile(EngineProfile(**(fields | {"max_num_seqs": options.max_num_seqs or needed})))
        except ProfileError as error:
            raise OptionError(f"simulated engine: {error}.") from error
        proof = probe_request(self.name, order.options, model=order.served_name)
        argv = [host.python, "-m", "worker.simulated", "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--served-model-name", order.served_name, "--profile", msgspec.json.encode(profile).decode()]
        argv += ["--scheduling-policy", "priority", "--request-log", REQUEST_LOG]
        argv += ["--seed", str(options.seed), "--speed", str(options.speed)]
        if options.max_num_queued_reqs:
            argv += ["--max-num-queued-reqs", str(options.max_num_queued_reqs)]
        if options.fault is not None:
            argv += ["--fault", msgspec.json.encode(options.fault).decode()]
        return LaunchPlan(
            argv=tuple(argv),
            env={},
            host="127.0.0.1",
            port=port,
            readiness=Readiness(
                health_path="/health",
                warm_up_path=proof.path,
                warm_up_body=proof.body,
                start_limit_s=_START_MARGIN_S + profile.startup_s,
                warm_up_limit_s=_START_MARGIN_S,
            ),
        )

    def metric_table(self, engine_version: str) -> MetricTable:
        return METRICS

    def cost_method(self, *, order: ReplicaOrder) -> CostMethod:
        """It sleeps for the time it pretends to compute."""
        return "saturated"

    def explain_exit(self, *, exit_code: int | None, log_tail: str) -> str:
        for pattern, words in _EXITS:
            if found := pattern.search(log_tail):
                return words.format(**found.groupdict())
        return ""


_EXITS = (
    (
        re.compile(r"address already in use", re.IGNORECASE),
        "The engine's port was taken by another process: retry, another port is chosen.",
    ),
    (re.compile(r"^simulated engine: (?P<why>the profile .*|.*kv_tokens.*|.*must be.*)$", re.MULTILINE), "{why}"),
    (re.compile(r"No module named '?(?P<what>[\w.]+)'?"), "The agent's installation lacks {what}: install it again."),
)
