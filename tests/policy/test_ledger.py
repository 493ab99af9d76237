"""Can we sell this? The answer against an oracle that counts minute by minute and accelerator by accelerator."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capacity.policy.ledger import can_sell, outlook, sold_peak
from capacity.policy.placement import Need
from capacity.policy.stock import (
    DeploymentStock,
    HostStock,
    PoolStock,
    Stock,
    Term,
    provisioned_replicas,
    shares,
)

GIB = 1 << 30
MINUTE = 60.0
END = 24  # minutes that a drawn world lasts


def host(name: str, *, free: int = 0, hardware: str = "h100", **changes) -> HostStock:
    return replace(HostStock(id=name, name=name, hardware=hardware, free=(80 * GIB,) * free), **changes)


def deployment(
    name: str = "chat", *, each: int = 1, most: int = 10, on: tuple[str, ...] = (), least: int = 0, supply=None
):
    need = Need(accelerators=each)
    return DeploymentStock(name, name, need, supply or {"h100": 100.0, "a10": 20.0}, least, most, on)


def pool(
    name: str = "chat", *deployments: DeploymentStock, sold=(), oversell: float = 1.0, spare: bool = False
) -> PoolStock:
    return PoolStock(name, name, oversell, spare, deployments or (deployment(name),), tuple(sold))


def term(mu: float, start: float = 0, end: float | None = 10, name: str = "ask") -> Term:
    return Term(name, mu, start * MINUTE, None if end is None else end * MINUTE)


# ----- the oracle
@dataclass
class Chip:
    """One accelerator of the drawn world; ``holder`` is the pool whose replica has it."""

    host: str
    gib: int
    holder: str = ""
    is_healthy: bool = True


@dataclass
class Sold:
    pool: str
    mu: int
    start: int
    end: int | None

    def holds(self, minute: int) -> bool:
        return self.start <= minute and (self.end is None or minute < self.end)


@dataclass
class Server:
    """A deployment, as the oracle sees it."""

    pool: str
    each: int
    gib: int
    least: int
    most: int
    running: list[str] = field(default_factory=list)


@dataclass
class World:
    hardware: dict[str, str]
    closed: set[str]
    chips: list[Chip]
    servers: list[Server]
    sold: list[Sold]
    oversell: dict[str, float]
    spare: dict[str, bool]
    supply: dict[str, int]

    def stock(self) -> Stock:
        hosts = []
        for name, kind in self.hardware.items():
            mine = [chip for chip in self.chips if chip.host == name and chip.is_healthy]
            held: dict[str, int] = {}
            for chip in mine:
                if chip.holder:
                    held[chip.holder] = held.get(chip.holder, 0) + 1
            free = tuple(chip.gib * GIB for chip in mine if not chip.holder)
            hosts.append(HostStock(name, name, kind, "it is draining" if name in self.closed else "", free, held))
        pools = []
        for name in self.oversell:
            made = tuple(
                DeploymentStock(
                    f"{s.pool}-{i}",
                    f"{s.pool}-{i}",
                    Need(accelerators=s.each, accelerator_memory_bytes=s.gib * GIB),
                    self.supply,
                    s.least,
                    s.most,
                    tuple(s.running),
                )
                for i, s in enumerate(self.servers)
                if s.pool == name
            )
            sold = tuple(
                Term(str(i), s.mu, s.start * MINUTE, None if s.end is None else s.end * MINUTE)
                for i, s in enumerate(self.sold)
                if s.pool == name
            )
            pools.append(PoolStock(name, name, self.oversell[name], self.spare[name], made, sold))
        return Stock(pools[0], tuple(hosts), tuple(pools[1:]))

    def can_have(self, minute: int) -> list[int]:
        """MU/min of each replica that the first pool can run in ``minute``: placed one by one."""
        chips = [replace(chip) for chip in self.chips if chip.is_healthy and chip.host not in self.closed]
        best = max(self.supply.values())

        def start(server: Server) -> str:
            for name in sorted(self.hardware, key=lambda h: (-self.supply[self.hardware[h]], h)):
                fit = [c for c in chips if c.host == name and not c.holder and c.gib >= server.gib]
                fit.sort(key=lambda c: c.gib)
                if len(fit) >= server.each:
                    for chip in fit[: server.each]:
                        chip.holder = server.pool
                    return name
            return ""

        first = next(iter(self.oversell))
        for name in self.oversell:
            if name == first:
                continue
            sold = sum(s.mu for s in self.sold if s.pool == name and s.holds(minute))
            most = sum(s.most for s in self.servers if s.pool == name)
            for server in self.servers:
                if server.pool != name:
                    continue
                needed = server.least
                if sold and most:
                    part = sold * server.most / most
                    exact = part / (self.oversell[name] * best)
                    needed = max(needed, (math.ceil(exact - 1e-9) + self.spare[name]) if part else 0)
                for _ in range(min(needed, server.most) - len(server.running)):
                    if not start(server):
                        break
        found = []
        for server in self.servers:
            if server.pool != first:
                continue
            kept = sorted((self.supply[self.hardware[h]] for h in server.running), reverse=True)[: server.most]
            found += kept
            for _ in range(server.most - len(kept)):
                placed = start(server)
                if not placed:
                    break
                found.append(self.supply[self.hardware[placed]])
        return found

    def missing(self, minute: int, mu: float) -> tuple[float, float]:
        """MU/min that are missing for ``mu`` more: by the first pool's rules, and without its spare replica."""
        first = next(iter(self.oversell))
        have = self.can_have(minute)
        sold = sum(s.mu for s in self.sold if s.pool == first and s.holds(minute))
        kept = sum(have) - (max(have, default=0) if self.spare[first] else 0)
        return sold + mu - self.oversell[first] * kept, sold + mu - self.oversell[first] * sum(have)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    names = ["h1", "h2", "h3"][: draw(st.integers(1, 3))]
    hardware = {name: draw(st.sampled_from(["h100", "a10"])) for name in names}
    closed = {name for name in names if draw(st.integers(0, 5)) == 0}
    chips = [
        Chip(name, draw(st.sampled_from([24, 80])), is_healthy=draw(st.integers(0, 7)) > 0)
        for name in names
        for _ in range(draw(st.integers(0, 4)))
    ]
    pools = ["chat", "embed", "code"][: draw(st.integers(1, 3))]
    servers = []
    for name in pools:
        for _ in range(draw(st.integers(1, 2))):
            least = draw(st.integers(0, 2))
            server = Server(
                name, draw(st.integers(1, 2)), draw(st.sampled_from([0, 40])), least, least + draw(st.integers(0, 4))
            )
            for place in names:
                fit = [c for c in chips if c.host == place and c.is_healthy and not c.holder and c.gib >= server.gib]
                fit.sort(key=lambda c: c.gib)
                if place not in closed and len(fit) >= server.each and draw(st.booleans()):
                    for chip in fit[: server.each]:
                        chip.holder = name
                    server.running.append(place)
            servers.append(server)
    sold = []
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(-3, END))
        end = draw(st.one_of(st.none(), st.integers(start + 1, END + 3)))
        sold.append(Sold(draw(st.sampled_from(pools)), draw(st.integers(1, 150)), start, end))
    return World(
        hardware,
        closed,
        chips,
        servers,
        sold,
        {name: draw(st.sampled_from([1.0, 1.0, 1.5])) for name in pools},
        {name: draw(st.booleans()) for name in pools},
        {"h100": 100, "a10": 30},
    )


