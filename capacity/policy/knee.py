"""The knee: the highest load at which a replica keeps its objectives, and what it makes of the unit.

A curve of levels is judged here; which level is tried next is the agent's (``worker.calibration.search``). Both go by
``worker.spec.knee_bracket``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from capacity.policy.concurrency import residence_s, with_peaks
from capacity.policy.cost import CostProfile, request_cost
from capacity.policy.profiles import REFERENCE_MU_PER_MIN
from worker.spec import LevelPoint, Shape, knee_bracket

LEAST_REQUESTS = 50
"""Fewer requests at a level that decides make its share a matter of luck."""
WIDEST_BRACKET = 0.15
"""Rates of the deciding levels that lie further apart (as a share of the knee) leave the knee vague."""


class KneeError(ValueError):
    """The curve shows no knee; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Knee:
    """``rate_per_s`` requests of the mix per second at the knee, ``mix_ms`` mean engine milliseconds of one.

    ``saturation_per_s``: what the replica completes when it never runs out of requests, None where unknown; ``share``
    is the knee's part of it. ``target_concurrency`` is in requests. ``is_lower_bound``: no level broke the objectives,
    so the true knee lies higher. ``warnings`` are for a person to read before adopting.
    """

    rate_per_s: float
    mix_ms: float
    saturation_per_s: float | None
    target_concurrency: int
    is_lower_bound: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """The knee as a share of saturation."""
        return self.rate_per_s / self.saturation_per_s if self.saturation_per_s else None

    @property
    def engine_ms_per_min(self) -> float:
        """Engine milliseconds that a minute at the knee holds."""
        return 60.0 * self.rate_per_s * self.mix_ms


def mix_cost(profile: CostProfile, mix: Sequence[Shape]) -> float:
    """Return the mean cost of a request of the mix, in the unit of ``profile``. Raises ValueError for no mix."""
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


def find_knee(
    levels: Sequence[LevelPoint],
    *,
    mix: Sequence[Shape],
    times: CostProfile,
    attained_share: float,
    max_concurrency: int,
    saturation_per_s: float = 0.0,
) -> Knee:
    """Return the highest load at which ``attained_share`` of the requests keep their objectives.

    Interpolated between the last level that kept them and the first that did not, never beyond either. ``times`` is a
    fit's profile in engine milliseconds. Raises KneeError where no level kept the objectives or none was measured.
    """
    if not levels:
        raise KneeError("No level of load was measured: calibrate again with a mix of requests.")
    kept, broken = knee_bracket(levels, attained_share)
    if kept is None:
        lowest = min(levels, key=lambda each: each.rate_per_s)
        raise KneeError(
            f"Already at {lowest.rate_per_s:.3g} requests/s only {lowest.attained:.0%} keep the objectives: relax the "
            "objectives of the pool, or use faster hardware."
        )
    rate = kept.rate_per_s if broken is None else _crossing(kept, broken, attained_share)
    # A short batch may undersell the engine by a few percent; what it completed it can complete.
    saturation = max(saturation_per_s, _most_completed(levels)) if broken is not None else saturation_per_s
    return Knee(
        rate_per_s=rate,
        mix_ms=mix_cost(times, mix),
        saturation_per_s=saturation or None,
        # Never above what it was measured with: nobody knows how it is beyond.
        target_concurrency=max(1, min(max_concurrency, with_peaks(rate * residence_s(kept)))),
        is_lower_bound=broken is None,
        warnings=_warnings(kept, broken, rate),
    )


def reference_profile(
    times: CostProfile, knee: Knee, *, version: int, previous: CostProfile | None = None
) -> CostProfile:
    """Return the profile in MU under which this replica supplies ``REFERENCE_MU_PER_MIN`` at its knee.

    Modalities and long-input tiers are not measured: they come from ``previous``, modalities at the same price in
    input tokens. Raises KneeError where the knee holds no work.
    """
    if knee.engine_ms_per_min <= 0:
        raise KneeError("The requests of the mix cost nothing by this fit: no unit can be made of them.")
    per_ms = REFERENCE_MU_PER_MIN / knee.engine_ms_per_min
    alpha = times.alpha * per_ms
    modalities: dict[str, float] = {}
    if previous is not None:
        scale = alpha / previous.alpha if previous.alpha > 0 and alpha > 0 else 1.0
        modalities = {name: price * scale for name, price in previous.modalities.items()}
    return replace(
        times,
        version=version,
        base=times.base * per_ms,
        alpha=alpha,
        beta=times.beta * per_ms,
        gamma=times.gamma * per_ms,
        epsilon=times.epsilon * per_ms,
        modalities=modalities,
        long_input_tiers=previous.long_input_tiers if previous is not None else (),
        calibrated=True,
    )


def supply_mu_per_min(knee: Knee, reference: CostProfile, *, mix: Sequence[Shape]) -> float:
    """Return what a replica with this knee supplies, in MU/min of the pool's ``reference`` profile: how many of the
    requests of the mix it keeps up with, priced as the pool prices them."""
    return 60.0 * knee.rate_per_s * mix_cost(reference, mix)


def _crossing(kept: LevelPoint, broken: LevelPoint, attained_share: float) -> float:
    fallen = kept.attained - broken.attained
    part = (kept.attained - attained_share) / fallen if fallen > 0 else 0.0
    return kept.rate_per_s + min(1.0, max(0.0, part)) * (broken.rate_per_s - kept.rate_per_s)


def _most_completed(levels: Sequence[LevelPoint]) -> float:
    return max((each.completed / each.seconds for each in levels if each.seconds > 0), default=0.0)


def _warnings(kept: LevelPoint, broken: LevelPoint | None, rate: float) -> tuple[str, ...]:
    found = []
    deciding = [kept] if broken is None else [kept, broken]
    if broken is None:
        found.append("No load broke the objectives: the knee is at least what is shown. Offer more, or tighten them.")
    elif broken.rate_per_s - kept.rate_per_s > WIDEST_BRACKET * rate:
        found.append(
            f"The knee lies somewhere between {kept.rate_per_s:.3g} and {broken.rate_per_s:.3g} requests/s: allow more "
            "levels."
        )
    if min(each.requests for each in deciding) < LEAST_REQUESTS:
        found.append(f"A deciding level had fewer than {LEAST_REQUESTS} requests: measure for longer.")
    return tuple(found)
