"""What a replica supplies on hardware that its pool's price was not measured on, in MU/min of that price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capacity.policy.cost import CostProfile, request_cost


@dataclass(frozen=True, slots=True)
class MixShape:
    """One of the request shapes of a mix, in tokens."""

    input_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 1

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> MixShape:
        """From its JSON. Raises ValueError for what is no shape."""
        try:
            return cls(**{name: int(stored[name]) for name in cls.__slots__ if name in stored})
        except (TypeError, ValueError) as error:
            raise ValueError(f"not the shape of a request: {dict(stored)!r}") from error


def mean_cost(profile: CostProfile, mix: Sequence[MixShape]) -> float:
    """MU of a request of ``mix``, whose shapes come in equal parts. Raises ValueError for an empty mix."""
    if not mix:
        raise ValueError("a mix needs at least one shape")
    return sum(
        request_cost(
            profile,
            input_tokens=shape.input_tokens,
            cached_tokens=shape.cached_tokens,
            output_tokens=shape.output_tokens,
        )
        for shape in mix
    ) / len(mix)


def supply_mu_per_min(profile: CostProfile, *, requests_per_min: float, mix: Sequence[MixShape]) -> float:
    """MU/min in the unit of ``profile`` of a replica that serves ``requests_per_min`` of ``mix`` at its knee.

    Raises ValueError for an empty mix, or a rate that is not positive.
    """
    if requests_per_min <= 0:
        raise ValueError(f"a replica must serve more than 0 requests/min, got {requests_per_min}")
    return requests_per_min * mean_cost(profile, mix)