@settings(max_examples=300, deadline=None)
@given(worlds(), st.integers(1, 250), st.integers(0, END - 1), st.integers(1, END), st.booleans())
def test_the_answer_is_that_of_counting_every_minute(world, mu, start, length, is_open):
    end = None if is_open else start + length
    ask = Term("ask", mu, start * MINUTE, None if end is None else end * MINUTE)
    answer = can_sell(world.stock(), ask)
    # Beyond the last start and end of all that is promised nothing changes.
    minutes = range(start, END + 4 if end is None else end)
    by_minute = {minute: world.missing(minute, mu) for minute in minutes}
    if any(without > 1e-6 for _, without in by_minute.values()):
        assert answer.verdict == "short"
    elif any(by_rule > 1e-6 for by_rule, _ in by_minute.values()):
        assert answer.verdict == "without_spare"
    else:
        assert answer.verdict == "fits"
    assert answer.headroom == pytest.approx(max(0.0, mu - max(by_rule for by_rule, _ in by_minute.values())), abs=1e-6)
    for minute, (by_rule, _) in by_minute.items():
        here = [
            s
            for s in answer.shortages
            if s.starts_at <= minute * MINUTE and (s.ends_at is None or minute * MINUTE < s.ends_at)
        ]
        assert bool(here) == (by_rule > 1e-6)
    if answer.shortages:
        assert max(s.mu_per_min for s in answer.shortages) == pytest.approx(max(b for b, _ in by_minute.values()))
        assert "UTC" in answer.reason
    assert json.loads(json.dumps(answer.inputs)) == answer.inputs


