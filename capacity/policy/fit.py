"""From measured engine times to the coefficients of a cost profile.

Non-negative least squares on *relative* error: small requests matter for admission as much as large ones. What the
terms are is decided by ``capacity.policy.cost`` alone; here they are engine milliseconds instead of model units.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capacity.policy.cost import CostProfile, request_breakdown, request_cost
from capacity.policy.profiles import CACHED_FACTOR
from worker.spec import CostPoint, Shape

if TYPE_CHECKING:
    # SciPy is imported where a fit is made: gateway and command line do not wait for it.
    import numpy as np
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float64]

TERMS = ("base", "alpha", "beta", "gamma", "epsilon", "cached")
"""In the order in which terms that a grid cannot tell apart are kept: the later one is dropped."""
_STANDS_ON = {"epsilon": ("alpha", "alpha+cached"), "gamma": ("beta",)}
"""A term that grows with a product of lengths, and the term of the length itself. In a few noisy points either explains
most of what the other does; then the simple one is the better guess between and beyond the measured lengths (the
marginality principle: J. A. Nelder, A Reformulation of Linear Models, 1977)."""

LEAST_F = 4.0
"""A term stays if the squared relative error grows by more than so many times its own mean per degree of freedom
without it: about the 95 % point of the F distribution with one degree of freedom."""
RESOLUTION = 0.002
"""Relative error below which a measurement means nothing: terms that explain less than this explain nothing."""
SAME_DIRECTION = 1e-4
"""What is left of a term's (unit) column beside the others, at most, for the grid not to tell it apart."""
LEAST_POINTS_PER_TERM = 1.5
MEAN_ERROR_LIMIT = 0.15
MAX_ERROR_LIMIT = 0.5
UNCERTAINTY_LIMIT = 0.25
SPREAD_LIMIT = 0.1
OUTLIER_MADS = 3.5
OUTLIER_FLOOR = 0.05
"""Repeats closer than this to their median are never outliers: three of them may agree by chance."""
_MAD_TO_SIGMA = 1.4826


class FitError(ValueError):
    """Nothing can be fitted to these points; the message says what to measure."""


@dataclass(frozen=True, slots=True)
class Combined:
    """Repeats of one measurement as one value, in the unit of the repeats. ``spread``: the largest deviation of a kept
    repeat from the value, as a share of it. ``rejected``: the repeats taken for disturbed."""

    value: float
    spread: float
    rejected: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class FittedPoint:
    """A measured shape against the fit. Tokens are means per request as the engine counted them; times are engine
    milliseconds per request; ``error`` is (fitted − measured) / measured."""

    shape: Shape
    input_tokens: float
    cached_tokens: float
    output_tokens: float
    measured_ms: float
    fitted_ms: float
    error: float
    spread: float
    rejected: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DroppedTerm:
    """A term (of ``TERMS``) that the fit does without, and why."""

    term: str
    reason: str


@dataclass(frozen=True, slots=True)
class FitWarning:
    """What a person should know before adopting. Codes: ``few_points``, ``lost_points``, ``collinear``, ``error``,
    ``noise``, ``uncertain``, ``cached_unknown``."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients and how well they hold.

    ``times`` is a profile in engine milliseconds instead of MU. ``r2`` is of the times themselves, ``mean_error`` and
    ``max_error`` are of the absolute relative errors (0.1: 10 %). ``uncertainty``: standard error of each kept term's
    coefficient as a share of it, where the points suffice to tell.
    """

    times: CostProfile
    points: tuple[FittedPoint, ...]
    r2: float
    mean_error: float
    max_error: float
    uncertainty: Mapping[str, float]
    dropped: tuple[DroppedTerm, ...] = ()
    warnings: tuple[FitWarning, ...] = ()


