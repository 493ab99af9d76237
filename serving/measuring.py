"""From a deployment to the order of its measurement, and from what was measured to a price: the glue of calibration.

The decisions are ``capacity.policy``'s: which shapes (``grid``), what they cost (``fit``), where the knee is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import msgspec

from capacity.models import CostProfile, Pool, ReplicaSupply
from capacity.policy import cost
from capacity.policy.concurrency import SupplyLimit, supply_limit
from capacity.policy.drift import Curve, Level, mean_of, request_ms
from capacity.policy.fit import Fit, FitError, fit_costs
from capacity.policy.grid import GridSize, cost_grid, default_repeats, request_mix
from capacity.policy.knee import Knee, KneeError, find_knee, mix_cost, reference_profile, supply_mu_per_min
from capacity.policy.profiles import DEFAULT_CONTEXT_TOKENS
from capacity.usage.reads import terms_of
from serving.models import Calibration, Replica, Revision
from serving.options import engine_options
from worker.spec import CalibrationOrder, CostPoint, LevelPoint, Shape

_SECONDS: dict[GridSize, tuple[float, float]] = {"small": (1.0, 12.0), "medium": (2.0, 20.0), "thorough": (2.0, 30.0)}
"""Of a measured batch, and of the window of a level: a small grid is a quick look, a thorough one waits for more."""
TERMS = ("base", "alpha", "beta", "gamma", "epsilon", "cached_factor")


class Unmeasured(Exception):
    """The measurement gives no price; the message says why, and what a person can do.

    ``fit`` is what was fitted all the same, if anything.
    """

    def __init__(self, reason: str, fit: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.fit = fit or {}


@dataclass(frozen=True, slots=True)
class Measured:
    """Results as they are stored: both plain JSON."""

    fit: dict[str, Any]
    knee: dict[str, Any]


def context_tokens(revision: Revision) -> int:
    """The context that the replicas of a revision have, in tokens: the least that a ready one tells, or the model's."""
    told = Replica.objects.filter(revision=revision, state=Replica.State.READY, max_model_len__isnull=False)
    lengths = list(told.values_list("max_model_len", flat=True))
    known = revision.deployment.pool.model.context_tokens
    return min((length for length in lengths if length), default=known or DEFAULT_CONTEXT_TOKENS)


def order_of(*, calibration_id: str, pool: Pool, revision: Revision, grid: str) -> CalibrationOrder:
    """What is measured on a replica of ``revision``. Raises ValueError for a context that is too short to measure."""
    context = context_tokens(revision)
    has_cache = bool(engine_options(revision.options).get("prefix_caching", True))
    size = cast(GridSize, grid)
    return CalibrationOrder(
        calibration_id=calibration_id,
        shapes=cost_grid(context, size=size, prefix_caching=has_cache),
        repeats=default_repeats(size),
        mix=request_mix(context, prefix_caching=has_cache),
        ttft_objective_ms=float(pool.ttft_objective_ms),
        tpot_objective_ms=float(pool.tpot_objective_ms),
        window_s=_SECONDS[size][1],
        max_concurrency=revision.target_concurrency,
        batch_s=_SECONDS[size][0],
    )


def stored_order(row: Calibration) -> CalibrationOrder:
    """The order of a calibration. Raises msgspec.ValidationError for one that cannot be read."""
    return msgspec.convert(row.order, CalibrationOrder)


def levels_of(row: Calibration) -> list[LevelPoint]:
    """The levels of load that were measured, by their rate."""
    return sorted(msgspec.convert(row.levels, list[LevelPoint]), key=lambda level: level.rate_per_s)


def measured(row: Calibration) -> Measured:
    """Fit what the agent has told. Raises Unmeasured."""
    order = stored_order(row)
    try:
        fit = fit_costs(msgspec.convert(row.points, list[CostPoint]))
    except FitError as error:
        raise Unmeasured(str(error)) from error
    told = fit_json(fit)
    try:
        knee = find_knee(
            levels_of(row),
            mix=order.mix,
            times=fit.times,
            attained_share=order.attained_share,
            max_concurrency=order.max_concurrency,
            saturation_per_s=float(row.progress.get("saturation_per_s") or 0.0),
        )
        reference_profile(fit.times, knee, version=1)
    except KneeError as error:
        raise Unmeasured(str(error), told) from error
    limit = supply_limit(
        levels_of(row),
        mix=order.mix,
        times=fit.times,
        attained_share=order.attained_share,
        max_concurrency=order.max_concurrency,
        tpot_objective_ms=order.tpot_objective_ms,
        kv_tokens=row.progress.get("kv_tokens"),
    )
    return Measured(told, knee_json(knee, limit))


