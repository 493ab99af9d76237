"""The conservation of tokens: what engines counted on one side, usage records on the other, and why they differ."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple


class Tokens(NamedTuple):
    """``cached`` are a part of ``input``."""

    input: int = 0
    cached: int = 0
    output: int = 0


class Account:
    """Σ engines = Σ records + unbilled attempts + what no gateway could see, by the outcome of the record.

    Both sides are added up apart: ``engines`` from all that the engines noted, ``booked`` from all records there are.
    """

    def __init__(self) -> None:
        self.engines: Counter[str] = Counter()
        self.booked: Counter[str] = Counter()
        self.unbilled: Counter[str] = Counter()
        self.unseen: dict[str, Counter[str]] = defaultdict(Counter)
        self.records: Counter[str] = Counter()

    def counted(self, tokens: Tokens) -> None:
        """An engine has read and made these for one attempt."""
        self.engines.update(tokens._asdict())

    def record(self, outcome: str, booked: Tokens, attempts: Sequence[Tokens], *, has_made_way: bool = False) -> None:
        """A usage record, and what the engines counted of each of its attempts: all but the last are unbilled.

        So is the last one of a request that failed before its client had anything of it, or that ended after it had
        made way for an owner, while it waited for another one.
        """
        self.records[outcome] += 1
        self.booked.update(booked._asdict())
        has_failed = outcome in ("engine_error", "engine_lost") and not any(booked)
        *wasted, last = (*attempts, Tokens()) if has_failed or has_made_way or not attempts else attempts
        for tokens in wasted:
            self.unbilled.update(tokens._asdict())
        missing = {name: getattr(last, name) - getattr(booked, name) for name in Tokens._fields}
        self.unseen[outcome].update(missing)

    def check(self) -> None:
        """Raises AssertionError unless the two sides are equal, and each difference is one that may be."""
        for name in Tokens._fields:
            between = self.unbilled[name] + sum(part[name] for part in self.unseen.values())
            assert self.engines[name] == self.booked[name] + between, f"{name}: {self}"
        assert not any(self.unseen["completed"].values()), f"completed requests are exact: {self}"
        # A stream that was cut has told everything but how much of its input was cached: that comes at the end.
        for outcome in ("engine_error", "refused"):
            assert not self.unseen[outcome]["input"], f"{outcome}: {self}"
            assert not self.unseen[outcome]["output"], f"{outcome}: {self}"

    def __str__(self) -> str:
        unseen = {outcome: dict(part) for outcome, part in self.unseen.items() if any(part.values())}
        return (
            f"records {dict(self.records)}; tokens at the engines {dict(self.engines)} = in records "
            f"{dict(self.booked)} + unbilled attempts {dict(self.unbilled)} + not seen {unseen}"
        )
