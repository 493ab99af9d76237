"""What an order needs before its launch, and whether it can be done at all: a runtime's answers, kept per replica."""

from __future__ import annotations

from pathlib import Path

import msgspec

from worker.runtimes import get_runtime
from worker.runtimes.base import EnvironmentSpec, HostFacts, OptionError, WeightsSpec
from worker.spec import ReplicaOrder
from worker.words import error_words


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """Environment and weights of ``order`` (None: none), or in ``refusal`` why it cannot be done."""

    order: ReplicaOrder | None = None
    environment: EnvironmentSpec | None = None
    weights: WeightsSpec | None = None
    refusal: str = ""


def need_of(order: ReplicaOrder, facts: HostFacts) -> Need:
    """Ask the runtime, before minutes go into preparing what it would refuse. Never raises."""
    try:
        runtime = get_runtime(order.runtime)
        environment = runtime.environment(order=order, host=facts)
        weights = runtime.weights(order=order)
        anywhere = Path("/")
        runtime.launch_plan(order=order, host=facts, environment=anywhere, weights=anywhere, port=1)
    except OptionError as error:
        return Need(order=order, refusal=str(error))
    except Exception as error:  # noqa: BLE001  (an order that a runtime trips over concerns its replica alone)
        return Need(order=order, refusal=f"The order cannot be carried out ({error_words(error)}): check its options.")
    return Need(order=order, environment=environment, weights=weights)