@settings(max_examples=150, deadline=None)
@given(worlds(), st.integers(0, END - 1), st.integers(1, END))
def test_what_has_been_sold_by_the_answers_is_never_too_much(world, start, length):
    """Sell as long as the answer is yes: then no minute is beyond the rules that was not beyond them before."""
    world.sold = [s for s in world.sold if s.pool != "chat"]
    for number in range(12):
        mu = 7 + 13 * number % 40
        if can_sell(world.stock(), Term("ask", mu, start * MINUTE, (start + length) * MINUTE)).verdict == "fits":
            world.sold.append(Sold("chat", mu, start, start + length))
    for minute in range(start, start + length):
        if any(s.pool == "chat" for s in world.sold):
            assert world.missing(minute, 0)[0] <= 1e-6


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4000),
    st.sampled_from([20.0, 33.3, 100.0]),
    st.sampled_from([1.0, 1.25, 2.0]),
    st.booleans(),
    st.integers(0, 40),
)
def test_what_fits_on_equal_replicas_can_be_kept_warm_by_them(mu, supply, oversell, spare, most):
    """The answer and the floor of the scale loop say the same."""
    serving = deployment(each=0, most=most, supply={"cpu": supply})
    stock = Stock(pool("chat", serving, oversell=oversell, spare=spare), (host("h", hardware="cpu"),))
    needed = provisioned_replicas(mu, supply_mu_per_min=supply, oversell_factor=oversell, keep_spare=spare)
    assert (can_sell(stock, term(mu)).verdict == "fits") == (needed <= most)


# ----- examples
def test_a_sale_fits_only_without_its_spare_and_says_what_would_be_missing():
    stock = Stock(pool(spare=True), (host("gpu-1", free=3),))
    assert can_sell(stock, term(200)).verdict == "fits"
    answer = can_sell(stock, term(250))
    assert answer.verdict == "without_spare"
    assert [s.mu_per_min for s in answer.shortages] == [50.0]
    assert "fit only without N−1" in answer.reason
    assert "50 MU/min would be missing" in answer.reason
    assert can_sell(stock, term(301)).verdict == "short"


def test_a_shortage_says_how_much_is_missing_from_when_to_when():
    sold = (term(150, 5, 8, "a"), term(180, 8, 9, "b"), term(250, 12, 13, "c"))
    answer = can_sell(Stock(pool(sold=sold), (host("gpu-1", free=2),)), term(100, 0, 20))
    assert [(s.starts_at / MINUTE, s.ends_at / MINUTE, s.mu_per_min) for s in answer.shortages] == [
        (5, 9, 80.0),
        (12, 13, 150.0),
    ]
    assert answer.reason.startswith(
        "Short by 150 MU/min from 1970-01-01 00:12 UTC to 1970-01-01 00:13 UTC, and in 1 other"
    )
    assert answer.headroom == 0.0


def test_accelerators_that_others_hold_or_have_promised_cannot_be_sold_and_are_named():
    embed = pool("embed", deployment("embed", on=("gpu-1",)), sold=(term(250, 0, 10, "e"),))
    gpu = host("gpu-1", free=4, held={"embed": 1})
    answer = can_sell(Stock(pool(), (gpu,), (embed,)), term(300))
    assert (answer.verdict, answer.pieces[0].replicas) == ("short", 2)
    assert "gpu-1: embed holds 1 accelerator" in answer.reason
    later = can_sell(Stock(pool(), (gpu,), (embed,)), term(300, 10, 20))
    assert later.verdict == "fits"


@pytest.mark.parametrize(
    ("hosts", "serving", "told"),
    [
        ((host("gpu-1", free=4, why_not="it is draining"),), deployment(), "gpu-1: it is draining"),
        ((host("gpu-1", free=4),), deployment(most=2), "chat runs at most 2 replicas"),
        ((host("gpu-1", free=1),), deployment(), "hosts have room for 1 of chat's 10 replicas"),
        (
            (host("gpu-1", free=4),),
            replace(deployment(), need=Need(1, labels={"zone": "a"})),
            "gpu-1: label zone is not a",
        ),
    ],
)
def test_the_reason_names_what_limits(hosts, serving, told):
    answer = can_sell(Stock(pool("chat", serving), hosts), term(1000))
    assert answer.verdict == "short"
    assert told in answer.reason