def fit_json(fit: Fit) -> dict[str, Any]:
    """A fit as it is stored: ``terms`` in engine ms, and how well they hold."""
    return {
        "terms": {name: getattr(fit.times, name) for name in TERMS},
        "points": [
            {
                "input_tokens": point.input_tokens,
                "cached_tokens": point.cached_tokens,
                "output_tokens": point.output_tokens,
                "measured_ms": point.measured_ms,
                "fitted_ms": point.fitted_ms,
                "error": point.error,
                "spread": point.spread,
                "rejected": len(point.rejected),
            }
            for point in fit.points
        ],
        "r2": fit.r2,
        "mean_error": fit.mean_error,
        "max_error": fit.max_error,
        "uncertainty": dict(fit.uncertainty),
        "dropped": [asdict(term) for term in fit.dropped],
        "warnings": [asdict(warning) for warning in fit.warnings],
    }


def knee_json(knee: Knee, limit: SupplyLimit | None) -> dict[str, Any]:
    """A knee as it is stored: requests/s of the mix, their part of saturation, and what limits the supply other than
    the hardware's speed (``supply_limit``; null: nothing that the levels tell)."""
    found = {**asdict(knee), "warnings": list(knee.warnings), "share": knee.share, "supply_limit": None}
    if limit is not None:
        found["supply_limit"] = {**asdict(limit), "estimate": [list(pair) for pair in limit.estimate]}
    return found


def times_of(row: Calibration) -> cost.CostProfile:
    """The fitted terms in engine milliseconds instead of MU. Raises Unmeasured where there are none."""
    terms = row.fit.get("terms")
    if not isinstance(terms, Mapping):
        raise Unmeasured("Nothing was fitted.")
    return cost.CostProfile(
        version=0,
        base=float(terms["base"]),
        alpha=float(terms["alpha"]),
        beta=float(terms["beta"]),
        gamma=float(terms["gamma"]),
        epsilon=float(terms["epsilon"]),
        cached_factor=float(terms["cached_factor"]),
        calibrated=True,
    )


def knee_of(row: Calibration) -> Knee:
    """The knee that was found. Raises Unmeasured where there is none."""
    if not row.knee:
        raise Unmeasured("No knee was found.")
    own = {name: row.knee[name] for name in Knee.__slots__ if name in row.knee}
    return Knee(**{**own, "warnings": tuple(own.get("warnings", ()))})


def price_of(row: Calibration, *, version: int, previous: CostProfile | None) -> cost.CostProfile:
    """The price in MU that the calibration would be: 100 MU/min of one replica at its knee.

    What it did not measure (modalities, tiers) comes from ``previous``. Raises Unmeasured.
    """
    try:
        before = terms_of(previous) if previous else None
        return reference_profile(times_of(row), knee_of(row), version=version, previous=before)
    except KneeError as error:
        raise Unmeasured(str(error)) from error


def curve_of(row: Calibration) -> Curve:
    """What the calibration predicts of live times. Raises Unmeasured, or msgspec.ValidationError."""
    times, knee, mix = times_of(row), knee_of(row), stored_order(row).mix
    levels = [level for level in levels_of(row) if level.completed and level.seconds > 0]
    parts = [request_ms(times, one.input_tokens, one.cached_tokens, one.output_tokens) for one in mix]
    outputs = sum(one.output_tokens for one in mix)
    return Curve(
        times=times,
        levels=tuple(
            Level(
                work_ms_per_min=60.0 * level.completed / level.seconds * knee.mix_ms,
                ttft_ms=mean_of(level.ttft_ms),
                tpot_ms=mean_of(level.tpot_ms),
            )
            for level in levels
        ),
        prefill_ms=sum(prefill for prefill, _ in parts) / len(parts),
        # By token, as engines count them: long answers weigh more.
        decode_ms=sum(part[1] * one.output_tokens for part, one in zip(parts, mix, strict=True)) / outputs,
        knee_ms_per_min=knee.engine_ms_per_min,
    )


def supply_of(row: Calibration, reference: CostProfile) -> float:
    """MU/min of the pool's ``reference`` price that a replica on this hardware supplies. Raises Unmeasured."""
    return supply_mu_per_min(knee_of(row), terms_of(reference), mix=stored_order(row).mix)


def supply_in_force(profile: CostProfile, supply: ReplicaSupply | None) -> float:
    """MU/min of a replica: its hardware's own measured knee in the price in force, or what the reference supplies."""
    if supply is None:
        return profile.replica_mu_per_min
    mean = mix_cost(terms_of(profile), msgspec.convert(supply.mix, list[Shape]))
    return supply.requests_per_min * mean if mean > 0 else profile.replica_mu_per_min
