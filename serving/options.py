"""What a revision's runtime options may say about placement. Imports no Django."""

from collections.abc import Mapping
from typing import Any

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
