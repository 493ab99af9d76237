"""Requests at one replica: what each adds to its load, and takes away when it has left."""

from __future__ import annotations

import time

import msgspec


class ReplicaBeat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One gateway's requests at one replica. ``w``: prefill MU pending; ``d``: decode MU in flight; ``lent_*``: what of
    these is best effort. UNIX seconds."""

    n: int = 0
    w: float = 0.0
    d: float = 0.0
    lent_w: float = 0.0
    lent_d: float = 0.0
    last_token_at: float = 0.0
    last_success_at: float = 0.0
    last_error_at: float = 0.0
    oldest_in_flight_at: float = 0.0
    departed: int = 0
    """Requests that have left the replica since the gateway's start, however they ended."""
    cuts: int = 0
    """How often an owner here has waited in vain for what other gateways have lent at the replica."""
    ways: int = 0
    """How often an owner here was sent beside long prompts that other gateways have placed at the replica."""


class ReplicaLoad:
    """Own live numbers plus the other gateways' newest beats: ``n`` requests, ``w`` and ``d`` in MU, and what of these
    is best effort; ``owed``: what of ``w`` owners have sent through this gateway."""

    __slots__ = (
        "_in_flight",
        "d",
        "lent_d",
        "lent_w",
        "n",
        "others_d",
        "others_lent_d",
        "others_lent_w",
        "others_n",
        "others_w",
        "owed",
        "own",
        "w",
    )

    def __init__(self) -> None:
        self.own = ReplicaBeat()
        self.forget_others()
        self.n = 0
        self.w = self.d = self.lent_w = self.lent_d = self.owed = 0.0
        self._in_flight: dict[Ticket, float] = {}

    def forget_others(self) -> None:
        self.others_n = 0
        self.others_w = self.others_d = self.others_lent_w = self.others_lent_d = 0.0

    def add_other(self, theirs: ReplicaBeat) -> None:
        self.others_n += theirs.n
        self.others_w += theirs.w
        self.others_d += theirs.d
        self.others_lent_w += theirs.lent_w
        self.others_lent_d += theirs.lent_d

    def merge(self) -> None:
        """Own and others' numbers have changed."""
        own = self.own
        self.n = own.n + self.others_n
        self.w = own.w + self.others_w
        self.d = own.d + self.others_d
        self.lent_w = own.lent_w + self.others_lent_w
        self.lent_d = own.lent_d + self.others_lent_d
        self.owed = own.w - own.lent_w

    def _enter(self, ticket: Ticket, now: float) -> None:
        self._in_flight[ticket] = now
        own = self.own
        own.n += 1
        own.w += ticket.w_mu
        own.d += ticket.d_mu
        if ticket.is_lent:
            own.lent_w += ticket.w_mu
            own.lent_d += ticket.d_mu
        if own.n == 1:
            own.oldest_in_flight_at = now
        self.merge()

    def _leave(self, ticket: Ticket) -> None:
        del self._in_flight[ticket]
        own = self.own
        own.n -= 1
        own.departed += 1
        own.d -= ticket.d_mu
        if ticket.is_lent:
            own.lent_d -= ticket.d_mu
        if own.n == 0:
            # Sums of floats drift; an idle replica has exactly nothing.
            own.w = own.d = own.lent_w = own.lent_d = own.oldest_in_flight_at = 0.0
        else:
            own.oldest_in_flight_at = next(iter(self._in_flight.values()))
        self.merge()


class Ticket:
    """One dispatched request at one replica. Every method may be called in any order and any number of times.

    ``is_lent``: it is best effort.
    """

    __slots__ = ("_is_over", "_load", "_waits_for_token", "d_mu", "is_lent", "w_mu")

    def __init__(self, load: ReplicaLoad, w_mu: float, d_mu: float, *, is_lent: bool = False) -> None:
        self.w_mu, self.d_mu, self.is_lent = w_mu, d_mu, is_lent
        self._load = load
        self._waits_for_token = True
        self._is_over = False
        load._enter(self, time.time())

    @property
    def is_reading(self) -> bool:
        """Whether its prompt is still being read, as far as anybody knows."""
        return self._waits_for_token

    def first_token(self) -> None:
        """The prefill is over: its MU leave ``w``."""
        if self._is_over:
            return
        self._load.own.last_token_at = time.time()
        self.prefilled()

    def token(self) -> None:
        """Something came from the engine just now."""
        if not self._is_over:
            self._load.own.last_token_at = time.time()

    def finished(self, ok: bool) -> None:
        """The request has left the replica; ``ok``: it completed there without an engine error."""
        if self._is_over:
            return
        self.prefilled()
        self._is_over = True
        if ok:
            self._load.own.last_success_at = time.time()
        else:
            self._load.own.last_error_at = time.time()
        self._load._leave(self)

    def prefilled(self) -> None:
        """The prefill is over, or must be by now."""
        if self._waits_for_token:
            self._waits_for_token = False
            self._load.own.w -= self.w_mu
            if self.is_lent:
                self._load.own.lent_w -= self.w_mu
            self._load.merge()
