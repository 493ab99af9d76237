"""What a runtime is to the host agent: data and pure functions that turn an order into a process.

A runtime opens nothing and starts nothing. It says which isolated environment it needs, which weights, how the engine
is launched, how its readiness is judged, what its metrics are called and what an exit means. The supervisor acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from worker.options import OptionError as OptionError
from worker.spec import ReplicaOrder

MARKER_REPLICA = "PENSTOCK_REPLICA_ID"
"""Environment variable of every engine process: the replica it belongs to."""
MARKER_AGENT = "PENSTOCK_AGENT_DIR"
"""Environment variable of every process an agent starts: that agent's own folder."""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What launch plans need to know of the host.

    ``cores`` honours a cgroup CPU quota and may be fractional. ``engines`` counts the replicas of the same runtime that
    share them. ``python`` is the agent's own interpreter.
    """

    cores: float
    memory_bytes: int
    has_cuda: bool
    engines: int
    python: str


class EnvironmentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An isolated engine environment, a recipe of ``worker.environments`` by its name."""

    name: str


class WeightsSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Weights to have on disk before a launch: ``kind`` and ``value`` as in ``ReplicaOrder.artifact``.

    ``form`` says what a usable folder holds: a model in Hugging Face format, an MLflow model, or anything.
    """

    kind: Literal["tiny", "path", "hub"]
    value: str
    revision: str = ""
    form: Literal["huggingface", "mlflow", "any"] = "huggingface"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """How the supervisor finds out that an engine can serve.

    First ``health_path`` must answer 200, then ``warm_up_path`` must answer ``warm_up_body`` (a 1-token completion,
    an embedding, a prediction; None: GET) with 200: an engine whose core is dead or frozen still answers the first.
    Limits are in seconds. An empty ``models_path`` or ``version_path`` is not asked.
    """

    health_path: str
    warm_up_path: str
    warm_up_body: dict[str, Any] | None
    start_limit_s: float
    """Launch to healthy. The supervisor raises it to a multiple of what this host needed before."""
    warm_up_limit_s: float
    models_path: str = "/v1/models"
    version_path: str = "/version"


class LaunchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to start one engine and to watch it, also by a later agent process.

    ``env`` is laid over a small inherited allow-list (PATH, HOME, locale, proxies, certificates); the supervisor adds
    the markers. ``cwd`` None means the replica's own folder.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    host: str
    port: int
    readiness: Readiness
    metrics_path: str = "/metrics"
    """Empty: the engine tells no metrics."""
    stop_grace_s: float = 10.0
    """SIGTERM to SIGKILL of the group. Requests are drained by the router before any signal."""
    cwd: str | None = None


CostMethod = Literal["", "engine_cpu", "saturated"]
"""How a calibration takes an engine's time: CPU seconds of its processes, or elapsed time of a saturated engine. Empty:
by what the engine is seen to burn."""

MetricTable = Mapping[str, tuple[str, ...]]
"""Penstock's metric name (``worker.spec.METRICS``) -> the engine's names, newest first; the first one found counts."""


class Runtime(Protocol):
    """One kind of engine. Implementations are stateless."""

    name: str

    def environment(self, *, order: ReplicaOrder, host: HostFacts) -> EnvironmentSpec | None:
        """The environment the engine runs in; None: the agent's own interpreter. Raises OptionError."""
        ...

    def weights(self, *, order: ReplicaOrder) -> WeightsSpec | None:
        """The weights the order needs on disk; None: nothing to fetch. Raises OptionError."""
        ...

    def launch_plan(
        self, *, order: ReplicaOrder, host: HostFacts, environment: Path | None, weights: Path | None, port: int
    ) -> LaunchPlan:
        """How to start the engine on loopback ``port``. Pure. Raises OptionError."""
        ...

    def metric_table(self, engine_version: str) -> MetricTable:
        """Metric names of this engine version; unknown versions get the newest table."""
        ...

    def cost_method(self, *, order: ReplicaOrder) -> CostMethod:
        """How a calibration measures what requests cost this engine."""
        ...

    def explain_exit(self, *, exit_code: int | None, log_tail: str) -> str:
        """Why the engine exited, in words a person can act on; empty when the log does not tell."""
        ...
