"""What is measured: a flood beside reserved and small tenants, an owner's return, and prompts that differ fifty times.

Sizes are for engines as ``world.ENGINE`` describes them: a token there is twenty of a real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from bench.fairness import virtual
from bench.fairness.world import ENGINE, Diary, Request, Scheme, Tenant, World, jain, p99, share

WARM_S = 5.0
"""What comes before is not counted: engines and figures of late begin empty."""
OWNERS = ("owner-1", "owner-2", "owner-3", "owner-4")
SMALL = ("small-1", "small-2")
SHORT = {"prompt": (20, 100), "output": (20, 60)}

CHUNKED = msgspec.structs.replace(ENGINE, long_prefill_token_threshold=25, max_model_len=2048)
"""As ``--long-prefill-token-threshold 512`` makes it: a long prompt leaves room for others in each step."""


def owners(replicas: int, **more: Any) -> list[Tenant]:
    """Four tenants who each have reserved 15 MU/min a replica, and use about two thirds of it."""
    return [Tenant(name, **SHORT, per_s=replicas / 2, mu_per_min=15.0 * replicas, **more) for name in OWNERS]


def small(replicas: int) -> list[Tenant]:
    """Two tenants without a reservation who send little."""
    return [Tenant(name, **SHORT, per_s=replicas / 8) for name in SMALL]


def flood(replicas: int, **more: Any) -> Tenant:
    """One who sends one and a half times what the replicas could read, in prompts of 20,000 to 40,000 real tokens.

    In requests it is little: a limit of 240 a minute, which every other tenant needs too, does not touch it.
    """
    return Tenant("flood", (1000, 2000), (20, 60), per_s=replicas, requests_per_min=60.0 * replicas, **more)


class Outcome(NamedTuple):
    """TTFT in seconds, shares of requests, MU/min of the flood."""

    owners_p99: float
    owners_in_time: float
    owners_refused: int
    owners_reserved: float
    small_p99: float
    small_in_time: float
    flood_mu_per_min: float
    flood_refused: int


def neighbours(
    scheme: Scheme, *, replicas: int, seconds: float, with_flood: bool, gateways: int = 1, seed: int = 1
) -> Outcome:
    """Owners and small tenants, with the flood beside them or without it."""
    tenants = [*owners(replicas), *small(replicas), *([flood(replicas)] if with_flood else [])]
    world = World(scheme, tenants, replicas=replicas, gateways=gateways, seed=seed, engine=CHUNKED)
    virtual.run(world.run(seconds))
    return outcome(world, seconds)


def outcome(diary: Diary, seconds: float) -> Outcome:
    """What ``seconds`` of owners, small tenants and, maybe, the flood came to."""
    of_owners, of_small = diary.of(*OWNERS, since=WARM_S), diary.of(*SMALL, since=WARM_S)
    return Outcome(
        owners_p99=p99(of_owners),
        owners_in_time=share(of_owners, _in_time),
        owners_refused=sum(bool(request.refused) for request in of_owners),
        owners_reserved=share(of_owners, lambda request: request.is_reserved),
        small_p99=p99(of_small),
        small_in_time=share(of_small, _in_time),
        flood_mu_per_min=60 * diary.served_mu("flood", since=WARM_S, until=seconds) / (seconds - WARM_S),
        flood_refused=sum(bool(request.refused) for request in diary.of("flood")),
    )


class Lied(NamedTuple):
    """What an owner found whose neighbour's requests were taken for far less than they are: seconds, shares of its
    requests; and MU/min inside the neighbour's reservation, while it flooded."""

    owners_p99: float
    owners_in_time: float
    owners_reserved: float
    reserved_mu_per_min: float


def liar(*, replicas: int, believes: bool, flooded: bool = True, gateways: int = 1, seed: int = 1) -> Lied:
    """Four owners, and a fifth whose key has taught answers of one token: for ten seconds it sends long ones.

    ``believes``: without an allowance. The fifth has a fifth of what there is.
    """
    began, seconds = 10.0, 20.0
    some = [Tenant(name, **SHORT, per_s=replicas / 2, mu_per_min=15.0 * replicas) for name in OWNERS]
    fifth = Tenant(
        "liar",
        (20, 40),
        (400, 600),
        per_s=40.0 * replicas,
        begins=began,
        mu_per_min=20.0 * replicas,
        taught=1,
        wait_s=1.0,
    )
    tenants = [*some, *([fifth] if flooded else [])]
    world = World(
        "classes", tenants, replicas=replicas, gateways=gateways, seed=seed, engine=CHUNKED, believes=believes
    )
    virtual.run(world.run(seconds))
    found = world.of(*OWNERS, since=began)
    reserved = [request for request in world.of("liar") if request.is_reserved and not request.refused]
    used = sum(request.mu * min(1.0, (seconds - request.at) / request.total_s) for request in reserved)
    return Lied(
        owners_p99=p99(found),
        owners_in_time=share(found, _in_time),
        owners_reserved=share(found, lambda request: request.is_reserved),
        reserved_mu_per_min=60 * used / (seconds - began),
    )


