"""Can we sell this? What a pool can have at every moment of a term, against what is promised in it.

Rules of the pool: *sellable = oversell factor × (what its replicas supply − the largest of them where N−1 holds)*; how
many replicas it can have at a moment is ``capacity.policy.stock``'s to say. MU/min of the pool's price in force, times
in UNIX seconds; a term without an end has None.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from capacity.policy.stock import SLACK, Filled, PoolStock, Stock, Term, Wanted, fill, many, still_wanted

Verdict = Literal["fits", "without_spare", "short"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A time in which nothing changes; ``ends_at`` None: from then on. MU/min, and ``replicas`` that can run.

    ``could_have`` is what these supply together, ``sellable`` what the pool's rules let be sold of it, and
    ``sellable_without_spare`` the same without N−1.
    """

    starts_at: float
    ends_at: float | None
    sold: float
    could_have: float
    sellable: float
    sellable_without_spare: float
    replicas: int
    accelerators: int
    limits: tuple[str, ...]
    """Why it is not more, in words."""

    @property
    def headroom(self) -> float:
        """MU/min that can still be sold; negative where more is promised than the rules allow."""
        return self.sellable - self.sold


@dataclass(frozen=True, slots=True)
class Shortage:
    """``mu_per_min`` too little, at most, from ``starts_at`` to ``ends_at`` (None: from then on)."""

    starts_at: float
    ends_at: float | None
    mu_per_min: float


@dataclass(frozen=True, slots=True)
class Answer:
    """``headroom``: MU/min that could be sold over the whole term; never negative. ``inputs`` can be kept as JSON."""

    verdict: Verdict
    reason: str
    headroom: float
    shortages: tuple[Shortage, ...]
    pieces: tuple[Piece, ...]
    inputs: Mapping[str, Any] = field(default_factory=dict, hash=False)


def can_sell(stock: Stock, ask: Term, *, instead_of: Term | None = None) -> Answer:
    """Whether ``ask`` can be promised beside all that is sold, at every moment of it.

    ``instead_of`` is a promise that ``ask`` would replace: where that promised as much or more, nothing is asked.
    """
    others = tuple(term for term in stock.pool.sold if instead_of is None or term.id != instead_of.id)
    pieces = outlook(stock, since=ask.starts_at, until=ask.ends_at, sold=others, also=instead_of)
    asked = [piece for piece in pieces if instead_of is None or instead_of.at(piece.starts_at) < ask.mu_per_min]
    short = [(piece, piece.sold + ask.mu_per_min - piece.sellable) for piece in asked]
    missing = [(piece, mu) for piece, mu in short if mu > _slack(piece)]
    without = [p for p, _ in missing if p.sold + ask.mu_per_min - p.sellable_without_spare > _slack(p)]
    shortages = _joined(missing)
    verdict: Verdict = "short" if without else "without_spare" if missing else "fits"
    headroom = max(0.0, min((piece.headroom for piece in asked), default=math.inf))
    return Answer(
        verdict=verdict,
        reason=_with_notes(_explain(verdict, stock.pool, ask, asked, shortages), stock.notes),
        headroom=headroom if asked else ask.mu_per_min,
        shortages=shortages,
        pieces=pieces,
        inputs=_inputs(stock, ask, instead_of),
    )


def outlook(
    stock: Stock,
    *,
    since: float,
    until: float | None,
    sold: Sequence[Term] | None = None,
    also: Term | None = None,
) -> tuple[Piece, ...]:
    """What is sold of the pool and what can be, piece by piece from ``since`` to ``until`` (None: for ever).

    ``sold``: other promises than the pool's own; ``also``: a term whose start and end divide pieces, too.
    """
    terms = stock.pool.sold if sold is None else tuple(sold)
    moments = {since}
    for term in (*terms, *(t for other in stock.others for t in other.sold), *((also,) if also else ())):
        for moment in (term.starts_at, term.ends_at):
            if moment is not None and since < moment and (until is None or moment < until):
                moments.add(moment)
    starts = sorted(moments)
    rooms: dict[tuple[tuple[Wanted, ...], ...], Filled] = {}
    pieces = []
    for start, end in zip(starts, [*starts[1:], until], strict=True):
        # What others must have is all of their promises that matters here; it seldom changes between two pieces.
        wanted = tuple(still_wanted(other, start) for other in stock.others)
        if wanted not in rooms:
            rooms[wanted] = fill(stock, wanted)
        pieces.append(_piece(stock.pool, rooms[wanted], start, end, sum(term.at(start) for term in terms)))
    return tuple(pieces)


def sold_peak(terms: Iterable[Term], *, since: float, until: float) -> float:
    """The most MU/min that ``terms`` promise together at a moment of ``[since, until]``."""
    known = list(terms)
    moments = [since, *(term.starts_at for term in known if since < term.starts_at <= until)]
    return max(sum(term.at(moment) for term in known) for moment in moments)


