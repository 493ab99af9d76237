"""CPU of one admission by plain limits: none, leased, central. ``uv run python bench/grants.py``

Prints µs of this process's CPU and of wall time per call; the state is a private bundled Valkey on its own. Then what a
whole admission takes by which limits are on, from the demands to the settlement, side by side: the least of ten rounds
in turns, of CPU, with the ratio to requests and tokens alone.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.fairness.till import share_of
from capacity.policy.cost import CostProfile
from penstock import bundled_state
from serving.gateway import standing_headers
from serving.gateway.access import Access, AccessBook
from serving.gateway.auth import Principal
from serving.gateway.charges import charged
from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.errors import ApiError
from serving.gateway.grants import Grants
from serving.gateway.records import DeploymentRecord, KeyRecord, LimitRecord, PoolRecord, ProfileRecord, TenantRecord
from serving.gateway.services import cost_profile
from serving.gateway.snapshot import Snapshot
from serving.gateway.standing import Desk, charge
from serving.gateway.state import EPOCH, State, connect
from serving.policy import admission, allowance
from serving.policy.allowance import Unsettled

LEASED = (
    LimitRecord(id="requests", kind="requests_per_min", value=1e9),
    LimitRecord(id="tokens", kind="tokens_per_min", value=1e12),
)
CENTRAL = LimitRecord(id="seats", kind="concurrency", value=1e6)
ONE = [Demand(LEASED[0])]
TWO = [Demand(LEASED[0]), Demand(LEASED[1], 300.0)]
ALL = [*TWO, Demand(CENTRAL)]


async def admit(grants: Grants, demands: list[Demand], count: int) -> None:
    for i in range(count):
        granted = await grants.acquire(demands)
        assert isinstance(granted, Granted), granted
        grants.settle(granted, {"tokens": 290.0})
        if i % 50 == 0:
            await asyncio.sleep(0)


async def measure(name: str, work: Callable[[], Awaitable[object]], calls: int) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"{name:44} {cpu / calls * 1e6:8.2f} µs CPU {wall / calls * 1e6:8.2f} µs wall")


PROFILE = {"version": 1, "base": 0.1, "alpha": 0.001, "beta": 0.02, "gamma": 0.0, "epsilon": 0.0, "cached_factor": 0.1}
MU = LimitRecord(id="mu", kind="mu_per_min", value=1e9)
BUDGET = LimitRecord(id="budget", kind="money_per_month", value=1e9)
SETS = {
    "requests, tokens": LEASED,
    "requests, tokens, MU": (*LEASED, MU),
    "requests, tokens, MU, a budget": (*LEASED, MU, BUDGET),
}


class Prices:
    def profile(self, pool: PoolRecord) -> CostProfile:
        return cost_profile(pool.profile)


def access_of(limits: tuple[LimitRecord, ...]) -> Access:
    view = Snapshot()
    profile = ProfileRecord(**PROFILE, price_per_1000_mu=2.0)  # type: ignore[arg-type]
    view.pools["p"] = PoolRecord(id="p", slug="p", profile=profile)
    view.deployments_by_name["m"] = DeploymentRecord(id="d", name="m", pool="p", revision="r", runtime="simulated")
    tenant = TenantRecord(id="t", slug="t", limits=limits)
    key = KeyRecord(id="k", uuid="u", tenant="t", digest="", pepper=1)
    return AccessBook(Prices()).find(view, Principal(key, tenant), "m")


async def whole(grants: Grants, access: Access, count: int) -> None:
    """As a request is admitted, told and settled, without its estimate and its books."""
    limits = [demand.limit for demand in access.demands(300, 6.0)]
    for i in range(count):
        demands = access.demands(300, 6.0)
        granted = grants.take(demands) or await grants.acquire(demands, "k")
        assert isinstance(granted, Granted), granted
        charged(grants, granted)
        standing_headers.told(grants, access.shown)
        grants.settle(granted, admission.actual_amounts(limits, tokens=290, mu=5.8, money=0.0116))
        if i % 50 == 0:
            await asyncio.sleep(0)


RESERVED = ("believed", "held")
"""A reserved request by what its estimate says; and as it is: with the most that it can take, held until its end."""


async def reserved(grants: Grants, kind: str, count: int) -> None:
    """As a request inside a reservation is estimated, admitted and settled."""
    price = cost_profile(ProfileRecord(**PROFILE))  # type: ignore[arg-type]
    share = share_of("sold", 1e9, price, slot_mu=6.25)
    unsettled, learned = Unsettled(), admission.Learned()
    desk = Desk(grants.take, grants.acquire, _refuse, unsettled)
    plain = (Demand(LEASED[0]), Demand(LEASED[1], 300.0))
    ask = admission.Ask(prompts=1, choices=1, text_bytes=1200, messages=2)
    for _ in range(50):
        learned.note("k", "d", ask, input_tokens=300, cached_tokens=100, output_tokens=200)
    for i in range(count):
        expected = admission.estimate(ask, price, learned, key="k", deployment="d", max_model_len=32_768)
        most = expected.mu
        if kind == "held":
            most = allowance.most_mu(
                ask, expected, price, learned, deployment="d", max_model_len=32_768, slot_mu=share.slot_mu
            )
        asked = await charge(share, plain, expected.mu, most, "k", "", desk=desk)
        assert isinstance(asked.answer, Granted), asked
        grants.settle(asked.answer, {"tokens": 290.0, share.bucket.id: 5.0})
        if i % 50 == 0:
            await asyncio.sleep(0)


def _refuse(refused: Refused, demands: tuple[Demand, ...]) -> ApiError:
    raise AssertionError(f"nothing is refused here: {refused}")


async def side_by_side(grants: Grants, *, rounds: int = 10, count: int = 5000) -> None:
    accesses = {name: access_of(limits) for name, limits in SETS.items()}
    for access in accesses.values():
        for _ in range(20):
            await whole(grants, access, 500)
            await asyncio.sleep(0.02)
    least = dict.fromkeys(accesses, float("inf"))
    for _ in range(rounds):
        for name, access in accesses.items():
            cpu = time.process_time()
            await whole(grants, access, count)
            least[name] = min(least[name], (time.process_time() - cpu) / count * 1e6)
            await asyncio.sleep(0.01)
    tell("admission", least)
    least = dict.fromkeys(RESERVED, float("inf"))
    for kind in RESERVED * 20:
        await reserved(grants, kind, 500)
        await asyncio.sleep(0.02)
    for kind in RESERVED * rounds:
        cpu = time.process_time()
        await reserved(grants, kind, count)
        least[kind] = min(least[kind], (time.process_time() - cpu) / count * 1e6)
        await asyncio.sleep(0.01)
    tell("reserved, with its estimate", least)


def tell(what: str, least: dict[str, float]) -> None:
    first = next(iter(least.values()))
    for name, cost in least.items():
        print(f"{what}: {name:33} {cost:8.2f} µs CPU ×{cost / first:.2f}")


async def main(url: str) -> None:
    state = State(url)
    grants = Grants(state, "bench")
    await grants.start()
    for _ in range(30):
        await admit(grants, TWO, 2000)
        await asyncio.sleep(0.02)
    count = 50_000
    await measure("no limit", lambda: admit(grants, [], count), count)
    await measure("one leased limit, settled", lambda: admit(grants, ONE, count), count)
    await measure("two leased limits, one with a refund", lambda: admit(grants, TWO, count), count)
    few = 3000
    central = [Demand(CENTRAL)]
    await measure("central, one at a time", lambda: admit(grants, central, few), few)
    many = 64
    await measure(
        f"central, {many} at a time",
        lambda: asyncio.gather(*(admit(grants, central, few // 8) for _ in range(many))),
        few // 8 * many,
    )
    await measure(
        f"two leased and one central, {many} at a time",
        lambda: asyncio.gather(*(admit(grants, ALL, few // 8) for _ in range(many))),
        few // 8 * many,
    )
    await side_by_side(grants)
    await grants.stop()
    await state.close()


if __name__ == "__main__":
    data = Path(tempfile.mkdtemp(prefix="pb"))
    server = subprocess.Popen(bundled_state.command(data), stdout=subprocess.DEVNULL)
    try:
        address = f"unix://{bundled_state.socket_path(data)}"
        bundled_state.wait_ready(address, 10)
        connect(address).set(EPOCH, "bench.1000")
        print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores")
        asyncio.run(main(address))
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(data, ignore_errors=True)