class Return(NamedTuple):
    """``full_service_s``: from the owners' return until the last of their requests that was late or refused has been
    answered. ``lent_before`` and ``lent_after``: MU/min of the flood in the 10 s before and after."""

    deadline_s: float
    full_service_s: float
    worst_ttft_s: float
    refused: int
    lent_before: float
    lent_after: float


def owner_returns(
    *, replicas: int, at: float = 20.0, seconds: float = 40.0, seed: int = 1, long: bool = True
) -> Return:
    """Owners come back at once to a pool that was lent to the last: to long prompts, or to answers in every slot.

    The flood is served on while they are away; how much of it goes on beside them is spare.
    """
    tenants = [*owners(replicas, begins=at), lender(replicas, long=long)]
    world = World("classes", tenants, replicas=replicas, seed=seed, engine=CHUNKED)
    virtual.run(world.run(seconds))
    return returned(world, at, deadline_s=world.deadline_s)


def lender(replicas: int, *, long: bool) -> Tenant:
    """Who uses what is lent: in long prompts, or in answers in every slot."""
    return flood(replicas) if long else Tenant("flood", (20, 100), (300, 500), at_once=100 * replicas)


def returned(diary: Diary, at: float, *, deadline_s: float) -> Return:
    """What owners found who came back ``at``."""
    back = diary.of(*OWNERS)
    late = [request.at + request.first_s - at for request in back if request.refused or not _in_time(request)]
    return Return(
        deadline_s=deadline_s,
        full_service_s=max(late, default=0.0),
        worst_ttft_s=max(request.first_s for request in back),
        refused=sum(bool(request.refused) for request in back),
        lent_before=6 * diary.served_mu("flood", since=at - 10, until=at),
        lent_after=6 * diary.served_mu("flood", since=at + 10, until=at + 20),
    )


class Shares(NamedTuple):
    """MU that each of two tenants was served, and Jain's index of them."""

    short_mu: float
    long_mu: float
    index: float


def fifty_times(*, replicas: int, seconds: float, seed: int = 1) -> Shares:
    """Two tenants who always want more, one in prompts fifty times as long as the other's."""
    tenants = [
        Tenant("short", (40, 40), (5, 5), at_once=40 * replicas, wait_s=30.0),
        Tenant("long", (2000, 2000), (5, 5), at_once=8 * replicas, wait_s=30.0),
    ]
    world = World("classes", tenants, replicas=replicas, seed=seed, engine=CHUNKED)
    virtual.run(world.run(seconds))
    served = [world.served_mu(name, since=WARM_S, until=seconds) for name in ("short", "long")]
    return Shares(served[0], served[1], jain(served))


class Placed(NamedTuple):
    """The gateways that each tenant sends to, and how many times as long as 40 tokens its prompts are."""

    at: tuple[tuple[int, ...], ...]
    longer: tuple[int, ...]


PLACED = {
    "one at the first, one at both": Placed(((0,), (0, 1)), (1, 1)),
    "one at the first, two at the second": Placed(((0,), (1,), (1,)), (1, 1, 1)),
    "one at each, prompts 50 times as long": Placed(((0,), (1,)), (1, 50)),
    "short at the first, 50 times as long at both": Placed(((0,), (0, 1)), (1, 50)),
}


class Across(NamedTuple):
    """MU that each tenant was served, Jain's index of them, and MU/min of all together."""

    mu: tuple[float, ...]
    index: float
    mu_per_min: float


def across(
    placed: Placed,
    *,
    replicas: int,
    seconds: float,
    gateways: int = 2,
    seed: int = 1,
    away: tuple[float, float] | None = None,
    since: float = WARM_S,
) -> Across:
    """Best-effort tenants who always want more, at gateways that share the replicas. The state is ``away`` between two
    moments, and begins empty. What is served ``since`` is counted."""
    tenants = placed_tenants(placed, replicas=replicas, gateways=gateways)
    world = World("classes", tenants, replicas=replicas, gateways=gateways, seed=seed, engine=CHUNKED)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        if away is not None:
            loop.call_at(away[0], world.board.leave)
            loop.call_at(away[1], world.board.begin_anew)
        await world.run(seconds)

    virtual.run(run())
    return shared(world, tenants, seconds, since=since)


def placed_tenants(placed: Placed, *, replicas: int, gateways: int) -> list[Tenant]:
    """Tenants who always want more. Before a single gateway all send to it."""
    return [
        Tenant(
            f"t{number}",
            (40 * longer, 40 * longer),
            (5, 5),
            at_once=(8 if longer > 1 else 40) * replicas,
            wait_s=30.0,
            at=at if gateways > 1 else (),
        )
        for number, (at, longer) in enumerate(zip(*placed, strict=True))
    ]


def shared(diary: Diary, tenants: Sequence[Tenant], seconds: float, *, since: float = WARM_S) -> Across:
    """What each of ``tenants`` got between two moments."""
    mu = tuple(diary.served_mu(one.name, since=since, until=seconds) for one in tenants)
    return Across(mu, jain(mu), 60 * sum(mu) / (seconds - since))


def _in_time(request: Request) -> bool:
    return request.is_in_time
