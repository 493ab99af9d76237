"""The arbiter's script on chosen times: like the pure bucket, and exact in sum over gateways with leases."""

import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.gateway.asking import GRANTS
from serving.gateway.limits import Limit
from serving.gateway.records import LimitRecord
from serving.gateway.state import connect
from serving.policy import bucket, promises
from serving.policy.bucket import Bucket
from serving.policy.promises import Promise

AT_TIME = GRANTS.text.replace("redis.call('TIME')", "{ARGV[2], ARGV[3]}")
assert GRANTS.text != AT_TIME
BEGIN_MS = 1_000_000_000.0


class Arbiter:
    """One exchange at a time of one's own."""

    def __init__(self, url):
        self.client = connect(url)
        self.run = self.client.register_script(AT_TIME)

    def clear(self):
        self.client.flushall()
        self.client.set("penstock:epoch", "test.1000")

    def exchange(
        self, now_ms, gateway, entry, asks, key="penstock:grant:l", silence_ms=1e12, who="", is_last=True, name=""
    ):
        # Whole milliseconds and microseconds, as TIME gives them.
        seconds, micros = divmod(round(now_ms * 1000), 1_000_000)
        request = {"g": gateway, "e": "x", "life": 2000, "grace": 2000, "silence": silence_ms, "l": [entry]}
        request["a"] = [[who, is_last, ask, name, bool(name)] for ask in asks]
        keys = ["penstock:epoch", "penstock:gws", "penstock:grace-until", key]
        raw = self.run(keys=keys, args=[msgspec.msgpack.encode(request), seconds, micros])
        return msgspec.msgpack.decode(raw)


@pytest.fixture(scope="module")
def arbiter(valkey_url):
    made = Arbiter(valkey_url)
    yield made
    made.client.close()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "settle"]),
        st.integers(0, 20_000),
        st.integers(0, 800),
        st.floats(0.0, 1.5),
    ),
    min_size=5,
    max_size=40,
)


