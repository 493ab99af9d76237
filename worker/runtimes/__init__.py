"""Runtimes by name. A runtime's module is imported only when an order names it."""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

from worker.runtimes.base import OptionError, Runtime

RUNTIMES = {
    "vllm": "worker.runtimes.vllm:VllmRuntime",
    "mlflow": "worker.runtimes.mlflow:MlflowRuntime",
    "command": "worker.runtimes.command:CommandRuntime",
    "simulated": "worker.runtimes.simulated:SimulatedRuntime",
}
"""Runtime name (``ReplicaOrder.runtime``) -> ``module:class``."""


@cache
def get_runtime(name: str) -> Runtime:
    """Return the runtime called ``name``. Raises OptionError for a name this agent does not know."""
    where = RUNTIMES.get(name)
    if where is None:
        known = ", ".join(sorted(RUNTIMES))
        raise OptionError(f"this agent has no runtime {name!r}; it knows {known}. Update the agent, or the deployment.")
    module, _, attribute = where.partition(":")
    return cast(Runtime, getattr(importlib.import_module(module), attribute)())
