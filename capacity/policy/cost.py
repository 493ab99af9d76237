"""The price of one request in model units (MU), term by term.

``cost = base + T·[α·(input − cached) + ε·(input² − cached²) + α·cached_factor·cached
+ β·output + γ·output·(input + output/2)] + Σ modality·units``

α and ε price the prefill (ε: attention over the prompt), β and γ the decode (γ: attention over the growing context;
``output·(input + output/2)`` is the sum of the context lengths of the decoded tokens). T is the factor of the
long-input tier that the input has reached, 1 below the first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

ROW, KIB = "row", "kib"
"""Modalities of a classic model: rows to predict, KiB of the request's body."""

IMAGE_TOKEN, AUDIO_TOKEN, VIDEO_TOKEN = "image_token", "audio_token", "video_token"
"""Modalities of a model that takes images, sound or video: input tokens that these have become. They are among the
input tokens, and priced as such too: what stands here is the price of encoding them."""
MEDIA = {"image": IMAGE_TOKEN, "audio": AUDIO_TOKEN, "video": VIDEO_TOKEN}
"""The same by an engine's own words."""


def invocation_units(*, rows: int, body_bytes: int) -> dict[str, float]:
    """The units of a request to a classic model, as ``CostProfile.modalities`` prices them.

    With the profile's ``base`` they are its whole price: such a request has no tokens. No rows are no unit: the body is
    in none of MLflow's forms, and priced by its size alone. Raises ValueError for a negative count.
    """
    if rows < 0 or body_bytes < 0:
        raise ValueError(f"counts cannot be negative: {rows} rows, {body_bytes} bytes")
    return {KIB: body_bytes / 1024, **({ROW: float(rows)} if rows else {})}


@dataclass(frozen=True, slots=True)
class CostProfile:
    """Coefficients of a version of a pool's price. Raises ValueError where a coefficient makes no sense.

    ``base`` MU per request, ``alpha`` MU per uncached input token, ``beta`` MU per output token, ``gamma`` MU per
    output token and context token, ``epsilon`` MU per squared input token, ``cached_factor`` share of alpha that a
    cached input token costs (0..1), ``modalities`` MU per unit, ``long_input_tiers`` pairs (from input tokens, factor)
    with factors that are at least 1 and never fall: otherwise a longer prompt could be cheaper. ``price_per_1000_mu``
    is money, which no term here depends on.
    """

    version: int
    base: float
    alpha: float
    beta: float
    gamma: float
    epsilon: float
    cached_factor: float
    modalities: Mapping[str, float] = field(default_factory=dict, hash=False)
    long_input_tiers: tuple[tuple[int, float], ...] = ()
    calibrated: bool = False
    price_per_1000_mu: float = 0.0

    def __post_init__(self) -> None:
        for name in ("base", "alpha", "beta", "gamma", "epsilon"):
            _require_price(name, getattr(self, name))
        if not 0.0 <= self.cached_factor <= 1.0:
            raise ValueError(f"cached_factor must lie between 0 and 1, got {self.cached_factor}")
        for modality, price in self.modalities.items():
            _require_price(f"modality {modality!r}", price)
        # JSON brings lists of lists; tuples keep the profile hashable.
        tiers = tuple(sorted((int(start), float(factor)) for start, factor in self.long_input_tiers))
        factors = [1.0, *(factor for _, factor in tiers)]
        if any(not lower <= higher < math.inf for lower, higher in itertools.pairwise(factors)):
            raise ValueError(f"long_input_tiers need factors that are at least 1 and never fall, got {tiers}")
        object.__setattr__(self, "long_input_tiers", tiers)


@dataclass(frozen=True, slots=True)
class CostBreakdown:
    """What each term of a request costs, in MU; ``total`` is their sum.

    Every token term includes the tier ``factor``. ``unpriced`` names modalities that the profile has no price for:
    they cost nothing here, so admission must refuse them.
    """

    base: float
    prefill: float
    prefill_attention: float
    cached: float
    decode: float
    decode_attention: float
    modalities: Mapping[str, float]
    factor: float
    unpriced: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        tokens = self.prefill + self.prefill_attention + self.cached + self.decode + self.decode_attention
        return self.base + tokens + sum(self.modalities.values())


