"""The parts of a measurement that need no engine: rates out of answers, arrivals, prompts, CPU clocks, what is kept."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.calibration.client import Usage, read_usage
from worker.calibration.cpu import cpu_seconds, spent_seconds
from worker.calibration.load import LEAST_REQUESTS, least_rounds, percentiles, plan_level, steady_s
from worker.calibration.prompts import LEAST_WORDS, WORDS, Prompts, best_words
from worker.calibration.record import Record, load_record, save_record
from worker.spec import LEAST_PROMPTS, STEP_TOKENS, CalibrationOrder, CostPoint, LevelPoint, Shape, saturating_slots


# --------------------------------------------------------------------- how many requests saturate an engine
@pytest.mark.parametrize(
    ("input_tokens", "cached_tokens", "output_tokens", "slots"),
    [
        (16, 0, 1, 145),
        (904, 0, 1, 37),
        (6_963, 0, 1, 5),
        (27_852, 0, 1, LEAST_PROMPTS),
        (27_852, 27_776, 1, 16),
        (6_963, 0, 64, 65),
        (16, 0, 64, 145),
    ],
)
def test_long_prompts_alone_need_few_requests_to_saturate_an_engine(
    input_tokens: int, cached_tokens: int, output_tokens: int, slots: int
) -> None:
    """145 slots, 462,944 tokens of cache: an 8B model on an 80 GB accelerator at a target concurrency of 128. Four
    rounds of 66 prompts of 6,963 tokens took it 48 s; six of five take 5.5."""
    shape = Shape(input_tokens=input_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens)
    assert saturating_slots(shape, slots=145, kv_tokens=462_944) == slots


@given(
    tokens=st.tuples(st.integers(1, 131_072), st.integers(1, 512)),
    slots=st.integers(1, 512),
    kv_tokens=st.none() | st.integers(1, 1_000_000),
)
def test_they_are_never_more_than_its_slots_and_cache_nor_fewer_than_fill_a_step(
    tokens: tuple[int, int], slots: int, kv_tokens: int | None
) -> None:
    shape = Shape(input_tokens=tokens[0], output_tokens=tokens[1])
    found = saturating_slots(shape, slots=slots, kv_tokens=kv_tokens)
    most = slots if kv_tokens is None else max(1, min(slots, kv_tokens // sum(tokens)))
    assert 1 <= found <= most
    if found < most:
        assert tokens[1] == 1
        assert found >= LEAST_PROMPTS
        assert found * tokens[0] >= STEP_TOKENS


# --------------------------------------------------------------------- engine time out of the ends of answers
def ends_in_rounds(each_s: float, slots: int, rounds: int, *, staggered: float, start_s: float = 0.3) -> list[float]:
    """Requests that run ``slots`` at a time and end in the same pattern each round. ``staggered`` 0: all at once."""
    period = each_s * slots
    return [
        start_s + turn * period + staggered * each_s * number
        for turn in range(1, rounds + 1)
        for number in range(slots)
    ]


@settings(deadline=None)
@given(st.floats(1e-4, 2.0), st.integers(1, 40), st.floats(0.0, 1.0))
def test_the_time_of_a_request_is_found_however_a_round_ends(each_s: float, slots: int, staggered: float) -> None:
    ends = ends_in_rounds(each_s, slots, least_rounds(slots), staggered=staggered)
    assert steady_s(ends, slots) == pytest.approx(each_s, rel=1e-6)


@settings(deadline=None)
@given(st.floats(0.001, 0.5), st.integers(2, 20), st.integers(0, 2**32))
def test_answers_that_were_delayed_on_their_way_change_little(each_s: float, slots: int, seed: int) -> None:
    """One in six is late by up to a whole round, as when this process was kept from running."""
    dice = random.Random(seed)
    ends = ends_in_rounds(each_s, slots, 12, staggered=0.5)
    late = sorted(each + (dice.random() * slots * each_s if dice.random() < 1 / 6 else 0.0) for each in ends)
    assert steady_s(late, slots) == pytest.approx(each_s, rel=0.1)


def test_the_ramps_do_not_count() -> None:
    """A slow first round and a last one with half-empty slots: the engine was not saturated in them."""
    ends = ends_in_rounds(0.01, 8, 8, staggered=1.0)
    bent = [each - 0.05 if number < 8 else each for number, each in enumerate(ends)]
    bent = [each + 0.2 if number >= len(bent) - 8 else each for number, each in enumerate(bent)]
    assert steady_s(bent, 8) == pytest.approx(0.01)


def test_answers_that_are_seen_in_a_burst_do_not_tell() -> None:
    """As of a real one: 0.03 ms for what takes 3, when the machine was full and the client did not run for a while."""
    seen = [0.03 * number if number < 100 else 3.0 + 0.00003 * number for number in range(1000)]
    assert steady_s(seen, 8) is None


@pytest.mark.parametrize("count", [0, 1, 12, 31])
def test_too_few_answers_tell_nothing(count: int) -> None:
    assert steady_s([0.1 * each for each in range(count)], 8) is None


# --------------------------------------------------------------------- arrivals
@settings(deadline=None)
@given(st.floats(0.1, 500.0), st.floats(0.5, 30.0), st.integers(0, 2**32))
def test_exactly_as_many_arrive_as_the_rate_says(rate: float, window_s: float, seed: int) -> None:
    plan = plan_level(rate, window_s, random.Random(seed))
    length = plan.closes_s - plan.opens_s
    within = [each for each in plan.due if plan.opens_s <= each <= plan.closes_s]
    assert len(within) == pytest.approx(max(1, rate * length), abs=1)
    assert list(plan.due) == sorted(plan.due)
    assert window_s * (1 - 1e-9) <= length <= 3 * window_s * (1 + 1e-9)
    assert len(within) >= min(LEAST_REQUESTS - 1, rate * 3 * window_s - 1), "a slow engine is watched for longer"


def test_arrivals_are_random_and_not_even() -> None:
    plan = plan_level(100.0, 10.0, random.Random(1))
    gaps = [later - earlier for earlier, later in zip(plan.due, plan.due[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread / mean == pytest.approx(1.0, abs=0.15), "gaps are as those of a Poisson process"


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1e6), max_size=200))
def test_percentiles_are_values_that_came(values: list[float]) -> None:
    found = percentiles(values)
    if not values:
        assert found == {}
        return
    assert found["p50"] <= found["p95"] <= found["p99"]
    for share in (50, 95, 99):
        value = found[f"p{share}"]
        assert sum(each <= value + 0.001 for each in values) >= share / 100 * len(values)
        assert any(abs(each - value) <= 0.001 for each in values)


# --------------------------------------------------------------------- prompts
def prompts(word_tokens: float = 1, extra: float = 0) -> Prompts:
    return Prompts(WORDS, word_tokens=word_tokens, extra_tokens=extra, rng=random.Random(3))


@settings(deadline=None)
@given(st.integers(8, 5000), st.integers(1, 4), st.integers(0, 3))
def test_a_prompt_has_the_tokens_it_should_have(tokens: int, each: int, extra: int) -> None:
    made = prompts(each, extra).unique(tokens)
    assert abs(made.count(" ") * each + extra - tokens) <= each
    assert not made.endswith(" ")


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 3), st.integers(1, 500))
def test_a_cached_prefix_covers_its_blocks_and_the_rest_is_new(blocks: int, each: int, extra: int, more: int) -> None:
    maker, cached = prompts(each, extra), blocks * 16
    prefix = maker.prefix(cached)
    assert cached <= prefix.count(" ") * each + extra < cached + each
    whole = prefix + maker.rest(prefix, cached + more)
    assert whole.startswith(prefix)
    assert whole.count(" ") > prefix.count(" "), "at least a word is always new"
    assert abs(whole.count(" ") * each + extra - max(cached + more, prefix.count(" ") * each + each + extra)) <= each


def test_no_two_prompts_begin_alike() -> None:
    maker = prompts()
    begun = {" ".join(maker.unique(200).split(" ")[:17]) for _ in range(500)}
    assert len(begun) == 500, "no block of one is another's"


def test_words_of_one_length_are_chosen_the_shortest_that_are_enough() -> None:
    few = dict.fromkeys(WORDS[: LEAST_WORDS - 1], 1)
    many = dict.fromkeys(WORDS[30 : 30 + LEAST_WORDS], 2)
    best = best_words(few | many | {"odd": 3})
    assert best is not None
    assert best[1] == 2
    assert set(best[0]) == set(many)
    assert best_words(few) is None
    assert best_words({}) is None


# --------------------------------------------------------------------- clocks and answers
def test_the_cpu_time_of_a_process_is_what_the_kernel_bills_it() -> None:
    code = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        before = cpu_seconds([child.pid])
        end = time.monotonic() + 20
        while cpu_seconds([child.pid])[child.pid] < 0.4 and time.monotonic() < end:
            time.sleep(0.05)
        spent = spent_seconds(before, cpu_seconds([child.pid]))
        assert spent is not None
        assert 0.3 < spent < 2.0
        own = cpu_seconds([child.pid])[child.pid]
    finally:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        child.communicate(b"\n", timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    billed = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    assert own == pytest.approx(billed, abs=0.1)
    assert cpu_seconds([child.pid]) == {}, "one that has ended has no clock"


def test_a_process_that_ended_meanwhile_leaves_nothing_to_tell() -> None:
    assert spent_seconds({1: 5.0, 2: 1.0}, {1: 6.0}) is None
    assert spent_seconds({1: 5.0}, {1: 6.0, 3: 0.5}) == 1.5


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        (b'{"usage": {"prompt_tokens": 7, "completion_tokens": 3}}', Usage(7, 3, None)),
        (
            b'{"usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": null}}',
            Usage(7, 3, None),
        ),
        (
            b'{"usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}}',
            Usage(7, 3, 4),
        ),
        (b'{"usage": null}', None),
        (b'{"usage": {"prompt_tokens": 7}}', None),
        (b"[]", None),
        (b"not JSON", None),
    ],
)
def test_usage_is_read_as_engines_write_it(data: bytes, usage: Usage | None) -> None:
    assert read_usage(data) == usage


# --------------------------------------------------------------------- the record
def test_a_record_survives_its_agent(tmp_path: Path) -> None:
    (tmp_path / "r1").mkdir()
    shape = Shape(input_tokens=16, cached_tokens=0, output_tokens=4)
    record = Record(order=CalibrationOrder(calibration_id="c", shapes=(shape,)), state="measuring", method="saturated")
    record.points[0] = CostPoint(shape=shape, engine_ms=(1.0, 1.1), input_tokens=16.0, output_tokens=4.0)
    record.levels.append(
        LevelPoint(
            rate_per_s=2.0, completed=20, seconds=10.0, input_tokens=320, cached_tokens=0, output_tokens=80,
            ttft_ms={"p50": 3.0}, tpot_ms={}, attained=1.0, requests=20,
        )
    )  # fmt: skip
    save_record(tmp_path, "r1", record)
    assert load_record(tmp_path, "r1") == record
    assert load_record(tmp_path, "r2") is None
    (tmp_path / "r1" / "calibration.json").write_text("{broken")
    assert load_record(tmp_path, "r1") is None


def test_progress_grows_and_is_whole_only_at_the_end() -> None:
    shapes = tuple(Shape(input_tokens=each) for each in (16, 32, 64))
    order = CalibrationOrder(calibration_id="c", shapes=shapes, repeats=2, mix=shapes, max_levels=4)
    record = Record(order=order)
    shares = [record.share]
    for repeat in range(2):
        for index, shape in enumerate(shapes):
            record.points[index] = CostPoint(shape=shape, engine_ms=(1.0,) * (repeat + 1))
            shares.append(record.share)
    level = LevelPoint(
        rate_per_s=1.0, completed=1, seconds=1.0, input_tokens=1, cached_tokens=0, output_tokens=1,
        ttft_ms={}, tpot_ms={}, attained=1.0,
    )  # fmt: skip
    for _ in range(6):
        record.levels.append(level)
        shares.append(record.share)
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] < 1.0
    record.state = "done"
    assert record.share == 1.0
