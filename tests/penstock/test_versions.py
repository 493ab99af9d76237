"""Gateways and agents may be one version behind: each side reads what the other one wrote, and is read by it.

``WRITTEN`` is what the version before writes, with all that it needs to find when it reads. It moves on with a release.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from capacity.usage.lines import UsageBatch
from serving.gateway.loads import GatewayBeat
from serving.gateway.records import RECORD_TYPES, JournalLine
from worker.spec import HostOrders, HostReport

PROFILE = {"version": 1, "base": 0.0, "alpha": 0.1, "beta": 0.2, "gamma": 0.0, "epsilon": 0.0, "cached_factor": 0.1}
WRITTEN: dict[str, tuple[Any, dict[str, Any]]] = {
    "tenant": (RECORD_TYPES["tenant"], {"id": "t", "slug": "acme"}),
    "key": (RECORD_TYPES["key"], {"id": "k", "uuid": "u", "tenant": "t", "digest": "00", "pepper": 1}),
    "pool": (RECORD_TYPES["pool"], {"id": "p", "slug": "chat", "profile": PROFILE}),
    "deployment": (
        RECORD_TYPES["deployment"],
        {"id": "d", "name": "chat", "pool": "p", "revision": "v", "runtime": "vllm"},
    ),
    "replica": (
        RECORD_TYPES["replica"],
        {
            "id": "r",
            "deployment": "d",
            "revision": "v",
            "host": "h",
            "address": "http://127.0.0.1:9",
            "state": "ready",
            "target_concurrency": 8,
        },
    ),
    "reservation": (
        RECORD_TYPES["reservation"],
        {
            "id": "s",
            "tenant": "t",
            "pool": "p",
            "mu_per_min": 60.0,
            "burst_mu": 10.0,
            "starts_at": 1.0,
            "ends_at": 2.0,
            "profile": PROFILE,
        },
    ),
    "orders": (
        HostOrders,
        {
            "host_id": "h",
            "generation": 3,
            "replicas": [
                {
                    "replica_id": "r",
                    "deployment_id": "d",
                    "deployment_name": "chat",
                    "runtime": "vllm",
                    "served_name": "chat",
                    "intent": "run",
                    "artifact": {"kind": "tiny", "value": "", "revision": ""},
                    "options": {"max_model_len": 512},
                    "target_concurrency": 8,
                }
            ],
        },
    ),
    "report": (
        HostReport,
        {
            "host_id": "h",
            "boot_id": "b",
            "sequence": 1,
            "generation": 3,
            "agent_version": "0.1.0",
            "agent_pid": 7,
            "hostname": "rack-1",
            "cores": 8,
            "memory_bytes": 1,
            "memory_available_bytes": 1,
            "load_1m": 0.5,
            "replicas": [{"replica_id": "r", "phase": "ready", "address": {"host": "127.0.0.1", "port": 9}}],
        },
    ),
}
"""By kind: the type that reads it, and the message."""


def holds(written: Any, again: Any) -> bool:
    """Whether ``again`` says everything that ``written`` says."""
    if isinstance(written, dict):
        return isinstance(again, dict) and all(
            name in again and holds(value, again[name]) for name, value in written.items()
        )
    if isinstance(written, list):
        return isinstance(again, list) and len(written) == len(again) and all(map(holds, written, again))
    return bool(written == again)


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_the_version_before_wrote_is_read_and_written_again_as_it_needs_it(kind: str) -> None:
    shape, message = WRITTEN[kind]
    read = msgspec.json.decode(msgspec.json.encode(message), type=shape)
    assert holds(message, msgspec.json.decode(msgspec.json.encode(read)))


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_the_next_version_adds_is_passed_over(kind: str) -> None:
    shape, message = WRITTEN[kind]

    def with_news(value: Any) -> Any:
        if isinstance(value, list):
            return [with_news(one) for one in value]
        if not isinstance(value, dict):
            return value
        # Free-form values take anything by name already.
        return {name: one if name in ("artifact", "options") else with_news(one) for name, one in value.items()} | (
            {} if set(value) <= {"kind", "value", "revision"} else {"of_the_next_version": {"a": [1]}}
        )

    read = msgspec.json.decode(msgspec.json.encode(with_news(message)), type=shape)
    assert read == msgspec.json.decode(msgspec.json.encode(message), type=shape)


@pytest.mark.parametrize(
    "shape", [JournalLine, UsageBatch, GatewayBeat, *RECORD_TYPES.values(), HostOrders, HostReport]
)
def test_no_message_forbids_what_it_does_not_know(shape: Any) -> None:
    seen: set[Any] = set()

    def look(kind: Any) -> None:
        for struct in _structs(kind):
            if struct not in seen:
                seen.add(struct)
                assert not struct.__struct_config__.forbid_unknown_fields, struct
                for field in msgspec.structs.fields(struct):
                    look(field.type)

    look(shape)
    assert seen


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [one for part in getattr(kind, "__args__", ()) for one in _structs(part)]