class TokenCosts(NamedTuple):
    """A request's price (``total``) and the engine work in it, in MU.

    ``prefill`` is the work that is still to be prefilled, the uncached part alone, and ``decode`` that of the output:
    measures for routing and pending-prefill caps, so neither tiers nor the price of a cached token are in them.
    Without tiers and modalities: ``total = base + prefill + α·cached_factor·cached + decode``.
    """

    total: float
    prefill: float
    decode: float


def token_costs(
    profile: CostProfile, *, input_tokens: int, cached_tokens: int = 0, output_tokens: int = 0
) -> TokenCosts:
    """Return what a request without modalities costs and the work it makes, in one go. Raises ValueError for a
    negative count; more cached than input tokens count as all cached: engines round hits up to blocks."""
    cached = _checked_cached(input_tokens, cached_tokens, output_tokens)
    fresh = input_tokens - cached
    prefill = profile.alpha * fresh + profile.epsilon * fresh * (input_tokens + cached)
    decode = profile.beta * output_tokens + profile.gamma * output_tokens * (input_tokens + output_tokens / 2)
    tokens = prefill + decode + profile.alpha * profile.cached_factor * cached
    factor = tier_factor(profile, input_tokens) if profile.long_input_tiers else 1.0
    return TokenCosts(profile.base + factor * tokens, prefill, decode)


def request_cost(
    profile: CostProfile,
    *,
    input_tokens: int,
    cached_tokens: int = 0,
    output_tokens: int = 0,
    units: Mapping[str, float] | None = None,
) -> float:
    """Return what a request costs, in MU. ``units`` counts modality units (image tokens, rows, KiB).

    A modality without a price costs nothing (see ``unpriced``). Counts and errors as in ``token_costs``.
    """
    cost = token_costs(
        profile, input_tokens=input_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens
    ).total
    return cost + units_cost(profile, units) if units else cost


def units_cost(profile: CostProfile, units: Mapping[str, float]) -> float:
    """Return what modality units cost, in MU. Raises ValueError for a negative count."""
    return sum(_modality_costs(profile, units).values())


def request_breakdown(
    profile: CostProfile,
    *,
    input_tokens: int,
    cached_tokens: int = 0,
    output_tokens: int = 0,
    units: Mapping[str, float] | None = None,
) -> CostBreakdown:
    """Return ``request_cost`` term by term, so that a receipt can explain itself. Same arguments, same errors."""
    cached = _checked_cached(input_tokens, cached_tokens, output_tokens)
    factor = tier_factor(profile, input_tokens)
    return CostBreakdown(
        base=profile.base,
        prefill=factor * profile.alpha * (input_tokens - cached),
        prefill_attention=factor * profile.epsilon * (input_tokens * input_tokens - cached * cached),
        cached=factor * profile.alpha * profile.cached_factor * cached,
        decode=factor * profile.beta * output_tokens,
        decode_attention=factor * profile.gamma * output_tokens * (input_tokens + output_tokens / 2),
        modalities=_modality_costs(profile, units or {}),
        factor=factor,
        unpriced=unpriced(profile, units or {}),
    )


def tier_factor(profile: CostProfile, input_tokens: int) -> float:
    """Return the factor of the highest long-input tier that ``input_tokens`` has reached, 1 below the first."""
    factor = 1.0
    for start, tier in profile.long_input_tiers:
        if input_tokens < start:
            break
        factor = tier
    return factor


def unpriced(profile: CostProfile, units: Mapping[str, float]) -> tuple[str, ...]:
    """Return the modalities of ``units`` that the profile has no price for, sorted."""
    return tuple(sorted(name for name, count in units.items() if count and name not in profile.modalities))


def _modality_costs(profile: CostProfile, units: Mapping[str, float]) -> dict[str, float]:
    negative = [name for name, count in units.items() if count < 0]
    if negative:
        raise ValueError(f"modality units cannot be negative: {', '.join(sorted(negative))}")
    return {name: profile.modalities[name] * count for name, count in units.items() if name in profile.modalities}


def _checked_cached(input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
    if input_tokens < 0 or cached_tokens < 0 or output_tokens < 0:
        raise ValueError(
            f"token counts cannot be negative: input {input_tokens}, cached {cached_tokens}, output {output_tokens}"
        )
    return min(cached_tokens, input_tokens)


def _require_price(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite price that is not negative, got {value}")
