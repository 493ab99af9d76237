"""The real agent calibrates an engine whose coefficients only that engine's process knows."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from capacity.policy import fit
from capacity.policy.cost import CostProfile, request_breakdown
from capacity.policy.knee import find_knee, reference_profile, supply_mu_per_min
from tests.conftest import ValkeyServer
from tests.worker.conftest import AgentUnderTest, order, wait_for
from tests.worker.hidden_runtime import TRUTH
from worker.simulated.profile import EngineProfile
from worker.simulated.scheduler import Scheduler, Sequence
from worker.spec import CalibrationOrder, CalibrationReport, Shape

pytestmark = [pytest.mark.slow, pytest.mark.timed, pytest.mark.timeout(300)]

# Few tokens that are dear: what the engine's process itself computes for each is little beside what it pretends to.
SHAPES = (
    *(Shape(input_tokens=each, output_tokens=1) for each in (16, 64, 128, 256, 480)),
    *(Shape(input_tokens=each, output_tokens=12) for each in (16, 64, 256, 480)),
    Shape(input_tokens=16, output_tokens=28),
    *(Shape(input_tokens=each, cached_tokens=each // 32 * 16, output_tokens=1) for each in (256, 480)),
)
MIX = (
    Shape(input_tokens=32, output_tokens=8),
    Shape(input_tokens=128, output_tokens=4),
    Shape(input_tokens=128, cached_tokens=64, output_tokens=4),
)
ORDER = CalibrationOrder(
    calibration_id="exact", shapes=SHAPES, repeats=3, mix=MIX, ttft_objective_ms=150.0, tpot_objective_ms=60.0,
    attained_share=0.95, window_s=3.0, max_concurrency=2, batch_s=0.6, max_levels=10,
)  # fmt: skip
TOLERANCE = 0.05
KNEE_TOLERANCE = 0.10


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentUnderTest]:
    server = ValkeyServer()
    server.start()
    agent = AgentUnderTest(tmp_path_factory.mktemp("hidden"), server)
    agent.start()
    try:
        yield agent
    finally:
        agent.clean_up()
        agent.client.close()
        server.remove()


@pytest.fixture(scope="module")
def measured(house: AgentUnderTest) -> CalibrationReport:
    options = {"max_model_len": 512, "kv_tokens": 16384, "step_floor_ms": 0.01}
    house.give(order("r1", runtime="hidden", options=options, target_concurrency=2, calibration=ORDER))
    shares: list[float] = []

    def ask() -> CalibrationReport | None:
        for report in house.reports():
            for each in report.replicas:
                found = each.calibration
                assert each.phase != "failed", each.reason
                if found is not None:
                    assert found.state != "failed", found.reason
                    shares.append(found.share)
                    if found.state == "done":
                        return found
        return None

    done = wait_for("a calibration", ask, seconds=200)
    assert shares == sorted(shares), "progress never goes back"
    return done


@pytest.fixture(scope="module")
def truth(house: AgentUnderTest, measured: CalibrationReport) -> dict[str, Any]:
    """What the engine drew for itself: read only when everything has been measured."""
    found: dict[str, Any] = json.loads((house.folder / "replicas" / "r1" / TRUTH).read_text())
    return found


def missed(times: CostProfile, truth: dict[str, Any]) -> dict[str, float]:
    """The terms that are off by more than ``TOLERANCE``, and by how much."""
    off = {
        name: getattr(times, name) / truth[f"{name}_ms"] - 1.0 for name in ("base", "alpha", "beta", "gamma", "epsilon")
    }
    return {name: round(share, 3) for name, share in off.items() if abs(share) > TOLERANCE}


def test_the_hidden_coefficients_are_recovered(measured: CalibrationReport, truth: dict[str, Any]) -> None:
    assert measured.method == "saturated"
    assert measured.engine_version == "0.32.0+simulated"
    assert [each.shape for each in measured.points] == list(SHAPES)
    assert all(len(each.engine_ms) == ORDER.repeats for each in measured.points)
    for each in measured.points:
        counted = (each.input_tokens, each.cached_tokens, each.output_tokens)
        assert counted == (each.shape.input_tokens, each.shape.cached_tokens, each.shape.output_tokens)
    found = fit.fit_costs(measured.points)
    assert not missed(found.times, truth), found
    # A cached token costs this engine nothing: what is left is at most what noise makes of it.
    assert found.times.cached_factor < 0.15
    assert found.r2 > 0.995
    assert found.mean_error < 0.03
    assert found.max_error < 0.10


def test_a_fit_without_gamma_is_found_out(
    measured: CalibrationReport, truth: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above can fail: a fit that knows no attention of the decode does not pass it."""

    def without_gamma(profile: CostProfile, **tokens: Any) -> Any:
        return dataclasses.replace(request_breakdown(profile, **tokens), decode_attention=0.0)

    monkeypatch.setattr(fit, "request_breakdown", without_gamma)
    found = fit.fit_costs(measured.points)
    assert found.times.gamma == 0.0
    assert "gamma" in {each.term for each in found.dropped}
    assert missed(found.times, truth).keys() >= {"beta", "gamma"}


