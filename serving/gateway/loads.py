"""Who is doing how much: requests in flight and MU per replica, own and of the other gateways."""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

import msgspec
import redis
from redis.exceptions import ResponseError

from serving.gateway.placement import TicketLike
from serving.gateway.state import (
    EPOCH,
    GATEWAYS,
    GRACE_MS,
    GRACE_UNTIL,
    LIFETIME_MS,
    SILENCE_MS,
    Argument,
    Script,
    StateUnavailable,
    script,
)
from serving.gateway.tickets import ReplicaBeat as ReplicaBeat
from serving.gateway.tickets import ReplicaLoad as ReplicaLoad
from serving.gateway.tickets import Ticket as Ticket
from serving.policy.fairness import Told
from serving.policy.pace import Pace
from serving.policy.returns import Word

logger = logging.getLogger(__name__)

_BEAT = script("beat")
_PERIOD_S = 0.1
_FORGET_AFTER_S = 900.0
_LIFETIME_S = LIFETIME_MS / 1000
OWNED_OVER_S = 5.0
"""Over how long what owners send is taken together."""


class DeploymentBeat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One gateway's counts of a deployment since its start; ``queue_mu`` is what waits now.

    ``reserved_mu`` and ``lent_mu`` are what requests used inside reservations and beyond; ``claw_backs`` counts how
    often an owner found no room: other gateways stop lending when it rises.
    """

    offered_mu: float = 0.0
    offered_requests: int = 0
    refused: int = 0
    completed: int = 0
    queue_mu: float = 0.0
    reserved_mu: float = 0.0
    lent_mu: float = 0.0
    claw_backs: int = 0
    owned_mu_per_s: float = 0.0
    """Prefill inside reservations that was sent to replicas of late."""
    order: Told | None = None
    """Who waits of best effort, and what was served to whom."""
    returns: Word | None = None
    """Whom of best effort this gateway has told to come again."""


class GatewayBeat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``gateway`` names the process: another one of the same configured name has another."""

    gateway: str
    pid: int
    sequence: int
    at: float
    started_at: float
    snapshot_version: int = 0
    snapshot_age_s: float = 0.0
    replicas: dict[str, ReplicaBeat] = msgspec.field(default_factory=dict)
    deployments: dict[str, DeploymentBeat] = msgspec.field(default_factory=dict)
    held: dict[str, float] = msgspec.field(default_factory=dict)
    """MU that requests under way may take beyond what they were charged, by reservation."""