@given(steps=STEPS, window_ms=st.sampled_from([60_000.0, 10_000.0, 37_500.0, 90_000.0]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_script_and_the_pure_bucket_agree(arbiter, steps, window_ms):
    arbiter.clear()
    capacity = 600.0
    rate = bucket.rate_per_ms(capacity, window_ms)
    state, now, running, settlements = Bucket(), BEGIN_MS, [], []
    book, kept = [], {"capacity": capacity, "rate": rate}
    for number, (action, wait, amount, share) in enumerate(steps):
        who = ("", "a", "a", "b")[number % 4]
        now += wait
        if action == "settle" and running:
            at, estimate = running.pop(int(share * len(running) / 1.6))
            settlements.append(((share - 1.0) * estimate, at))
            continue
        state = bucket.drained(state, rate=rate, now_ms=now)
        for difference, at in settlements:
            if difference > 0:
                state = bucket.charged(state, difference)
            else:
                state = bucket.refunded(state, -difference, charged_at_ms=at)
        book = promises.standing(book, now)
        wanted, own = promises.admits(state.level, amount, who, book, **kept, now_ms=now)
        wait_ms = promises.wait_ms(state.level, amount, who, book, **kept, now_ms=now)
        if wanted:
            state = bucket.charged(state, amount)
            running.append((now, float(amount)))
            if own >= 0:
                del book[own]
        elif who:
            promises.promise(book, Promise(now + wait_ms, float(amount), who))
        entry = ["r", capacity, 0.0, 0.0, settlements, 0.0, 0.0, False, window_ms]
        answer = arbiter.exchange(now, "g", entry, [[[1, amount]]], who=who)
        settlements = []
        assert (answer[5][0] == 0) == wanted
        assert answer[4][0][0] == pytest.approx(state.level, abs=1e-6)
        if not wanted:
            assert answer[5][0][1] == pytest.approx(wait_ms, abs=1e-3)


def test_others_wait_for_few_requests_of_a_key_that_does_not_wait(arbiter):
    arbiter.clear()
    entry, rate = ["r", 600.0, 0.0, 0.0, [], 0.0, 0.0], 600.0 / 60_000
    assert arbiter.exchange(BEGIN_MS, "g", entry, [[[1, 600]]], who="first")[5] == [0]
    told = [arbiter.exchange(BEGIN_MS, "g", entry, [[[1, 60]]], who="impatient")[5][0][1] for _ in range(210)]
    assert told[:200] == [pytest.approx(60 * (place + 1) / rate) for place in range(200)], "each a time of its own"
    wait = arbiter.exchange(BEGIN_MS, "g", entry, [[[1, 60]]], who="patient")[5][0][1]
    assert wait == pytest.approx(60 * (promises.FIRM + 1) / rate)
    now = BEGIN_MS
    for n in range(promises.FIRM):
        now = BEGIN_MS + 60 * (n + 1) / rate
        assert arbiter.exchange(now, "g", entry, [[[1, 60]]], who="impatient")[5] == [0]
        assert arbiter.exchange(now, "g", entry, [[[1, 60]]], who="impatient")[5] != [0]
    assert arbiter.exchange(BEGIN_MS + wait, "g", entry, [[[1, 60]]], who="patient")[5] == [0]


def worst_excess(uses, capacity):
    rate = capacity / 60_000
    excess = float("-inf")
    for i, (begin, _) in enumerate(uses):
        total = 0.0
        for at, amount in uses[i:]:
            total += amount
            excess = max(excess, total - capacity - rate * (at - begin))
    return excess


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["tokens_per_min", "mu_per_min"])
def test_leases_of_several_gateways_never_break_the_bound(arbiter, kind, seed):
    """Random use from leases, exchanges at random times, asks with and without promises, refunds, gateways that die.

    Of MU, amounts are fractions, and the smallest a hundredth of the largest.
    """
    rng = random.Random(seed)
    print("seed", seed)
    arbiter.clear()
    capacity = 6000.0
    record = LimitRecord(id="l", kind=kind, value=capacity)
    names = [f"g{i}" for i in range(3)]
    limits = {name: Limit(record) for name in names}
    uses, running, now, admitted_by_lease = [], [], BEGIN_MS, 0

    def exchange(name, amount=None):
        limit = limits[name]
        entry = limit.report(amount is not None, len(names))
        who = rng.choice(("", "a", "b", "c"))
        answer = arbiter.exchange(now, name, entry, [] if amount is None else [[[1, amount]]], who=who)
        limit.reported(answer[4][0][0], answer[4][0][2], 0.0)
        if amount is not None and answer[5][0] == 0:
            limit.note(amount)
            use(name, amount)

    def use(name, amount):
        uses.append([now, amount])
        running.append((name, uses[-1]))

    for _ in range(1500):
        now += rng.expovariate(1 / 30)
        name = rng.choice(names)
        limit = limits[name]
        amount = float(rng.randrange(1, 40)) if kind == "tokens_per_min" else rng.uniform(0.4, 40.0)
        action = rng.random()
        if action < 0.6:
            if limit.lease >= amount:
                limit.take(amount)
                admitted_by_lease += 1
                use(name, amount)
            else:
                exchange(name, amount)
        elif action < 0.9:
            exchange(name)
        elif running and action < 0.995:
            owner, entry = running.pop(rng.randrange(len(running)))
            actual = entry[1] * rng.random()
            limits[owner].settlements.append((actual - entry[1], entry[0]))
            entry[1] = actual
        elif action >= 0.998:
            limits[name] = Limit(record)
            names[names.index(name)] = fresh = f"g{rng.random()}"
            limits[fresh] = limits.pop(name)
            running = [entry for entry in running if entry[0] != name]
    assert admitted_by_lease > 100
    assert worst_excess(uses, capacity) <= 1e-3


def test_what_others_have_leased_is_not_granted(arbiter):
    arbiter.clear()
    now = BEGIN_MS
    arbiter.exchange(now, "b", ["r", 6000.0, 0.0, 0.0, [], 0.0, 0.0], [])
    leased = arbiter.exchange(now, "a", ["r", 6000.0, 0.0, 0.0, [], 700.0, 0.0], [])[4][0][2]
    assert leased == 700.0
    admitted = 0
    while (answer := arbiter.exchange(now, "b", ["r", 6000.0, 0.0, 0.0, [], 0.0, 0.0], [[[1, 50]]]))[5][0] == 0:
        admitted += 50
    assert admitted == 5300
    assert answer[5][0][3] == 700.0, "the refusal says that leases stand in the way"
    arbiter.exchange(now, "a", ["r", 6000.0, 100.0, 0.0, [], 0.0, 0.0], [])
    assert arbiter.exchange(now, "b", ["r", 6000.0, 0.0, 0.0, [], 0.0, 0.0], [[[1, 100]]])[5] == [0]
    assert arbiter.exchange(now, "b", ["r", 6000.0, 0.0, 0.0, [], 0.0, 0.0], [[[1, 50]]])[5] != [0]


def test_a_dead_gateways_lease_counts_as_used(arbiter):
    arbiter.clear()
    arbiter.exchange(BEGIN_MS, "a", ["r", 6000.0, 0.0, 0.0, [], 700.0, 0.0], [])
    level = arbiter.exchange(BEGIN_MS + 2500, "b", ["r", 6000.0, 0.0, 0.0, [], 0.0, 0.0], [])[4][0][0]
    assert level == pytest.approx(700.0)
    level = arbiter.exchange(BEGIN_MS + 3500, "b", ["r", 6000.0, 0.0, 0.0, [], 0.0, 0.0], [])[4][0][0]
    assert level == pytest.approx(600.0)


TEAM = """
import asyncio, sys
from serving.gateway.demands import Demand, Granted
from serving.gateway.grants import Grants
from serving.gateway.records import LimitRecord
from serving.gateway.state import State

async def main(url, name):
    state = State(url)
    grants = Grants(state, name)
    await grants.start()
    limits = {n: LimitRecord(id=n, kind="tokens_per_min", value=100.0) for n in ("together", "by_turns")}
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        limit, count = line.split()
        asked = [grants.acquire([Demand(limits[limit], 30.0)]) for _ in range(int(count))]
        results = await asyncio.gather(*asked)
        print(sum(isinstance(r, Granted) for r in results), flush=True)
    await grants.stop()
    await state.close()

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


@pytest.mark.parametrize("count", [1, 2, 4])
def test_gateways_in_processes_of_their_own_admit_exactly_three(state_url, count):
    team = [
        subprocess.Popen(
            [sys.executable, "-c", TEAM, state_url, f"p{i}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for i in range(count)
    ]

    def ask(process, limit, times):
        process.stdin.write(f"{limit} {times}\n")
        process.stdin.flush()

    try:
        assert all(process.stdout.readline() == "ready\n" for process in team)
        for process in team:
            ask(process, "together", 20 // count)
        assert sum(int(process.stdout.readline()) for process in team) == 3
        admitted = 0
        for i in range(10):
            process = team[i % count]
            ask(process, "by_turns", 1)
            admitted += int(process.stdout.readline())
        assert admitted == 3
    finally:
        for process in team:
            process.stdin.close()
            process.wait(60)
            process.stdout.close()