def combine_repeats(repeats: Sequence[float]) -> Combined | None:
    """Return the mean of the repeats that agree with their median; None when none is a time at all.

    A repeat that lies more than ``OUTLIER_MADS`` scaled median absolute deviations, and more than ``OUTLIER_FLOOR``,
    from the median was disturbed by something else on the host.
    """
    times = [each for each in repeats if 0.0 < each < float("inf")]
    if not times:
        return None
    median = statistics.median(times)
    deviation = _MAD_TO_SIGMA * statistics.median(abs(each - median) for each in times)
    limit = max(OUTLIER_MADS * deviation, OUTLIER_FLOOR * median)
    kept = [each for each in times if abs(each - median) <= limit]
    value = statistics.fmean(kept)
    rejected = tuple(each for each in repeats if each not in kept)
    return Combined(value, max(abs(each - value) for each in kept) / value, rejected)


def fit_costs(points: Sequence[CostPoint], *, default_cached_factor: float = CACHED_FACTOR) -> Fit:
    """Fit base, α, cached factor, β, γ and ε to measured points. Raises FitError for fewer than three usable ones.

    ``default_cached_factor`` stands where no point had cached tokens. Terms that explain nothing are dropped, each with
    its reason: their coefficient is 0.
    """
    rows = [(point, combined) for point in points if (combined := combine_repeats(point.engine_ms)) is not None]
    if len(rows) < 3:
        raise FitError(f"Only {len(rows)} shapes were measured: at least 3 are needed, 12 or more are good.")
    seen = [_tokens(point) for point, _ in rows]
    system = _System(seen, [combined.value for _, combined in rows])
    chosen = _choose_terms(system)
    values = dict.fromkeys(TERMS, 0.0) | chosen.values
    has_cached = any(cached > 0 for _, cached, _ in seen)
    factor = default_cached_factor
    if has_cached:
        factor = min(1.0, values["cached"] / values["alpha"]) if values["alpha"] > 0 else 1.0
    times = CostProfile(
        version=0,
        base=values["base"],
        alpha=values["alpha"],
        beta=values["beta"],
        gamma=values["gamma"],
        epsilon=values["epsilon"],
        cached_factor=factor,
        calibrated=True,
    )
    fitted = tuple(
        _fitted(point, tokens, combined, times) for (point, combined), tokens in zip(rows, seen, strict=True)
    )
    errors = [abs(each.error) for each in fitted]
    fit = Fit(
        times=times,
        points=fitted,
        r2=_r2(fitted),
        mean_error=statistics.fmean(errors),
        max_error=max(errors),
        uncertainty=chosen.uncertainty,
        dropped=tuple(chosen.dropped),
    )
    warnings = [*_warnings(fit, lost=len(points) - len(rows), has_cached=has_cached), *chosen.warnings]
    return Fit(**{name: getattr(fit, name) for name in Fit.__slots__} | {"warnings": tuple(warnings)})


def _tokens(point: CostPoint) -> tuple[float, float, float]:
    """Input, cached and output tokens per request: as counted, where the engine counted."""
    total = point.input_tokens or float(point.shape.input_tokens)
    return total, min(point.cached_tokens, total), point.output_tokens or float(point.shape.output_tokens)