class Exchanging(Protocol):
    """``serving.gateway.state.State``, as far as beats need it."""

    async def run(self, lua: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any: ...

    async def call(self, *command: Argument) -> Any: ...

    def note_epoch(self, epoch: bytes | str) -> None: ...


class Loads:
    """``snapshot`` tells the version and age (s) of the gateway's view, for its beats; ``clock`` monotonic seconds."""

    def __init__(
        self,
        state: Exchanging,
        gateway_id: str,
        *,
        snapshot: Callable[[], tuple[int, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._id = gateway_id
        self._snapshot = snapshot or (lambda: (0, 0.0))
        self._clock = clock
        self._started_at = time.time()
        self._sequence = 0
        self.generation = 0
        """Counts how often replicas were forgotten: a load that was kept since may be nobody's any more."""
        self.place = (0, 1)
        """This gateway's place among those that live, and how many these are, as of the last answered exchange."""
        self._replicas: dict[str, ReplicaLoad] = {}
        self._deployments: dict[str, DeploymentBeat] = {}
        self._others: list[GatewayBeat] = []
        self._heard_at = float("-inf")
        self._ticker: asyncio.Task[None] | None = None
        self._presumed: list[tuple[float, int, TicketLike]] = []
        self._presumptions = 0
        self._claw_backs: dict[str, int] = {}
        self.on_cut: Callable[[str], None] = lambda replica_id: None
        """Hears of a replica at which an owner at another gateway waits for what is lent here."""
        self.on_way: Callable[[str], None] = lambda replica_id: None
        """Hears of a replica at which long prompts from here are to make way for an owner at another gateway."""
        self.order: Callable[[], Mapping[str, Told]] = dict
        """Asked with each beat what the others are to know of best effort, by deployment."""
        self.on_order: Callable[[Mapping[str, Mapping[str, Told]], str], None] = lambda told, name: None
        """Hears what all others have said of it last, by deployment and gateway, and this gateway's own name."""
        self.returns: Callable[[], Mapping[str, Word]] = dict
        """Asked with each beat whom of best effort this gateway has told to come again, by deployment."""
        self.on_returns: Callable[[Mapping[str, Mapping[str, Word]], str], None] = lambda words, name: None
        """Hears what all others have said of that last, by deployment and gateway, and this gateway's own name."""
        self.held: Callable[[], dict[str, float]] = dict
        """Asked with each beat what is held of reservations' allowances here."""
        self.on_held: Callable[[Mapping[str, float], int], None] = lambda held, gateways: None
        """Hears what all others hold together, and how many gateways there are."""
        self._owned: dict[str, Pace] = {}
        self._others_owned: dict[str, float] = {}

    async def start(self) -> None:
        """Begin the exchange, every 100 ms, one round trip."""
        await self._exchange()
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def stop(self) -> None:
        """Vanish at once: the others need not wait for the heartbeat to run out."""
        if self._ticker is not None:
            self._ticker.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticker
        with suppress(StateUnavailable, ResponseError):
            await self._state.call("DEL", _key(self._id))
            await self._state.call("ZREM", GATEWAYS, self._id)

    def replica(self, replica_id: str) -> ReplicaLoad:
        """The merged load; the same live object for each call with the same id while the replica is in use."""
        load = self._replicas.get(replica_id)
        if load is None:
            load = self._replicas[replica_id] = ReplicaLoad()
        return load

    def dispatched(self, replica_id: str, w_mu: float, d_mu: float, *, is_lent: bool = False) -> Ticket:
        return Ticket(self.replica(replica_id), w_mu, d_mu, is_lent=is_lent)

    def presume(self, ticket: TicketLike, at: float) -> None:
        """Nobody will tell of the first token: take the prefill for done at ``at`` (monotonic seconds)."""
        self._presumptions += 1
        heapq.heappush(self._presumed, (at, self._presumptions, ticket))

    def note_presumed(self, now: float) -> None:
        """``now`` (monotonic seconds): end the prefills that must be over."""
        presumed = self._presumed
        while presumed and presumed[0][0] <= now:
            heapq.heappop(presumed)[2].prefilled()

    def offered(self, deployment_id: str, mu: float) -> None:
        beat = self._deployment(deployment_id)
        beat.offered_mu += mu
        beat.offered_requests += 1

    def refused(self, deployment_id: str) -> None:
        self._deployment(deployment_id).refused += 1

    def completed(self, deployment_id: str) -> None:
        self._deployment(deployment_id).completed += 1

    def queued(self, deployment_id: str, mu: float) -> None:
        """``mu`` joins the queue (positive) or leaves it (negative)."""
        beat = self._deployment(deployment_id)
        beat.queue_mu = max(0.0, beat.queue_mu + mu)

    def used(self, deployment_id: str, mu: float, *, is_lent: bool) -> None:
        """A request has used ``mu``, inside a reservation or, ``is_lent``, beyond."""
        beat = self._deployment(deployment_id)
        if is_lent:
            beat.lent_mu += mu
        else:
            beat.reserved_mu += mu

    def owned(self, deployment_id: str, prefill_mu: float) -> None:
        """A request inside a reservation goes to a replica."""
        pace = self._owned.get(deployment_id)
        if pace is None:
            pace = self._owned[deployment_id] = Pace(OWNED_OVER_S)
        pace.add(prefill_mu, self._clock())

    def owned_mu_per_s(self, deployment_id: str) -> float:
        """Prefill inside reservations that gateways have sent to replicas of late."""
        pace = self._owned.get(deployment_id)
        own = pace.now(self._clock()) if pace is not None else 0.0
        return own + self._others_owned.get(deployment_id, 0.0)

    def clawed_back(self, deployment_id: str) -> None:
        """An owner has found no room here: with the next beat all gateways stop lending."""
        self._deployment(deployment_id).claw_backs += 1

    def wants_cut(self, replica_id: str) -> None:
        """An owner waits here for what other gateways have lent at the replica: by the next beat they end one each."""
        self.replica(replica_id).own.cuts += 1

    def wants_way(self, replica_id: str) -> None:
        """An owner is read here beside long prompts of other gateways: by the next beat they put these back."""
        self.replica(replica_id).own.ways += 1

    def claw_backs(self, deployment_id: str) -> int:
        """How often other gateways' owners have found no room; it never falls."""
        return self._claw_backs.get(deployment_id, 0)

    def gateways(self) -> int:
        """Live gateways as of the last exchange, this one included."""
        return 1 + len(self._others)

    def beat(self) -> GatewayBeat:
        """What this gateway says of itself now."""
        version, age_s = self._snapshot()
        self._sequence += 1
        for deployment_id, pace in self._owned.items():
            self._deployment(deployment_id).owned_mu_per_s = pace.now(self._clock())
        told, returns = self.order(), self.returns()
        for deployment_id in (*told, *returns):
            self._deployment(deployment_id)
        for deployment_id, beat in self._deployments.items():
            beat.order, beat.returns = told.get(deployment_id), returns.get(deployment_id)
        return GatewayBeat(
            gateway=self._id,
            pid=os.getpid(),
            sequence=self._sequence,
            at=time.time(),
            started_at=self._started_at,
            snapshot_version=version,
            # JSON has no infinity.
            snapshot_age_s=min(age_s, 1e9),
            replicas={key: load.own for key, load in self._replicas.items() if _was_used(load.own)},
            deployments=self._deployments,
            held=self.held(),
        )

    def _deployment(self, deployment_id: str) -> DeploymentBeat:
        beat = self._deployments.get(deployment_id)
        if beat is None:
            beat = self._deployments[deployment_id] = DeploymentBeat()
        return beat

    async def _tick(self) -> None:
        next_sweep = self._clock() + _FORGET_AFTER_S / 10
        while True:
            await asyncio.sleep(_PERIOD_S)
            self.note_presumed(self._clock())
            try:
                await self._exchange()
            except Exception:
                # A gateway that falls silent is dead for all others: whatever it is, the next beat must come.
                logger.exception("loads: the exchange failed; it is tried again")
            if self._clock() > next_sweep:
                next_sweep = self._clock() + _FORGET_AFTER_S / 10
                self._forget()

    async def _exchange(self) -> None:
        arguments: list[Argument] = [self._id, msgspec.json.encode(self.beat()), LIFETIME_MS, secrets.token_hex(6)]
        arguments += [SILENCE_MS, GRACE_MS]
        try:
            epoch, beats = await self._state.run(_BEAT, [EPOCH, GATEWAYS, GRACE_UNTIL], arguments)
        except StateUnavailable:
            # A view older than a beat's life says nothing any more: own numbers alone.
            if self._others and self._clock() - self._heard_at > _LIFETIME_S:
                self._merge([])
            return
        except ResponseError as error:
            logger.error("loads: the state refused the heartbeat: %s", error)
            return
        self._state.note_epoch(epoch)
        self._heard_at = self._clock()
        self._merge(_decode(beats))
        names = [self._id, *(beat.gateway for beat in self._others)]
        self.place = (sum(name < self._id for name in names), len(names))

    def _merge(self, others: list[GatewayBeat]) -> None:
        """Take over the other gateways' beats, in one go between two awaits."""
        changed = []
        before = {beat.gateway: beat for beat in self._others}
        self._others_owned = {}
        for beat in others:
            self._note_claw_backs(before.get(beat.gateway), beat)
            for deployment_id, counts in beat.deployments.items():
                if counts.owned_mu_per_s:
                    so_far = self._others_owned.get(deployment_id, 0.0)
                    self._others_owned[deployment_id] = so_far + counts.owned_mu_per_s
        for beat in self._others:
            for replica_id in beat.replicas:
                load = self._replicas.get(replica_id)
                if load is not None:
                    load.forget_others()
                    changed.append(load)
        self._others = others
        for beat in others:
            for replica_id, theirs in beat.replicas.items():
                load = self.replica(replica_id)
                load.add_other(theirs)
                changed.append(load)
        for load in changed:
            load.merge()
        order: dict[str, dict[str, Told]] = {}
        returns: dict[str, dict[str, Word]] = {}
        for beat in others:
            for deployment_id, counts in beat.deployments.items():
                if counts.order is not None:
                    order.setdefault(deployment_id, {})[beat.gateway] = counts.order
                if counts.returns is not None:
                    returns.setdefault(deployment_id, {})[beat.gateway] = counts.returns
        self.on_returns(returns, self._id)
        self.on_order(order, self._id)
        held: dict[str, float] = {}
        for beat in others:
            for name, mu in beat.held.items():
                held[name] = held.get(name, 0.0) + mu
        self.on_held(held, self.gateways())

    def _note_claw_backs(self, before: GatewayBeat | None, beat: GatewayBeat) -> None:
        """Count what is new in ``beat``; what a gateway that was not known before has counted is old."""
        if before is None:
            return
        for deployment_id, theirs in beat.deployments.items():
            known = before.deployments.get(deployment_id)
            rise = theirs.claw_backs - (known.claw_backs if known is not None else 0)
            if rise > 0:
                self._claw_backs[deployment_id] = self._claw_backs.get(deployment_id, 0) + rise
        for replica_id, load in beat.replicas.items():
            earlier = before.replicas.get(replica_id)
            if load.cuts > (earlier.cuts if earlier is not None else 0):
                self.on_cut(replica_id)
            if load.ways > (earlier.ways if earlier is not None else 0):
                self.on_way(replica_id)

    def _forget(self) -> None:
        """Drop replicas that nobody has used for long: they are gone."""
        oldest = time.time() - _FORGET_AFTER_S
        for replica_id, load in list(self._replicas.items()):
            own = load.own
            if load.n == 0 and max(own.last_token_at, own.last_success_at, own.last_error_at) < oldest:
                del self._replicas[replica_id]
                self.generation += 1


def read_beats(client: redis.Redis) -> list[GatewayBeat]:
    """The beats of all live gateways, for the loops."""
    names = cast("list[bytes]", client.zrange(GATEWAYS, 0, -1))
    if not names:
        return []
    values = cast("list[bytes | None]", client.mget([_key(name.decode()) for name in names]))
    return _decode([value for value in values if value is not None])


def _decode(beats: list[Any]) -> list[GatewayBeat]:
    found = []
    for raw in beats:
        try:
            found.append(msgspec.json.decode(raw, type=GatewayBeat))
        except msgspec.DecodeError as error:
            logger.warning("loads: a heartbeat cannot be read: %s", error)
    return found


def _was_used(own: ReplicaBeat) -> bool:
    return own.n > 0 or own.last_success_at > 0.0 or own.last_error_at > 0.0 or own.cuts > 0 or own.ways > 0


def _key(gateway_id: str) -> str:
    return f"penstock:gw:{gateway_id}"
