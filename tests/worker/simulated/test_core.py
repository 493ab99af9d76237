"""The engine core on a virtual clock: tokens, cache, batch, order, preemption, and that time adds up to the formula."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capacity.policy.cost import request_cost
from capacity.policy.profiles import KNEE, default_profile, simulated_options
from worker.simulated.cache import Holding, KvCache, block_hashes
from worker.simulated.profile import EngineProfile, ProfileError, check_profile, load_profile
from worker.simulated.scheduler import Scheduler, Sequence
from worker.simulated.tokenizer import END, FIRST_WORD, ROLES, VOCABULARY, decode, encode, encode_chat

PROFILE = EngineProfile(step_floor_ms=0.001)


def sequence(prompt: int | list[int] = 32, output: int = 4, **more) -> Sequence:
    tokens = list(range(prompt)) if isinstance(prompt, int) else prompt
    return Sequence([t % 256 for t in tokens], max_tokens=output, eos_after=None, seed=1, **more)


class Bench:
    """Runs a scheduler to the end, and notes what happened when."""

    def __init__(self, profile: EngineProfile = PROFILE, **more) -> None:
        self.core = Scheduler(profile, **more)
        self.now = 0.0
        self.tokens: Counter[Sequence] = Counter()
        self.finished: list[tuple[Sequence, str, float]] = []
        self.most_running = 0

    def step(self) -> bool:
        step = self.core.begin(self.now)
        if step is None:
            return False
        assert sum(count for _, count in step.work) <= self.core.profile.max_num_batched_tokens
        self.most_running = max(self.most_running, len(self.core.running))
        self.now += step.duration_ms / 1000
        for seq, _, reason in self.core.finish(step, self.now):
            self.tokens[seq] += 1
            if reason:
                self.finished.append((seq, reason, self.now))
        assert 0.0 <= self.core.cache.usage <= 1.0
        return True

    def run(self, *sequences: Sequence) -> Bench:
        for seq in sequences:
            self.core.add(seq, self.now)
        while self.core.has_work:
            assert self.step(), "work is left, but no step"
        assert self.core.cache.usage == 0.0
        return self

    @property
    def order(self) -> list[Sequence]:
        return [seq for seq, _, _ in self.finished]


# Tokens


@given(st.text())
def test_any_text_comes_back_exactly(text):
    assert decode(encode(text)) == text


@given(st.lists(st.sampled_from([*range(FIRST_WORD, len(VOCABULARY)), ord(".")]), max_size=60))
def test_what_the_engine_says_is_the_same_tokens_when_it_comes_back(ids):
    assert encode(decode(ids)) == ids


def test_vocabulary_has_no_duplicates_and_markers_in_a_text_are_plain_bytes():
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert max(encode("<|end|><|user|>")) < 256


def test_a_chat_is_a_prefix_of_its_continuation():
    first = [("system", "Be brief."), ("user", "Hello there")]
    answer = decode([FIRST_WORD, FIRST_WORD + 5, ord(".")])
    asked = encode_chat(first)
    continued = encode_chat([*first, ("assistant", answer), ("user", "And then?")])
    full = [*asked, *encode(answer), END]
    assert continued[: len(full)] == full
    assert continued[-1] == ROLES["assistant"]


# Cache


def test_equal_prefixes_share_hashes_and_salts_part_them():
    tokens = list(range(64))
    assert block_hashes(tokens, "a", []) == block_hashes(tokens[:48], "a", []) + block_hashes(tokens, "a", [])[3:]
    assert not set(block_hashes(tokens, "a", [])) & set(block_hashes(tokens, "b", []))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 120), st.booleans()), max_size=40), st.integers(8, 20))
def test_the_cache_never_holds_more_than_it_has_and_forgets_nothing_in_use(steps, blocks):
    cache, held = KvCache(blocks), []
    for family, length, keep in steps:
        tokens = [family * 1000 + i for i in range(length)]
        hashes = block_hashes(tokens, "", [])
        hit = cache.lookup(hashes, length)
        needed = -(-length // 16)
        if not cache.can_admit(hashes, hit, needed):
            if held:
                cache.release(held.pop(0)[0])
            continue
        holding = Holding()
        cache.admit(holding, hashes, hit)
        assert cache.grow(holding, length)
        cache.publish(holding, hashes, length)
        assert holding.blocks == needed
        if keep:
            held.append((holding, hashes, length))
        else:
            cache.release(holding)
        for _, kept, tokens_held in held:
            assert cache.lookup(kept, tokens_held + 1) == tokens_held // 16
        distinct = {value for h, _, _ in held for value in h.published}
        assert cache.usage * blocks == pytest.approx(len(distinct) + sum(h.open_blocks for h, _, _ in held))
    for holding, _, _ in held:
        cache.release(holding)
    assert cache.usage == 0.0
    assert cache.grow(Holding(), blocks * 16), "everything can be taken again"


# Scheduler


def cost_ms(p: EngineProfile, prompt: int, cached: int, output: int) -> float:
    """The documented formula, written out; the context of each output token is counted one by one."""
    context = sum(prompt + k for k in range(output))
    prefill = p.alpha_ms * (prompt - cached) + p.epsilon_ms * (prompt**2 - cached**2)
    return p.base_ms + prefill + p.beta_ms * output + p.gamma_ms * context


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(1, 8),
    st.integers(20, 300),
)
@settings(deadline=None, max_examples=50)
def test_engine_time_adds_up_to_the_formula_whatever_the_batch(shapes, slots, budget):
    profile = EngineProfile(step_floor_ms=1e-9, max_num_seqs=slots, max_num_batched_tokens=budget)
    draw = random.Random(len(shapes))
    sequences = [
        Sequence([draw.randrange(256) for _ in range(prompt)], max_tokens=output, eos_after=None, seed=1)
        for prompt, output in shapes
    ]
    bench = Bench(profile).run(*sequences)
    expected = sum(cost_ms(profile, s.prompt_tokens, s.cached_tokens or 0, s.max_tokens) for s in sequences)
    assert bench.now * 1000 == pytest.approx(expected, rel=1e-6)
    assert bench.most_running <= slots
    assert all(bench.tokens[s] == s.max_tokens for s in sequences)
    assert {reason for _, reason, _ in bench.finished} == {"length"}


@pytest.mark.parametrize(("prompt", "output"), [(2000, 20), (200, 200), (50, 800)])
def test_a_saturated_replica_supplies_what_its_pool_says_whatever_the_shape(prompt, output):
    """100 MU/min at the knee: the engine saturates within 10 % of 100 / KNEE of the pool's own price."""
    price = default_profile()
    profile = EngineProfile(**simulated_options(price), max_num_seqs=64)
    bench = Bench(profile)
    draw = random.Random(3)
    for _ in range(400):
        tokens = [draw.randrange(256) for _ in range(prompt)]
        bench.core.add(Sequence(tokens, max_tokens=output, eos_after=None, seed=1), 0.0)
    # From a full batch on, until the queue is empty: neither the ramp up nor the tail is saturation.
    while bench.core.waiting > 330:
        bench.step()
    began, done = bench.now, len(bench.finished)
    while bench.core.waiting:
        bench.step()
    finished = len(bench.finished) - done
    mu = finished * request_cost(price, input_tokens=prompt, output_tokens=output)
    assert mu / (bench.now - began) * 60 * KNEE == pytest.approx(100.0, rel=0.1)


