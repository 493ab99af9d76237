"""What an MU of one price version is worth in another: two versions of a pool's price are two units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from capacity.policy.calculator import Shape
from capacity.policy.cost import KIB, ROW, CostProfile, request_cost

Basis = Literal["same", "usage", "standard"]

STANDARD = tuple(
    Shape(input_tokens=tokens, output_tokens=output) for tokens in (128, 1024, 8192) for output in (32, 256, 1024)
)
"""Requests by which versions are compared where nobody has used the pool: short to long, chat to summary."""
STANDARD_CLASSIC = tuple(
    Shape(units={ROW: rows, KIB: kib}) for rows, kib in ((1.0, 1.0), (100.0, 4.0), (5000.0, 200.0))
)
"""The same for a classic model, which knows no tokens."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """``factor``: MU of the new version per MU of the old one, for the same work. ``requests`` it was found from."""

    factor: float
    basis: Basis
    requests: int = 0

    @property
    def reason(self) -> str:
        if self.basis == "same":
            return "both are of one version"
        if self.basis == "usage":
            many = f"{self.requests} request{'s' if self.requests != 1 else ''}"
            return f"the tenant's last {many} cost {self.factor:.4g} times as many MU by the new version"
        return f"standard requests cost {self.factor:.4g} times as many MU by the new version, in the geometric mean"


def convert(old: CostProfile, new: CostProfile, used: Iterable[Shape] = ()) -> Conversion:
    """Return how MU of ``old`` become MU of ``new`` so that they buy the same work.

    By ``used``, requests that were really made, as the ratio of their sums; without any, by standard requests. Either
    way there and back again is 1. What neither version has a price for counts nothing.
    """
    if old.version == new.version and old == new:
        return Conversion(1.0, "same")
    shapes = list(used)
    before, after = (sum(_cost(profile, shape) for shape in shapes) for profile in (old, new))
    if before > 0.0 and after > 0.0:
        return Conversion(after / before, "usage", len(shapes))
    logs = []
    for shape in (*STANDARD, *STANDARD_CLASSIC):
        before, after = _cost(old, shape), _cost(new, shape)
        has_tokens = shape.input_tokens > 0
        # A classic model prices no token, and most others neither rows nor KiB: those say nothing of the work.
        is_priced = (old.alpha + old.beta > 0.0) if has_tokens else bool({ROW, KIB} & set(old.modalities))
        if is_priced and before > 0.0 and after > 0.0:
            logs.append(math.log(after / before))
    return Conversion(math.exp(sum(logs) / len(logs)) if logs else 1.0, "standard")


def _cost(profile: CostProfile, shape: Shape) -> float:
    return request_cost(
        profile,
        input_tokens=shape.input_tokens,
        cached_tokens=round(shape.input_tokens * shape.cached_share),
        output_tokens=shape.output_tokens,
        units=shape.units,
    )
