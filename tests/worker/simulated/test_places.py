"""Whether places or hardware limit a replica, on the simulated engine's own scheduler with a virtual clock."""

from __future__ import annotations

import random
from statistics import quantiles

import pytest

from capacity.policy.concurrency import SupplyLimit, supply_limit
from capacity.policy.cost import CostProfile
from worker.calibration.search import next_rate
from worker.simulated.profile import EngineProfile
from worker.simulated.scheduler import Scheduler, Sequence
from worker.spec import LevelPoint, Shape

CHAT = (Shape(input_tokens=64, output_tokens=40), Shape(input_tokens=128, output_tokens=20))
TTFT_S, TPOT_MS = 1.0, 50.0


class Engine:
    """The simulated engine's core on a virtual clock, with so many places."""

    def __init__(self, floor_ms: float, beta_ms: float, places: int) -> None:
        self.profile = EngineProfile(
            base_ms=0.1, alpha_ms=0.01, beta_ms=beta_ms, gamma_ms=0.0, epsilon_ms=0.0,
            step_floor_ms=floor_ms, max_num_seqs=places,
        )  # fmt: skip

    def run(self, arrivals: list[float]) -> list[tuple[float, float, int, float]]:
        """Time to the first token (s), time per token (ms), outputs and end (s) of each request, as they end."""
        core, dice = Scheduler(self.profile), random.Random(3)
        coming = [
            (at, Sequence([dice.randrange(263, 600) for _ in range(shape.input_tokens)],
                          max_tokens=shape.output_tokens, eos_after=None, seed=index))
            for index, at in enumerate(arrivals) for shape in (CHAT[index % len(CHAT)],)
        ]  # fmt: skip
        first: dict[int, float] = {}
        found, now, next_one = [], 0.0, 0
        while next_one < len(coming) or core.has_work:
            if not core.has_work:
                now = max(now, coming[next_one][0])
            while next_one < len(coming) and coming[next_one][0] <= now:
                core.add(coming[next_one][1], coming[next_one][0])
                next_one += 1
            step = core.begin(now)
            assert step is not None
            now += step.duration_ms / 1000.0
            for sequence, _, reason in core.finish(step, now):
                began = first.setdefault(sequence.number, now)
                if reason is not None:
                    each_ms = 1000.0 * (now - began) / max(1, sequence.outputs - 1)
                    found.append((began - sequence.arrived_at, each_ms, sequence.outputs, now))
        return found

    def saturation_per_s(self) -> float:
        count = 12 * self.profile.max_num_seqs
        return count / max(end for *_, end in self.run([0.0] * count))

    def level(self, rate: float, *, count: int = 300) -> LevelPoint:
        dice, at, arrivals = random.Random(5), 0.0, []
        for _ in range(count):
            at += dice.expovariate(rate)
            arrivals.append(at)
        rows = self.run(arrivals)
        cuts = [quantiles([row[index] for row in rows], n=100) for index in (0, 1)]
        return LevelPoint(
            rate_per_s=rate,
            completed=count,
            seconds=count / rate,
            input_tokens=96 * count,
            cached_tokens=0,
            output_tokens=sum(row[2] for row in rows),
            ttft_ms={name: 1000.0 * cuts[0][at - 1] for name, at in (("p50", 50), ("p95", 95), ("p99", 99))},
            tpot_ms={name: cuts[1][at - 1] for name, at in (("p50", 50), ("p95", 95), ("p99", 99))},
            attained=sum(row[0] <= TTFT_S and row[1] <= TPOT_MS for row in rows) / count,
            requests=count,
        )

    def calibrated(self) -> tuple[list[LevelPoint], SupplyLimit | None]:
        """As an agent searches, and as the control plane judges."""
        saturation, levels = self.saturation_per_s(), list[LevelPoint]()
        while True:
            rate = next_rate(levels, saturation_per_s=saturation, attained_share=0.95, max_levels=10)
            if rate is None:
                break
            levels.append(self.level(rate))
        prompt = CostProfile(version=0, base=0.1, alpha=0.01, beta=0.0, gamma=0.0, epsilon=0.0, cached_factor=0.0)
        places = self.profile.max_num_seqs
        return levels, supply_limit(
            levels, mix=CHAT, times=prompt, attained_share=0.95, max_concurrency=places, tpot_objective_ms=TPOT_MS
        )


def test_an_engine_whose_steps_are_not_full_is_limited_by_its_places() -> None:
    """A step takes 10 ms for up to 50 answers side by side, of which it is given 8: four times as many fit."""
    few = Engine(floor_ms=10.0, beta_ms=0.2, places=8)
    _, found = few.calibrated()
    assert found is not None
    assert found.recommended == 32
    gained = Engine(floor_ms=10.0, beta_ms=0.2, places=32).saturation_per_s() / few.saturation_per_s()
    assert found.factor == pytest.approx(gained, rel=0.3)


def test_raised_as_it_says_it_comes_to_where_the_hardware_is_the_limit() -> None:
    """From 4 places on: each calibration looks on from where the one before has ended, and the last one is silent."""
    places, rates = 4, list[float]()
    while True:
        engine = Engine(floor_ms=10.0, beta_ms=0.4, places=places)
        levels, found = engine.calibrated()
        rates.append(max(one.rate_per_s for one in levels if one.attained >= 0.95))
        if found is None:
            break
        assert found.recommended is not None
        places = found.recommended
        assert places <= 256
    assert places >= 25, "a step of 10 ms has room for 25 answers"
    assert rates == sorted(rates)
    assert rates[-1] > 3 * rates[0]
    assert Engine(floor_ms=10.0, beta_ms=0.4, places=4 * places).saturation_per_s() < 1.2 * engine.saturation_per_s()


@pytest.mark.parametrize("places", [4, 16])
def test_an_engine_that_is_busy_with_every_token_is_not_limited_by_places(places: int) -> None:
    """Nothing is shared between answers: twice the places make each twice as slow."""
    engine = Engine(floor_ms=0.01, beta_ms=2.0, places=places)
    assert engine.calibrated()[1] is None
    assert Engine(floor_ms=0.01, beta_ms=2.0, places=4 * places).saturation_per_s() < 1.05 * engine.saturation_per_s()