class _System:
    """The weighted equations: a row per point, a column per term, each row divided by its measured time."""

    def __init__(self, tokens: Sequence[tuple[float, float, float]], measured: Sequence[float]) -> None:
        import numpy as np

        unit = CostProfile(version=0, base=1.0, alpha=1.0, beta=1.0, gamma=1.0, epsilon=1.0, cached_factor=1.0)
        rows = []
        for total, cached, output in tokens:
            # The breakdown of a profile of ones is what each coefficient is multiplied with. Means are no whole counts.
            parts = request_breakdown(unit, input_tokens=total, cached_tokens=cached, output_tokens=output)  # type: ignore[arg-type]
            rows.append(
                (parts.base, parts.prefill, parts.decode, parts.decode_attention, parts.prefill_attention, parts.cached)
            )
        self.count = len(rows)
        self._columns: dict[str, Matrix] = dict(
            zip(TERMS, (np.array(rows, dtype=float) / np.array(measured, dtype=float)[:, None]).T, strict=True)
        )
        self._target = np.ones(self.count)

    def column(self, name: str) -> Matrix:
        """A term's column. ``alpha+cached`` prices cached input tokens as all others."""
        if name == "alpha+cached":
            return self._columns["alpha"] + self._columns["cached"]
        return self._columns[name]

    def beside(self, name: str, others: Sequence[str]) -> float:
        """How much of a term's unit column is left when the others' directions are taken out: 0..1; 0 for no column."""
        import numpy as np

        column = self.column(name)
        size = float(np.linalg.norm(column))
        if size == 0.0:
            return 0.0
        if not others:
            return 1.0
        basis = self._unit(others)
        solved, *_ = np.linalg.lstsq(basis, column / size, rcond=None)
        return float(np.linalg.norm(column / size - basis @ solved))

    def closest(self, name: str, others: Sequence[str]) -> str:
        """The other term that a grid tells apart worst."""
        mine = self._unit([name])[:, 0]
        return max(others, key=lambda each: abs(float(mine @ self._unit([each])[:, 0])))

    def solve(self, names: Sequence[str]) -> tuple[dict[str, float], float]:
        """Return non-negative coefficients and the sum of squared relative errors."""
        import numpy as np
        from scipy.optimize import nnls

        if not names:
            return {}, float(self.count)
        matrix = np.stack([self.column(name) for name in names], axis=1)
        sizes = np.linalg.norm(matrix, axis=0)
        # Terms differ by ten orders of magnitude; unit columns keep the arithmetic sound.
        solved, residual = nnls(matrix / sizes, self._target)
        return dict(zip(names, (solved / sizes).tolist(), strict=True)), float(residual) ** 2

    def uncertainty(self, values: Mapping[str, float], squares: float) -> dict[str, float]:
        """Standard error of each coefficient as a share of it; empty without a spare point."""
        import numpy as np

        spare = self.count - len(values)
        if spare < 1 or not values:
            return {}
        names = list(values)
        matrix = np.stack([self.column(name) * values[name] for name in names], axis=1)
        variances = np.diag(np.linalg.pinv(matrix.T @ matrix)) * squares / spare
        return {name: float(error) for name, error in zip(names, np.sqrt(np.maximum(variances, 0.0)), strict=True)}

    def _unit(self, names: Sequence[str]) -> Matrix:
        import numpy as np

        matrix = np.stack([self.column(name) for name in names], axis=1)
        made: Matrix = matrix / np.linalg.norm(matrix, axis=0)
        return made


class _Choice:
    """The terms that are kept, and what is said of the others."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.uncertainty: dict[str, float] = {}
        self.dropped: list[DroppedTerm] = []
        self.warnings: list[FitWarning] = []


def _choose_terms(system: _System) -> _Choice:
    choice = _Choice()
    names = _distinct(system, choice)
    while names:
        values, squares = system.solve(names)
        if "cached" in names and values["cached"] > values.get("alpha", 0.0):
            # The factor ends at 1: a cached token that looks dearer than a computed one is noise.
            names = ["alpha+cached", *(name for name in names if name not in ("alpha", "cached"))]
            continue
        weakest = _weakest(system, names, squares)
        if weakest is None:
            break
        name, force = weakest
        names = [each for each in names if each != name]
        if values[name] == 0.0:
            reason = "its best coefficient that is not negative is 0"
        else:
            reason = f"without it the error grows too little to tell it from noise (F = {force:.1f}, below {LEAST_F:g})"
        choice.dropped += [DroppedTerm(each, reason) for each in name.split("+")]
    values, squares = system.solve(names)
    uncertainty = system.uncertainty(values, squares)
    for shares, found in ((choice.values, values), (choice.uncertainty, uncertainty)):
        shares.update({part: each for name, each in found.items() for part in name.split("+")})
    for name, share in uncertainty.items():
        if share > UNCERTAINTY_LIMIT and (others := [each for each in names if each != name]):
            choice.warnings.append(_uncertain(system, name, share, others))
    return choice


def _distinct(system: _System, choice: _Choice) -> list[str]:
    """The terms that this grid can tell apart."""
    names: list[str] = []
    for name in TERMS:
        if not system.column(name).any():
            what = "had cached tokens" if name == "cached" else "shows it"
            choice.dropped.append(DroppedTerm(name, f"no shape {what}"))
        elif system.beside(name, names) > SAME_DIRECTION:
            names.append(name)
        else:
            other = system.closest(name, names)
            choice.dropped.append(DroppedTerm(name, f"this grid does not tell it apart from {other}"))
            text = f"The grid does not tell {name} from {other}: measure shapes that differ in more than one length."
            choice.warnings.append(FitWarning("collinear", text))
    return names


def _weakest(system: _System, names: Sequence[str], squares: float) -> tuple[str, float] | None:
    """The next term to drop, with its F statistic; None when all that are left explain something.

    What others stand on goes only when those hold their place, and never under a price for cached tokens, which is a
    share of it.
    """
    beneath = {on for name in names for on in _STANDS_ON.get(name, ())}
    weak = [(name, force) for name in names if (force := _force(system, names, name, squares)) < LEAST_F]
    weak = [each for each in weak if each[0] != "alpha" or "cached" not in names]
    ends = [each for each in weak if each[0] not in beneath]
    return min(ends or weak, key=lambda pair: pair[1], default=None)


def _force(system: _System, names: Sequence[str], name: str, squares: float) -> float:
    """The F statistic of a term: what the error grows by without it, over the error's mean per degree of freedom."""
    _, more = system.solve([each for each in names if each != name])
    spare = max(1, system.count - len(names))
    floor = system.count * RESOLUTION**2
    return (more - squares) / ((squares + floor) / spare)


