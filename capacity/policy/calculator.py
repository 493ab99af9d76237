"""From a request's shape and rate to model units, replicas and accelerators, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from capacity.policy.cost import CostProfile, request_cost, unpriced
from capacity.policy.profiles import DEFAULT_CONTEXT_TOKENS
from capacity.policy.stock import provisioned_replicas

BURST_S = 10.0
"""Seconds of a reservation's rate that its bucket holds, at least."""

LARGEST_MU_PER_MIN = 1e12
"""More than anybody has; numbers beyond it would only overflow somewhere."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A typical request. ``cached_share`` of the input is found in the prefix cache (0..1); ``units`` of modalities.

    Raises ValueError for what no request can be.
    """

    input_tokens: int = 0
    cached_share: float = 0.0
    output_tokens: int = 0
    units: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.input_tokens < 0 or self.output_tokens < 0 or any(count < 0 for count in self.units.values()):
            raise ValueError("tokens and units cannot be negative")
        if not 0.0 <= self.cached_share <= 1.0:
            raise ValueError(f"the cached share lies between 0 and 1, got {self.cached_share}")


@dataclass(frozen=True, slots=True)
class Demand:
    """What so many requests of a shape come to. ``replicas`` keep them warm by the pool's rules, N−1 included."""

    mu_per_request: float
    requests_per_min: float
    mu_per_min: float
    replicas: int
    accelerators: int


def mu_per_request(profile: CostProfile, shape: Shape) -> float:
    """What a request of ``shape`` costs, in MU. Raises ValueError for a modality that the profile has no price for."""
    if nameless := unpriced(profile, shape.units):
        known = ", ".join(sorted(profile.modalities)) or "none"
        raise ValueError(f"this pool has no price for {', '.join(nameless)}; it has prices for: {known}")
    return request_cost(
        profile,
        input_tokens=shape.input_tokens,
        cached_tokens=round(shape.input_tokens * shape.cached_share),
        output_tokens=shape.output_tokens,
        units=shape.units,
    )


def demand(
    profile: CostProfile,
    shape: Shape,
    *,
    requests_per_min: float,
    supply_mu_per_min: float,
    accelerators_each: int,
    oversell_factor: float = 1.0,
    keep_spare: bool = True,
) -> Demand:
    """What ``requests_per_min`` of ``shape`` need, of replicas that supply ``supply_mu_per_min`` each.

    Raises ValueError as ``mu_per_request`` does, for a rate that is negative or not finite, and for what comes to more
    than ``LARGEST_MU_PER_MIN``.
    """
    if not 0.0 <= requests_per_min < math.inf:
        raise ValueError(f"a rate is a finite number that is not negative, got {requests_per_min}")
    each = mu_per_request(profile, shape)
    return _demand(each, requests_per_min, supply_mu_per_min, accelerators_each, oversell_factor, keep_spare)


def affordable(
    profile: CostProfile,
    shape: Shape,
    *,
    mu_per_min: float,
    supply_mu_per_min: float,
    accelerators_each: int,
    oversell_factor: float = 1.0,
    keep_spare: bool = True,
) -> Demand:
    """How many requests of ``shape`` fit into ``mu_per_min``, with the replicas and accelerators behind them.

    Raises ValueError as ``demand`` does, and where a request of this shape costs nothing.
    """
    if not 0.0 <= mu_per_min < math.inf:
        raise ValueError(f"a rate is a finite number that is not negative, got {mu_per_min}")
    each = mu_per_request(profile, shape)
    if each <= 0.0:
        raise ValueError("a request of this shape costs nothing: give it input, output or units")
    return _demand(each, mu_per_min / each, supply_mu_per_min, accelerators_each, oversell_factor, keep_spare)


def _demand(
    each: float, requests_per_min: float, supply: float, accelerators_each: int, oversell: float, keep_spare: bool
) -> Demand:
    mu_per_min = each * requests_per_min
    if not (mu_per_min <= LARGEST_MU_PER_MIN * (1 + 1e-9) and math.isfinite(requests_per_min)):
        raise ValueError(f"this comes to more than {LARGEST_MU_PER_MIN:g} MU/min: give smaller numbers")
    replicas = provisioned_replicas(
        mu_per_min, supply_mu_per_min=supply, oversell_factor=oversell, keep_spare=keep_spare
    )
    return Demand(each, requests_per_min, mu_per_min, replicas, replicas * accelerators_each)


def largest_request(profile: CostProfile, context_tokens: int | None) -> float:
    """MU of the dearest request that fits into the context (input and output together), media and rows apart.

    ``context_tokens`` None: where it is unknown, a common one is taken.
    """
    context = max(1, context_tokens or DEFAULT_CONTEXT_TOKENS)
    # Along input + output = context the price is a parabola in each tier: dearest at an end of it, or at its vertex.
    candidates = {0, 1, context - 1, context}
    curve = profile.gamma - 2.0 * profile.epsilon
    if curve > 0.0:
        vertex = (profile.alpha - profile.beta) / curve
        candidates |= {math.floor(vertex), math.ceil(vertex)} if abs(vertex) < 1e12 else set()
    for start, _ in profile.long_input_tiers:
        candidates |= {start - 1, start}
    inputs = {min(context, max(0, tokens)) for tokens in candidates}
    return max(request_cost(profile, input_tokens=i, output_tokens=context - i) for i in inputs)


def default_burst(profile: CostProfile, *, mu_per_min: float, context_tokens: int | None) -> float:
    """MU that a reservation's bucket holds: 10 s of its rate, and at least the largest admissible request."""
    return max(mu_per_min * BURST_S / 60.0, largest_request(profile, context_tokens))