def _piece(pool: PoolStock, filled: Filled, start: float, end: float | None, sold: float) -> Piece:
    could_have = sum(mu * count for mu, count in filled.groups)
    largest = max((mu for mu, count in filled.groups if count), default=0.0)
    kept = could_have - largest if pool.keep_spare else could_have
    return Piece(
        starts_at=start,
        ends_at=end,
        sold=sold,
        could_have=could_have,
        sellable=pool.oversell_factor * kept,
        sellable_without_spare=pool.oversell_factor * could_have,
        replicas=sum(count for _, count in filled.groups),
        accelerators=filled.accelerators,
        limits=filled.limits,
    )


def _slack(piece: Piece) -> float:
    return SLACK * max(1.0, piece.sellable_without_spare, piece.sold)


def _joined(missing: Sequence[tuple[Piece, float]]) -> tuple[Shortage, ...]:
    """One shortage for pieces that follow each other."""
    found: list[Shortage] = []
    for piece, mu in missing:
        if found and found[-1].ends_at == piece.starts_at:
            before = found.pop()
            found.append(Shortage(before.starts_at, piece.ends_at, max(before.mu_per_min, mu)))
        else:
            found.append(Shortage(piece.starts_at, piece.ends_at, mu))
    return tuple(found)


def _explain(
    verdict: Verdict, pool: PoolStock, ask: Term, asked: Sequence[Piece], shortages: Sequence[Shortage]
) -> str:
    if not asked:
        return f"{_mu(ask.mu_per_min)} MU/min are no more than what is promised already."
    tight = min(asked, key=lambda piece: piece.headroom)
    rules = [f"one of {many(tight.replicas, 'replica')} is kept spare"] if pool.keep_spare and tight.replicas else []
    if pool.oversell_factor > 1.0:
        rules.append(f"oversold by {pool.oversell_factor:g}")
    have = f"{_mu(tight.could_have)} MU/min can be had" + (f" ({', '.join(rules)})" if rules else "")
    why = "; ".join(tight.limits)
    sold = f"{_mu(tight.sold)} of {_mu(tight.sellable)} MU/min are sold"
    if verdict == "fits":
        return f"{_mu(ask.mu_per_min)} MU/min fit: at the tightest {sold}. {have}: {why}."
    worst = max(shortages, key=lambda shortage: shortage.mu_per_min)
    span = f"from {_when(worst.starts_at)} {'on' if worst.ends_at is None else f'to {_when(worst.ends_at)}'}"
    if verdict == "without_spare":
        return (
            f"{_mu(ask.mu_per_min)} MU/min fit only without N−1, {span}: with one replica lost, "
            f"{_mu(worst.mu_per_min)} MU/min would be missing. {sold}. {have}: {why}."
        )
    more = f", and in {many(len(shortages) - 1, 'other time')}" if len(shortages) > 1 else ""
    return f"Short by {_mu(worst.mu_per_min)} MU/min {span}{more}: {sold}. {have}: {why}."


def _with_notes(reason: str, notes: Sequence[str]) -> str:
    return f"{reason} Not measured: {'; '.join(notes)}." if notes else reason


def _inputs(stock: Stock, ask: Term, instead_of: Term | None) -> dict[str, Any]:
    """Every number that the answer was made of, as plain values."""
    return {
        "ask": _plain_term(ask),
        "instead_of": _plain_term(instead_of) if instead_of else None,
        "notes": list(stock.notes),
        "pool": _plain_pool(stock.pool),
        "others": [_plain_pool(other) for other in stock.others],
        "hosts": [
            {
                "name": host.name,
                "hardware": host.hardware,
                "why_not": host.why_not,
                "free_accelerators": len(host.free),
                "held_accelerators": dict(host.held),
                "free_memory_bytes": host.memory_bytes,
            }
            for host in stock.hosts
        ],
    }


def _plain_pool(pool: PoolStock) -> dict[str, Any]:
    return {
        "name": pool.name,
        "oversell_factor": pool.oversell_factor,
        "keep_spare": pool.keep_spare,
        "sold": [_plain_term(term) for term in pool.sold],
        "deployments": [
            {
                "name": one.name,
                "replicas": len(one.on),
                "min_replicas": one.min_replicas,
                "max_replicas": one.max_replicas,
                "accelerators_each": one.need.accelerators,
                "memory_bytes_each": one.need.memory_bytes,
                "supply_mu_per_min": dict(one.supply),
            }
            for one in pool.deployments
        ],
    }


def _plain_term(term: Term) -> dict[str, Any]:
    return {
        "id": term.id,
        "mu_per_min": term.mu_per_min,
        "starts_at": term.starts_at,
        "ends_at": term.ends_at,
    }


def _when(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _mu(value: float) -> str:
    return f"{round(value, 2):,g}" if abs(value) < 1e6 else f"{value:,.0f}"