def _uncertain(system: _System, name: str, share: float, others: Sequence[str]) -> FitWarning:
    other = system.closest(name, others)
    text = f"The coefficient {name} is known to ±{share:.0%} only; shapes that separate it from {other} would help."
    return FitWarning("uncertain", text)


def _fitted(
    point: CostPoint, tokens: tuple[float, float, float], combined: Combined, times: CostProfile
) -> FittedPoint:
    total, cached, output = tokens
    fitted = request_cost(times, input_tokens=total, cached_tokens=cached, output_tokens=output)  # type: ignore[arg-type]
    return FittedPoint(
        shape=point.shape,
        input_tokens=total,
        cached_tokens=cached,
        output_tokens=output,
        measured_ms=combined.value,
        fitted_ms=fitted,
        error=(fitted - combined.value) / combined.value,
        spread=combined.spread,
        rejected=combined.rejected,
    )


def _r2(points: Sequence[FittedPoint]) -> float:
    mean = statistics.fmean(each.measured_ms for each in points)
    total = sum((each.measured_ms - mean) ** 2 for each in points)
    left = sum((each.measured_ms - each.fitted_ms) ** 2 for each in points)
    return 1.0 - left / total if total > 0 else 0.0


def _warnings(fit: Fit, *, lost: int, has_cached: bool) -> list[FitWarning]:
    found = []
    terms = len(fit.uncertainty) or len(TERMS)
    if len(fit.points) < LEAST_POINTS_PER_TERM * terms:
        text = f"{len(fit.points)} shapes for {terms} terms are few: the errors look smaller than they are."
        found.append(FitWarning("few_points", text))
    if lost:
        found.append(FitWarning("lost_points", f"{lost} shapes gave no usable time and are left out."))
    if not has_cached:
        text = "No shape had cached tokens: the cached factor is the default, not measured."
        found.append(FitWarning("cached_unknown", text))
    if fit.mean_error > MEAN_ERROR_LIMIT or fit.max_error > MAX_ERROR_LIMIT:
        worst = max(fit.points, key=lambda each: abs(each.error))
        where = f"{worst.input_tokens:.0f} input, {worst.cached_tokens:.0f} cached, {worst.output_tokens:.0f} output"
        text = f"The fit misses by {fit.mean_error:.0%} on average and {fit.max_error:.0%} at most, at {where} tokens."
        found.append(FitWarning("error", text))
    if statistics.median(each.spread for each in fit.points) > SPREAD_LIMIT:
        text = f"Repeats differ by more than {SPREAD_LIMIT:.0%}: something else was at work on the host."
        found.append(FitWarning("noise", text))
    return found