def test_a_pool_that_nothing_serves_sells_nothing():
    answer = can_sell(Stock(replace(pool(), deployments=())), term(1))
    assert (answer.verdict, answer.headroom) == ("short", 0.0)
    assert "nothing serves chat" in answer.reason


def test_memory_of_the_host_limits_engines_on_a_cpu():
    serving = replace(deployment(supply={"cpu": 10.0}), need=Need(memory_bytes=4 * GIB))
    answer = can_sell(Stock(pool("chat", serving), (host("h", hardware="cpu", memory_bytes=13 * GIB),)), term(31))
    assert (answer.pieces[0].replicas, answer.verdict) == (3, "short")


def test_oversell_sells_more_than_there_is():
    stock = Stock(pool(oversell=1.5), (host("gpu-1", free=2),))
    assert can_sell(stock, term(300)).verdict == "fits"
    assert can_sell(stock, term(301)).verdict == "short"


def test_a_change_is_asked_only_where_it_promises_more():
    """Hosts were lost since: what is promised stays promised, more is asked, and less never refused."""
    old = term(150, 0, 10, "r")
    stock = Stock(pool(sold=(old, term(100, 20, 30, "s"))), (host("gpu-1", free=1),))
    smaller = replace(old, mu_per_min=120)
    assert can_sell(stock, smaller, instead_of=old).verdict == "fits"
    assert "no more than what is promised already" in can_sell(stock, smaller, instead_of=old).reason
    assert can_sell(stock, replace(old, mu_per_min=151), instead_of=old).verdict == "short"
    longer = can_sell(stock, Term("r", 100, 0, 25 * MINUTE), instead_of=replace(old, mu_per_min=100))
    assert [(s.starts_at / MINUTE, s.ends_at / MINUTE) for s in longer.shortages] == [(20, 25)]


def test_the_outlook_divides_time_where_something_changes():
    sold = (term(10, 2, 4, "a"), term(20, 3, None, "b"))
    pieces = outlook(Stock(pool(sold=sold), (host("gpu-1", free=1),)), since=0.0, until=10 * MINUTE)
    assert [(p.starts_at / MINUTE, p.sold, p.headroom) for p in pieces] == [
        (0, 0, 100.0),
        (2, 10, 90.0),
        (3, 30, 70.0),
        (4, 20, 80.0),
    ]
    assert pieces[-1].ends_at == 10 * MINUTE


def test_the_peak_counts_a_hand_over_once():
    terms = (term(10, 0, 5, "a"), term(12, 5, None, "b"))
    assert sold_peak(terms, since=4 * MINUTE, until=6 * MINUTE) == 12
    assert sold_peak(terms, since=0, until=4 * MINUTE) == 10
    assert sold_peak((), since=0, until=1) == 0


def test_replicas_that_are_too_many_or_supply_nothing_are_not_counted_on():
    many = deployment(most=2, on=("a", "b", "c"), supply={"h100": 100.0, "a10": 20.0})
    hosts = (host("a", hardware="a10"), host("b"), host("c", hardware="t4"))
    (piece,) = outlook(Stock(pool("chat", many), hosts), since=0, until=1)
    assert (piece.could_have, piece.replicas) == (120.0, 2)


def test_shares_follow_what_each_deployment_can_supply():
    first, second = deployment(most=3), replace(deployment(most=1), supply={"a10": 100.0})
    assert shares((first, second)) == [0.75, 0.25]
    assert shares((deployment(most=0),)) == [0.0]


@pytest.mark.parametrize(
    ("sold", "supply", "factor", "spare", "replicas"),
    [
        (0, 100, 1, True, 0),
        (1, 100, 1, False, 1),
        (100, 100, 1, True, 2),
        (101, 100, 1, False, 2),
        (300, 100, 1.5, True, 3),
    ],
)
def test_what_is_sold_sets_how_many_must_run(sold, supply, factor, spare, replicas):
    found = provisioned_replicas(sold, supply_mu_per_min=supply, oversell_factor=factor, keep_spare=spare)
    assert found == replicas


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="more than 0"):
        term(0)
    with pytest.raises(ValueError, match="ends after it starts"):
        term(1, 5, 5)
    with pytest.raises(ValueError, match="oversell factor"):
        provisioned_replicas(1, supply_mu_per_min=1, oversell_factor=0.5, keep_spare=False)
