"""Whether a measurement may become a price without a person looking at it: by its own evidence, and by what was before.

A first measurement has nothing before it to be compared with. What guards it is that it was taken twice, by two means
that share nothing: the fit knows single shapes alone, and what the replica completes of a mix was counted under load.
Both tell how much engine time passes in a second, and no engine has more of it than there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_R2 = 0.9
"""Of the times: input and output tokens alone explain so much on real engines, all terms more than 0.97."""
MOST_ERROR = 0.5
"""Largest relative error of a single shape."""
MOST_APART = 1.5
"""The engine time that a second holds, by the fit and by what was completed, differs from what there is by no larger
factor; on an H100 it is 1.00."""
LEAST_BUSY_CORES = 0.25
"""Cores that a saturated engine uses at least where it computes on the CPU."""
LEAST_KNEE = 0.1
"""Of saturation: objectives that break below this were broken by something else, or are too tight to sell."""
MOST_KNEE = 1.15
"""Of saturation: levels are open loop and luck plays in; beyond this one of the two was measured wrongly."""
MOST_CHANGE = 2.0
"""Who makes an engine more than twice as fast or slow knows of it; a measurement that tells so is more often wrong."""
BLOCKING = frozenset({"few_points", "lost_points", "collinear", "noise"})
"""Codes of a fit's warnings (``capacity.policy.fit``) that tell of evidence that is missing or was disturbed."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a fitted calibration has to show.

    Errors are shares; ``warnings``: (code, text) of the fit; ``notes``: what the knee has to say. ``mix_ms``: engine
    milliseconds of a request of the mix by the fit, ``knee_per_s`` and ``saturation_per_s`` requests of it per second
    as completed under load (None: not known). ``cores``: of the host, where engine time is CPU time of its processes;
    None where it is the time of a saturated engine, of which a second has one. ``change``: what requests would cost, or
    the replica supply, as a multiple of what was *measured* before; None where nothing was.
    """

    mean_error: float
    max_error: float
    r2: float
    warnings: Sequence[tuple[str, str]]
    notes: Sequence[str]
    is_lower_bound: bool
    mix_ms: float
    knee_per_s: float
    saturation_per_s: float | None
    cores: int | None = None
    change: float | None = None
    changes: str = ""
    """What ``change`` is of, in words."""


def doubts(evidence: Evidence, *, error_limit: float) -> tuple[str, ...]:
    """Return all reasons why a person must look first, in words; none: it may be adopted by itself.

    ``error_limit``: the pool's, a share.
    """
    found = []
    if evidence.is_lower_bound:
        found.append("no load broke the objectives, so the knee is only a lower bound")
    if not evidence.mean_error <= error_limit:
        missed = f"{evidence.mean_error:.1%} on average"
        found.append(f"the fit misses by {missed}, more than the {error_limit:.1%} that the pool allows")
    if not evidence.max_error <= MOST_ERROR:
        found.append(f"the fit misses a shape by {evidence.max_error:.0%}")
    if not evidence.r2 >= LEAST_R2:
        found.append(f"the fit explains too little of the times (R² {evidence.r2:.2f}, below {LEAST_R2:g})")
    found += [_inner(text) for code, text in evidence.warnings if code in BLOCKING]
    found += [_inner(text) for text in evidence.notes]
    if doubt := _implausible(evidence):
        found.append(doubt)
    if evidence.change is not None and not 1.0 / MOST_CHANGE <= evidence.change <= MOST_CHANGE:
        found.append(f"{evidence.changes} {evidence.change:.2g} times as many MU as was measured before")
    return tuple(found)


def _implausible(evidence: Evidence) -> str:
    """Why fit and load contradict each other; empty where they agree, or nothing is known of saturation."""
    saturation = evidence.saturation_per_s
    if not saturation:
        return ""
    busy, share = saturation * evidence.mix_ms / 1000.0, evidence.knee_per_s / saturation
    if evidence.cores is None:
        if not 1.0 / MOST_APART <= busy <= MOST_APART:
            most = 1000.0 / evidence.mix_ms if evidence.mix_ms > 0 else float("inf")
            return (
                f"the fit foretells {most:.3g} requests/s at most, and the replica completes {saturation:.3g}: one of "
                "them was disturbed"
            )
    elif not LEAST_BUSY_CORES <= busy <= evidence.cores * MOST_APART:
        return (
            f"by the fit a saturated engine keeps {busy:.2g} cores busy, and the host has {evidence.cores}: fit or "
            "load was disturbed"
        )
    if not LEAST_KNEE <= share <= MOST_KNEE:
        return f"the knee is at {share:.0%} of saturation: something else was at work, or the objectives do not fit"
    return ""


def _inner(text: str) -> str:
    """A sentence as a part of another."""
    return text[:1].lower() + text[1:].rstrip(".")
