"""Any HTTP server as an engine: an OpenAI-compatible one, or one of its own kind with a readiness path.

The program runs as it was installed on the host, as the agent's user, by no shell. It must listen where ``{host}`` and
``{port}`` say: nothing else guards it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from worker.options import fill, probe_request, read_command
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
from worker.runtimes.vllm import METRICS as VLLM_METRICS
from worker.spec import ReplicaOrder

METRICS: MetricTable = {
    **VLLM_METRICS,
    "running": (*VLLM_METRICS["running"], "llamacpp:requests_processing"),
    "waiting": (*VLLM_METRICS["waiting"], "llamacpp:requests_deferred"),
    "kv_usage": (*VLLM_METRICS["kv_usage"], "llamacpp:kv_cache_usage_ratio"),
    "prompt_tokens_total": (*VLLM_METRICS["prompt_tokens_total"], "llamacpp:prompt_tokens_total"),
    "generation_tokens_total": (*VLLM_METRICS["generation_tokens_total"], "llamacpp:tokens_predicted_total"),
}
"""The names of vLLM, and of llama.cpp's server: others of this kind have their own, and show none here."""


class CommandRuntime:
    """What a revision's ``argv`` says."""

    name = "command"

    def environment(self, *, order: ReplicaOrder, host: HostFacts) -> EnvironmentSpec | None:
        if order.accelerators and not host.has_cuda:
            raise OptionError(
                "The order names accelerators, but this host shows none: check the NVIDIA driver (nvidia-smi)."
            )
        return None

    def weights(self, *, order: ReplicaOrder) -> WeightsSpec | None:
        """A folder must be there; a hub id is the server's own business."""
        kind, value = order.artifact.get("kind", ""), order.artifact.get("value", "")
        if kind == "path" and value:
            return WeightsSpec(kind="path", value=value, form="any")
        if any("{model}" in text for text in read_command(order.options).argv) and not value:
            raise OptionError("command option argv: {model} stands for nothing, since the model names no folder or id.")
        return None

    def launch_plan(
        self, *, order: ReplicaOrder, host: HostFacts, environment: Path | None, weights: Path | None, port: int
    ) -> LaunchPlan:
        options = read_command(order.options)
        proof = probe_request(self.name, order.options, model=order.served_name)
        is_folder = order.artifact.get("kind") == "path" and weights is not None
        values = {
            "host": "127.0.0.1",
            "port": str(port),
            "model": str(weights) if is_folder else order.artifact.get("value", ""),
            "name": order.served_name,
        }
        return LaunchPlan(
            argv=tuple(fill(argument, values) for argument in options.argv),
            env=_environment(order, host) | {name: fill(text, values) for name, text in options.env.items()},
            host="127.0.0.1",
            port=port,
            readiness=Readiness(
                health_path=options.readiness_path,
                warm_up_path=proof.path,
                warm_up_body=proof.body,
                start_limit_s=options.start_limit_s,
                warm_up_limit_s=120.0,
                models_path="",
                version_path="",
            ),
            metrics_path=options.metrics_path,
            stop_grace_s=options.stop_grace_s,
        )

    def metric_table(self, engine_version: str) -> MetricTable:
        return METRICS

    def cost_method(self, *, order: ReplicaOrder) -> CostMethod:
        """Without accelerators it may compute itself, or hand everything to something that is no child of it."""
        return "saturated" if order.accelerators else ""

    def explain_exit(self, *, exit_code: int | None, log_tail: str) -> str:
        if re.search(r"address (already|is already) in use", log_tail, re.IGNORECASE):
            return "The engine's port was taken by another process: retry, another port is chosen."
        return ""


def _environment(order: ReplicaOrder, host: HostFacts) -> dict[str, str]:
    """Its share of the cores and its accelerators, for libraries that would else take all; ``env`` goes before."""
    threads = max(1, math.floor(host.cores / max(1, host.engines)))
    return {
        "OMP_NUM_THREADS": str(threads),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, order.accelerators)),
    }