def test_the_knee_is_where_the_engines_own_scheduler_has_it(measured: CalibrationReport, truth: dict[str, Any]) -> None:
    found = fit.fit_costs(measured.points)
    knee = find_knee(
        measured.levels,
        mix=MIX,
        times=found.times,
        attained_share=ORDER.attained_share,
        max_concurrency=ORDER.max_concurrency,
        saturation_per_s=measured.saturation_per_s,
    )
    assert not knee.is_lower_bound
    assert knee.share is not None
    assert 0.5 < knee.share < 1.0
    assert knee.rate_per_s == pytest.approx(oracle_knee(truth), rel=KNEE_TOLERANCE)
    profile = reference_profile(found.times, knee, version=2)
    assert supply_mu_per_min(knee, profile, mix=MIX) == pytest.approx(100.0)


# --------------------------------------------------------------------- the oracle: a virtual clock, a load of its own
def oracle_knee(truth: dict[str, Any]) -> float:
    """Requests per second at which 95 % of the requests keep their objectives, by bisection over a long run each."""
    low, high = 10.0, 300.0
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if oracle_attained(truth, middle) >= 0.95 else (low, middle)
    return (low * high) ** 0.5


def oracle_attained(truth: dict[str, Any], rate_per_s: float, *, count: int = 2000) -> float:
    dice = random.Random(7)
    core = Scheduler(EngineProfile(**truth))
    common = [dice.randrange(263, 600) for _ in range(64)]
    arrivals: list[tuple[float, Sequence]] = []
    at_s = 0.0
    for number in range(count):
        at_s += dice.expovariate(rate_per_s)
        fresh, cached, output = dice.choice(((32, 0, 8), (128, 0, 4), (64, 64, 4)))
        prompt = common[:cached] + [dice.randrange(263, 600) for _ in range(fresh)]
        arrivals.append((at_s, Sequence(prompt, max_tokens=output, eos_after=None, seed=number)))
    first: dict[int, float] = {}
    now, coming, kept = 0.0, 0, 0
    while coming < count or core.has_work:
        if not core.has_work:
            now = max(now, arrivals[coming][0])
        while coming < count and arrivals[coming][0] <= now:
            core.add(arrivals[coming][1], arrivals[coming][0])
            coming += 1
        step = core.begin(now)
        assert step is not None
        now += step.duration_ms / 1000.0
        for sequence, _, reason in core.finish(step, now):
            first.setdefault(sequence.number, now)
            if reason is not None:
                to_first = first[sequence.number] - sequence.arrived_at
                each = (now - first[sequence.number]) / max(1, sequence.outputs - 1)
                kept += to_first <= 0.150 and each <= 0.060
    return kept / count
