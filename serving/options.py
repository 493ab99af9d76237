"""What a revision's runtime options say: about placement here, about the engine in ``worker.options``. No Django."""

from collections.abc import Mapping
from typing import Any

from worker.options import (
    INVOCATIONS_PATH,
    READERS,
    OptionError,
    ProbeRequest,
    adapters,
    probe_request,
    read_command,
    speaks,
)

PLACEMENT_OPTIONS = frozenset({"accelerators", "host_labels", "memory_bytes", "tensor_parallel_size"})
"""Options of a revision that say where its replicas go. No engine knows them: the agent derives tensor parallelism
from the accelerators that it is given."""

_LEAST = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "accelerators": 0,
    "memory_bytes": 0,
    "kv_cache_bytes": 1,
}


def placement_errors(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options that say which host a replica needs, for people. Others belong to the runtime."""
    found = [
        f"{name}: give a whole number from {least}, or leave it out."
        for name, least in _LEAST.items()
        if name in options and not _is_count(options[name], least)
    ]
    labels = options.get("host_labels", {})
    if not isinstance(labels, Mapping) or not all(isinstance(text, str) for pair in labels.items() for text in pair):
        found.append('host_labels: give texts by name, e.g. {"zone": "a"}, or leave it out.')
    return found


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def engine_options(options: object) -> dict[str, Any]:
    """The options that are the engine's. Those of a revision from before they were checked may be no object: none."""
    if not isinstance(options, Mapping):
        return {}
    return {name: value for name, value in options.items() if name not in PLACEMENT_OPTIONS}


def engine_errors(runtime: str, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options that are the engine's, for people. The simulated engine checks its own."""
    if runtime not in READERS:
        return []
    try:
        READERS[runtime](engine_options(options))
    except OptionError as error:
        return [str(error)]
    return []


def spoken(runtime: str, options: object) -> tuple[str, ...]:
    """What clients can ask of a deployment, as ``worker.options.Speak`` says. Unreadable options speak nothing."""
    try:
        return speaks(runtime, engine_options(options))
    except OptionError:
        return ()


def adapters_of(runtime: str, options: object) -> tuple[str, ...]:
    """Names of the LoRA adapters that a revision serves beside its model."""
    return adapters(runtime, engine_options(options))


def invocations_path(runtime: str, options: object) -> str:
    """Where the engine answers what clients ask at ``/invocations``: there, unless a command says elsewhere."""
    if runtime != "command":
        return INVOCATIONS_PATH
    try:
        return read_command(engine_options(options)).invocations_path
    except OptionError:
        return INVOCATIONS_PATH


def probe_of(runtime: str, options: object, *, model: str) -> ProbeRequest:
    """How an engine is asked whether it serves ``model``. Raises OptionError for options that cannot be read."""
    return probe_request(runtime, engine_options(options), model=model)
