"""Estimates, limits and refusals, as properties; the oracle prices by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity.policy.cost import CostProfile
from serving.gateway.records import LimitRecord
from serving.policy import admission
from serving.policy.admission import Ask, Learned, estimate

PROFILE = CostProfile(version=1, base=0.5, alpha=0.01, beta=0.2, gamma=0.0, epsilon=0.0, cached_factor=0.1)


def run(ask: Ask, learned: Learned | None = None, *, context: int | None = None) -> admission.Estimate:
    return estimate(ask, PROFILE, learned or Learned(), key="k", deployment="d", max_model_len=context)


def teach(learned: Learned, ask: Ask, *, inputs: int, cached: int, outputs: int, times: int = 50) -> None:
    for _ in range(times):
        learned.note("k", "d", ask, input_tokens=inputs, cached_tokens=cached, output_tokens=outputs)


def test_a_first_request_is_estimated_from_its_bytes_and_its_stated_maximum() -> None:
    made = run(Ask(prompts=1, choices=1, text_bytes=400, max_output=30))
    assert (made.input_tokens, made.output_tokens, made.limit_tokens) == (100, 30, 130)
    assert made.mu == pytest.approx(0.5 + 100 * 0.01 + 30 * 0.2)


def test_inputs_that_are_only_read_make_no_output_and_reserve_none() -> None:
    ask = Ask(prompts=4, choices=0, text_bytes=4000, max_output=0)
    made = run(ask, context=4096)
    assert (made.input_tokens, made.output_tokens, made.limit_tokens, made.decode_mu) == (1000, 0, 1000, 0.0)
    learned = Learned()
    teach(learned, ask, inputs=2000, cached=0, outputs=0)
    assert run(ask, learned).input_tokens == 2000
    assert run(ask, learned).output_tokens == 0


def test_a_prompt_that_is_cut_is_estimated_as_cut_and_teaches_no_ratio() -> None:
    ask = Ask(prompts=3, choices=0, text_bytes=30_000, max_output=0, cut_to=8)
    assert run(ask).input_tokens == run(ask).limit_tokens == 24
    assert run(ask._replace(text_bytes=20)).input_tokens == 5
    assert run(ask._replace(cut_to=0)).input_tokens == 3
    to_context = ask._replace(cut_to=-1)
    assert (run(to_context).input_tokens, run(to_context, context=512).input_tokens) == (7500, 1536)
    learned = Learned()
    for cut in (ask, to_context):
        teach(learned, cut, inputs=24, cached=0, outputs=0)
    assert not learned.knows("d")
    assert run(ask._replace(cut_to=None), learned).input_tokens == 7500


def test_rows_and_bytes_are_priced_before_they_are_served_and_are_work() -> None:
    profile = CostProfile(
        version=1, base=0.5, alpha=0.0, beta=0.0, gamma=0.0, epsilon=0.0, cached_factor=0.1,
        modalities={"row": 0.25, "kib": 0.125},
    )  # fmt: skip
    ask = Ask(prompts=0, choices=0, text_bytes=0, max_output=0, units={"row": 8.0, "kib": 2.0, "unpriced": 5.0})
    made = estimate(ask, profile, Learned(), key="k", deployment="d", max_model_len=None)
    assert (made.input_tokens, made.limit_tokens) == (0, 0)
    assert made.mu == pytest.approx(0.5 + 8 * 0.25 + 2 * 0.125)
    assert made.prefill_mu == pytest.approx(made.mu - 0.5)


def test_images_are_input_tokens_and_units_and_are_learned_by_what_the_engine_counts() -> None:
    profile = CostProfile(
        version=1, base=0.5, alpha=0.01, beta=0.0, gamma=0.0, epsilon=0.0, cached_factor=0.1,
        modalities={"image_token": 0.03},
    )  # fmt: skip
    learned = Learned()

    def made(*bounds: int, media: int = 0, context: int | None = None) -> admission.Estimate:
        ask = Ask(prompts=1, choices=1, text_bytes=40, media=len(bounds) + media, images=bounds, max_output=0)
        return estimate(ask, profile, learned, key="k", deployment="d", max_model_len=context)

    first = made(1036, 4, media=1)
    assert first.input_tokens == 10 + 1036 + 512 + 512
    assert first.units == {"image_token": first.image_tokens} == {"image_token": 1036 + 512}
    assert first.mu == pytest.approx(0.5 + first.input_tokens * 0.01 + first.image_tokens * 0.03)
    assert first.prefill_mu == pytest.approx(first.mu - 0.5)
    assert made(1036, context=300).units == {"image_token": 290.0}, "the text is not the image's"
    assert made().units == {}
    one = Ask(prompts=1, choices=1, text_bytes=40, media=1, images=(1036,))
    learned.note_images("d", one._replace(media=2, images=(1036, 4)), 9999)
    learned.note_images("d", one, 0)
    assert made(1036).image_tokens == 1036, "nothing can be told of images of several sizes, or of none"
    learned.note_images("d", one._replace(media=2, images=(1036, 1036)), 468)
    assert made(1036).image_tokens == 468
    assert made(4).image_tokens == 512


@pytest.mark.parametrize(("told", "images"), [(244, 234), (5, 0), (9000, 1036), (0, 0)])
def test_images_that_the_engine_does_not_count_are_what_the_text_leaves(told: int, images: int) -> None:
    ask = Ask(prompts=1, choices=1, text_bytes=40, media=1, images=(1036,))
    assert admission.untold_units(run(ask), input_tokens=told) == {"image_token": images}
    assert admission.untold_units(run(ask._replace(media=0, images=())), input_tokens=told) == {}


def test_token_limits_reserve_the_stated_maximum_even_when_less_is_expected() -> None:
    learned = Learned()
    ask = Ask(prompts=1, choices=1, text_bytes=400, max_output=4000)
    teach(learned, ask, inputs=100, cached=0, outputs=20)
    made = run(ask, learned)
    assert made.output_tokens == 20
    assert made.limit_tokens == 4100


def test_a_steady_workload_is_learned_exactly() -> None:
    learned = Learned()
    ask = Ask(prompts=1, choices=1, text_bytes=300)
    teach(learned, ask, inputs=150, cached=75, outputs=37, times=200)
    made = run(ask, learned)
    assert made.output_tokens == 37
    assert made.input_tokens == 150
    assert made.cached_tokens in (74, 75)


def test_the_learned_output_is_the_ninth_decile() -> None:
    learned = Learned()
    ask = Ask(prompts=1, choices=1, text_bytes=300)
    for number in range(4000):
        # A step of 617 visits 1..1000 evenly, in no order that matters.
        learned.note("k", "d", ask, input_tokens=100, cached_tokens=0, output_tokens=1 + number * 617 % 1000)
    habit = learned.habit("k", "d")
    assert habit is not None
    assert 700 <= habit.output_tokens <= 1000


def test_another_key_starts_from_the_deployments_bytes_per_token() -> None:
    learned = Learned()
    ask = Ask(prompts=1, choices=1, text_bytes=800)
    teach(learned, ask, inputs=400, cached=0, outputs=5)
    other = estimate(ask, PROFILE, learned, key="new", deployment="d", max_model_len=None)
    assert other.input_tokens == 400


def test_only_so_many_keys_are_remembered() -> None:
    learned = Learned(size=10)
    for number in range(100):
        learned.note(f"k{number}", "d", Ask(1, 1, 100), input_tokens=10, cached_tokens=0, output_tokens=1)
    kept = [number for number in range(100) if learned.habit(f"k{number}", "d")]
    assert kept == list(range(90, 100))


@given(
    prompts=st.integers(1, 16),
    per_prompt=st.integers(1, 8),
    text=st.integers(0, 10**7),
    ids=st.integers(0, 10**6),
    limit=st.none() | st.integers(0, 10**9),
    context=st.none() | st.integers(1, 200_000),
)
def test_an_estimate_stays_within_the_context_and_below_the_stated_maximum(
    prompts: int, per_prompt: int, text: int, ids: int, limit: int | None, context: int | None
) -> None:
    choices = prompts * per_prompt
    ask = Ask(prompts=prompts, choices=choices, text_bytes=text, token_ids=ids, max_output=limit)
    made = run(ask, context=context)
    assert made.input_tokens >= 1
    if context is not None:
        assert made.input_tokens <= context * prompts
        assert made.output_tokens <= context * choices
    if limit is not None:
        assert made.output_tokens <= limit * choices
        assert made.limit_tokens <= made.input_tokens + limit * choices
    assert made.limit_tokens >= made.input_tokens
    assert 0 <= made.cached_tokens <= made.input_tokens
    assert math.isfinite(made.mu)
    assert made.mu >= 0.5


@given(
    st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 20000)), max_size=60
    )
)
def test_whatever_was_learned_estimates_stay_usable(seen: list[tuple[int, int, int, int]]) -> None:
    learned = Learned()
    for inputs, cached, outputs, text in seen:
        ask = Ask(prompts=1, choices=2, text_bytes=text)
        learned.note("k", "d", ask, input_tokens=inputs, cached_tokens=cached, output_tokens=outputs)
    made = run(Ask(prompts=1, choices=1, text_bytes=1000), learned)
    assert 1000 / admission.MAX_BYTES_PER_TOKEN <= made.input_tokens <= 1000 / admission.MIN_BYTES_PER_TOKEN
    assert 1 <= made.output_tokens <= 5000
    assert 0 <= made.cached_tokens <= made.input_tokens


def limit(kind: str, value: float, model: str = "") -> LimitRecord:
    return LimitRecord(id=f"{kind}-{value}-{model}", kind=kind, value=value, model=model)  # type: ignore[arg-type]


def test_limits_of_other_models_do_not_apply() -> None:
    every, mine, other = limit("concurrency", 5), limit("concurrency", 3, "m"), limit("concurrency", 1, "x")
    assert admission.applicable([every, mine, other], "m") == (every, mine)
    assert admission.applicable([every, mine, other], "m", "m:adapter") == (every, mine)


def test_only_a_token_limit_is_settled_with_tokens() -> None:
    limits = [limit("tokens_per_min", 100), limit("concurrency", 3)]
    assert admission.actual_amounts(limits, tokens=17, mu=2.5, money=1.0) == {limits[0].id: 17.0}


def test_the_tightest_limit_of_each_kind_is_told() -> None:
    told = admission.limit_headers([limit("tokens_per_min", 100), limit("tokens_per_min", 60), limit("concurrency", 3)])
    assert told == {"x-ratelimit-limit-tokens": "60", "x-ratelimit-limit-concurrency": "3"}
    fine = admission.limit_headers(
        [limit("money_per_day", 1.5), limit("mu_per_min", 0.25), limit("mu_per_month", 1e13)]
    )
    assert list(fine.values()) == ["1.5", "0.25", "10000000000000"]


@given(st.floats(0, 1e9), st.floats(-1e9, 1e9), st.sampled_from(["tokens_per_min", "requests_per_min", "concurrency"]))
def test_a_refusal_is_bounded_and_names_what_was_reached(retry: float, remaining: float, kind: str) -> None:
    said = admission.refusal(limit(kind, 100, "m"), asked=30, remaining=remaining, retry_after_s=retry)
    assert 0.001 <= said.retry_after_s <= 3600
    assert "100" in said.message
    assert "'m'" in said.message
    assert said.type == ("tokens" if kind == "tokens_per_min" else "requests")