def test_an_idle_engine_takes_the_floor_for_each_step():
    bench = Bench(EngineProfile(step_floor_ms=10.0)).run(sequence(32, output=20))
    assert bench.now == pytest.approx(0.010 * 20)


def test_steps_grow_with_batch_and_context():
    profile = EngineProfile(step_floor_ms=0.001, gamma_ms=0.001)

    def last_step_ms(count: int, prompt: int) -> float:
        bench = Bench(profile)
        for i in range(count):
            bench.core.add(sequence([i, *range(prompt)], output=3), 0.0)
        while bench.core.has_work:
            before = bench.now
            bench.step()
        return (bench.now - before) * 1000

    assert last_step_ms(8, 64) == pytest.approx(8 * last_step_ms(1, 64))
    assert last_step_ms(1, 640) > 1.5 * last_step_ms(1, 64)


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode():
    bench = Bench(EngineProfile(step_floor_ms=1.0, max_num_batched_tokens=256))
    chatting, long = sequence(16, output=50), sequence([7] * 5000, output=1)
    bench.core.add(chatting, 0.0)
    bench.step()
    bench.core.add(long, bench.now)
    gaps = []
    while not bench.tokens[long]:
        before = bench.tokens[chatting]
        bench.step()
        gaps.append(bench.tokens[chatting] - before)
    assert len(gaps) == 20
    assert set(gaps) == {1}


def test_priority_overtakes_the_queue_but_not_a_running_slot():
    profile = EngineProfile(step_floor_ms=1.0, max_num_seqs=2)
    bench = Bench(profile)
    crowd = [sequence([i] * 20, output=10) for i in range(8)]
    for seq in crowd:
        bench.core.add(seq, 0.0)
    bench.step()
    probe = sequence([99] * 4, output=1, priority=-1000)
    bench.run(probe)
    assert bench.order.index(probe) == 2, "after the two that ran, before the six that waited"
    fcfs = Bench(profile, is_priority=False)
    for i in range(8):
        fcfs.core.add(sequence([i] * 20, output=10), 0.0)
    late = sequence([99] * 4, output=1, priority=-1000)
    fcfs.run(late)
    assert fcfs.order[-1] is late


def test_a_repeated_prompt_hits_the_cache_except_for_its_last_block_and_another_salt():
    bench = Bench()
    first, again, salted = sequence(160), sequence(160), sequence(160, salt="tenant")
    bench.run(first)
    bench.run(again)
    bench.run(salted)
    assert [s.cached_tokens for s in (first, again, salted)] == [0, 144, 0]
    assert bench.core.counters.cached_tokens == 144
    assert bench.core.counters.prompt_tokens == 480


