"""What a ledger is asked about: stocks in a few words, and drawn worlds with an oracle that counts minute by minute and
accelerator by accelerator, written from the definition."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from capacity.policy.placement import Need
from capacity.policy.stock import (
    DeploymentStock,
    HostStock,
    PoolStock,
    Stock,
    Term,
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
                part = sold * server.most / most / self.oversell[name] if most else 0.0
                have = sorted((self.supply[self.hardware[h]] for h in server.running), reverse=True)[: server.most]
                count = len(server.running)
                while count < server.most:
                    kept = sum(have) - (max(have, default=0) if self.spare[name] else 0)
                    if count >= server.least and (not part or kept >= part * (1 - 1e-9)):
                        break
                    placed = start(server)
                    if not placed:
                        break
                    count += 1
                    have.append(self.supply[self.hardware[placed]])
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
