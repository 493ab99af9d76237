"""MLflow: classic models behind MLflow's own scoring server, without its command line.

``mlflow models serve`` starts the server as a child and leaves it behind when it is asked to end; uvicorn with the
same application is one process that ends in 0.25 s. It tells no metrics: gateways measure concurrency and latency.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from worker.environments import interpreter
from worker.options import probe_request, read_mlflow
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
from worker.spec import ReplicaOrder

APPLICATION = "mlflow.pyfunc.scoring_server.app:app"
MODEL_VARIABLE = "__pyfunc_model_path__"
"""Where the application looks for its model; ``mlflow models serve`` sets the same."""
START_LIMIT_S = 180.0
"""7 s were measured on a quiet machine with two cores, 23 s on a crowded one."""
REQUEST_LIMIT_S = 600
"""MLflow's own limit is 60 s and answers 504; how long a client may wait is the gateway's business."""


class MlflowRuntime:
    """``uvicorn mlflow.pyfunc.scoring_server.app:app``, one process."""

    name = "mlflow"

    def environment(self, *, order: ReplicaOrder, host: HostFacts) -> EnvironmentSpec:
        if order.accelerators:
            raise OptionError("MLflow models are served by the CPU: set the option accelerators to 0.")
        return EnvironmentSpec(name="mlflow")

    def weights(self, *, order: ReplicaOrder) -> WeightsSpec:
        kind, value = order.artifact.get("kind", ""), order.artifact.get("value", "")
        if kind != "path" or not value:
            raise OptionError(f"MLflow serves a folder that MLflow saved (kind path), not {kind or 'nothing'!r}.")
        return WeightsSpec(kind="path", value=value, form="mlflow")

    def launch_plan(
        self, *, order: ReplicaOrder, host: HostFacts, environment: Path | None, weights: Path | None, port: int
    ) -> LaunchPlan:
        if environment is None or weights is None:
            raise OptionError("MLflow needs an environment and a model before it can be launched.")
        options = read_mlflow(order.options)
        proof = probe_request(self.name, order.options, model=order.served_name)
        threads = str(options.threads or max(1, math.floor(host.cores / max(1, host.engines))))
        argv = (str(interpreter(environment)), "-m", "uvicorn", APPLICATION, "--host", "127.0.0.1", "--port", str(port))
        return LaunchPlan(
            argv=(*argv, "--no-access-log", "--timeout-keep-alive", "75"),
            env={
                MODEL_VARIABLE: str(weights),
                "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": str(REQUEST_LIMIT_S),
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "1",
                # Each library has a pool of its own, by default as wide as the host.
                "OMP_NUM_THREADS": threads,
                "OPENBLAS_NUM_THREADS": threads,
                "LOKY_MAX_CPU_COUNT": threads,
                "CUDA_VISIBLE_DEVICES": "",
            },
            host="127.0.0.1",
            port=port,
            readiness=Readiness(
                health_path="/ping",
                warm_up_path=proof.path,
                warm_up_body=proof.body,
                start_limit_s=options.start_limit_s or START_LIMIT_S,
                warm_up_limit_s=60.0,
                models_path="",
                version_path="/version",
            ),
            metrics_path="",
        )

    def metric_table(self, engine_version: str) -> MetricTable:
        return {}

    def cost_method(self, *, order: ReplicaOrder) -> CostMethod:
        return "engine_cpu"

    def explain_exit(self, *, exit_code: int | None, log_tail: str) -> str:
        for pattern, words in EXITS:
            if found := pattern.search(log_tail):
                return words.format(**found.groupdict())
        return ""


EXITS = (
    (
        re.compile(r"address already in use", re.IGNORECASE),
        "The engine's port was taken by another process: retry, another port is chosen.",
    ),
    (
        re.compile(r"ModuleNotFoundError: No module named '(?P<what>[^']+)'"),
        "The model needs the module {what}, which the mlflow environment does not have (it has scikit-learn and "
        "LightGBM): serve it with the runtime command from an environment of your own.",
    ),
    (
        re.compile(r"UntrustedTypesFoundException|[Uu]ntrusted types"),
        "The model holds types that skops does not trust: save it again with skops_trusted_types.",
    ),
    (
        re.compile(r"InconsistentVersionWarning.*(?P<what>version [\d.]+ when using version [\d.]+)"),
        "The model was saved with another scikit-learn ({what}): save it again, or serve it with the runtime command.",
    ),
    (
        re.compile(r"MemoryError|std::bad_alloc"),
        "The host's memory is full: stop other engines, or use a smaller model.",
    ),
    (
        re.compile(r"MlflowException: (?P<what>[^\n]{1,200})"),
        "MLflow cannot load the model: {what}",
    ),
)
"""What the server's last words mean. The first that matches counts."""