def test_an_answer_that_comes_back_as_history_is_cached_too():
    bench = Bench()
    first = sequence(40, output=30)
    bench.run(first)
    follow_up = Sequence([*first.tokens, 1, 2, 3], max_tokens=1, eos_after=None, seed=1)
    bench.run(follow_up)
    assert follow_up.cached_tokens == 64, "prompt and answer: 69 computed tokens are 4 full blocks"


def test_the_least_recently_used_prefix_is_evicted_first():
    bench = Bench(EngineProfile(step_floor_ms=1.0, kv_tokens=320, max_model_len=300))
    a, b, c = ([x] * 100 for x in (1, 2, 3))
    bench.run(sequence(a, output=1))
    bench.run(sequence(b, output=1))
    bench.run(sequence(a, output=1))
    bench.run(sequence(c, output=1))
    bench.run(sequence([4] * 60, output=1))
    kept = sequence(a, output=1)
    shortened = sequence(b, output=1)
    bench.run(kept)
    bench.run(shortened)
    assert kept.cached_tokens == 96
    assert shortened.cached_tokens == 64, "20 blocks for 22: the last two of the oldest prefix went"


@given(st.integers(2, 10), st.integers(0, 3))
@settings(deadline=None)
def test_when_the_cache_is_short_the_least_urgent_are_preempted_and_all_still_finish(count, urgent):
    profile = EngineProfile(step_floor_ms=1.0, kv_tokens=512, max_model_len=300, max_num_seqs=16)
    sequences = [sequence([i] * 40, output=200, priority=-1 if i < urgent else 0) for i in range(count)]
    bench = Bench(profile).run(*sequences)
    assert all(bench.tokens[s] == 200 for s in sequences)
    if count >= 4:
        assert bench.core.counters.preemptions > 0
        # Two of 240 tokens fit: among the urgent ones, those that came first finish before all others.
        first = sorted(sequences, key=lambda s: s.urgency)[:1]
        assert bench.order[0] in first


def test_an_ended_sequence_gives_its_place_back_at_once():
    bench = Bench(EngineProfile(step_floor_ms=1.0, max_num_seqs=1))
    running, waiting, third = sequence([1] * 50, 1000), sequence([2] * 50, 1000), sequence([3] * 50, 2)
    for seq in (running, waiting, third):
        bench.core.add(seq, 0.0)
    bench.step()
    step = bench.core.begin(bench.now)
    bench.core.end(running, "abort")
    bench.core.end(waiting, "abort")
    bench.core.end(waiting, "abort")
    assert bench.core.finish(step, bench.now) == []
    assert (len(bench.core.running), bench.core.waiting) == (0, 1)
    bench.run()
    assert bench.order == [third]
    assert bench.core.counters.finished["abort"] == 2


def test_equal_seeds_say_the_same_and_different_ones_do_not():
    def say(seed: int) -> list[int]:
        seq = Sequence([1, 2, 3], max_tokens=40, eos_after=None, seed=seed)
        Bench().run(seq)
        return seq.tokens[3:]

    assert say(5) == say(5)
    assert say(5) != say(6)
    assert len(set(say(5))) > 10


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_random_traffic_with_aborts_leaves_nothing_behind(data):
    profile = EngineProfile(step_floor_ms=1.0, kv_tokens=640, max_model_len=300, max_num_seqs=4)
    bench, open_sequences = Bench(profile), []
    for _ in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(["add", "step", "step", "abort"]))
        if action == "add":
            shape = data.draw(st.tuples(st.integers(1, 200), st.integers(1, 90), st.integers(-2, 2)))
            open_sequences.append(sequence([shape[2] + 5] * shape[0], shape[1], priority=shape[2]))
            bench.core.add(open_sequences[-1], bench.now)
        elif action == "abort" and open_sequences:
            bench.core.end(data.draw(st.sampled_from(open_sequences)), "abort")
        else:
            bench.step()
    bench.run()
    ended = Counter(reason for _, reason, _ in bench.finished)
    assert ended["length"] == bench.core.counters.finished["length"]
    assert sum(bench.core.counters.finished.values()) == len(open_sequences)
    assert bench.core.waiting == 0


# Profile


def test_profiles_are_read_from_json_and_files_and_checked(tmp_path):
    assert load_profile("{}") == EngineProfile()
    path = tmp_path / "profile.json"
    path.write_text('{"max_num_seqs": 3}')
    assert load_profile(str(path)).max_num_seqs == 3
    for bad in ('{"unknown": 1}', "{", '{"kv_tokens": 100}', '{"beta_ms": -1}', str(tmp_path / "none.json")):
        with pytest.raises(ProfileError):
            load_profile(bad)
    with pytest.raises(ProfileError, match="take time"):
        check_profile(EngineProfile(step_floor_ms=0.0, beta_ms=0.0))


def test_urgency_orders_by_priority_then_arrival():
    core = Scheduler(PROFILE)
    sequences = [sequence(4, priority=p) for p in (1, 0, -1, 0)]
    for seq in sequences:
        core.add(seq, 0.0)
    assert [sequences.index(s) for s in sorted(sequences)] == [2, 1, 3, 0]
    assert all(a < b for a, b in pairwise(sorted(sequences)))
