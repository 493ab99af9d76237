"""Whom to ask, what an answer means, whom to kill. Scenarios drive the policy tick by tick against a model engine."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policy.health import (
    Config,
    Memory,
    Probe,
    Sighting,
    Verdict,
    asked,
    judge,
    look,
    record_probe,
    restart_budget,
    should_probe,
)

T0 = 1_790_000_000.0
C = Config()


@dataclass
class Engine:
    """An engine as the control plane sees it: tokens flow between ``frozen`` spans; probes take ``probe_s``.

    ``tokens_every_s`` None: no real traffic. ``health`` and metrics always answer, as vLLM's do.
    """

    tokens_every_s: float | None = 0.05
    probe_s: float = 0.1
    freezes_at: float = float("inf")
    in_flight: int = 0
    full: bool = False
    """Refuses probes with 503 before they reach the core."""
    skew_s: float = 0.0
    """The gateway's clock against the loops'."""
    generated: float = 0.0
    last_token: float = 0.0

    def advance(self, now: float, tick: float) -> None:
        alive_until = min(now, self.freezes_at)
        if self.tokens_every_s and alive_until > now - tick:
            count = int(alive_until / self.tokens_every_s) - int((now - tick) / self.tokens_every_s)
            self.generated += count
            if count:
                self.last_token = int(alive_until / self.tokens_every_s) * self.tokens_every_s

    def sighting(self) -> Sighting:
        mark = {"gw": self.last_token + self.skew_s} if self.last_token else {}
        return Sighting(
            token_marks=mark,
            in_flight=self.in_flight,
            generation_tokens=self.generated,
            process_start=T0 - 100,
        )

    def probe(self, now: float) -> Probe:
        if self.full:
            return Probe(now, now + 0.01, "busy")
        if now + self.probe_s > self.freezes_at or self.probe_s > C.probe_timeout_s:
            return Probe(now, now + C.probe_timeout_s, "timeout")
        return Probe(now, now + self.probe_s, "ok")


@dataclass
class Run:
    verdicts: list[tuple[float, Verdict]] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)

    def first(self, status: str) -> float | None:
        return next((at for at, verdict in self.verdicts if verdict.status == status), None)

    @property
    def statuses(self) -> set[str]:
        return {verdict.status for _, verdict in self.verdicts}


def drive(engine: Engine, seconds: float, *, tick: float = 1.0, config: Config = C, start: float = T0) -> Run:
    memory, run, running, now = Memory(), Run(), None, start
    while now < start + seconds:
        now += tick
        engine.advance(now, tick)
        memory = Memory.from_json(memory.to_json())
        memory = look(memory, engine.sighting(), now=now, config=config)
        if running is not None and now >= running.ended_at:
            memory = record_probe(memory, running)
            if running.outcome == "ok":
                engine.generated += 1
            running = None
        if running is None and should_probe(config, memory, now=now).is_due:
            running = engine.probe(now)
            run.probes.append(now)
        run.verdicts.append((now, judge(config, memory, now=now)))
    return run


def test_under_traffic_there_is_not_one_probe():
    run = drive(Engine(tokens_every_s=0.5, in_flight=3), 300)
    assert len(run.probes) <= 1, "at most one, before the first token"
    assert {verdict.status for at, verdict in run.verdicts if at > T0 + 2} == {"alive"}


def test_an_idle_replica_is_probed_each_interval_and_is_alive():
    run = drive(Engine(tokens_every_s=None), 100)
    gaps = {b - a for a, b in zip(run.probes, run.probes[1:], strict=False)}
    assert gaps == {C.interval_s}
    assert {verdict.status for at, verdict in run.verdicts if at > T0 + 3} == {"alive"}


@pytest.mark.parametrize("tick", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("in_flight", [0, 5])
@pytest.mark.parametrize("skew", [-40.0, 0.0, 40.0])
def test_a_frozen_core_behind_a_healthy_face_is_found_within_the_stated_bound(tick, in_flight, skew):
    freeze = T0 + 60.3
    engine = Engine(freezes_at=freeze, in_flight=in_flight, skew_s=skew)
    run = drive(engine, 200, tick=tick)
    dead = run.first("dead")
    assert dead is not None
    assert freeze < dead <= freeze + C.detection_bound_s(tick)


def test_a_frozen_idle_replica_is_found_within_the_stated_bound_too():
    freeze = T0 + 60.3
    run = drive(Engine(tokens_every_s=None, freezes_at=freeze), 200)
    dead = run.first("dead")
    assert dead is not None
    assert freeze < dead <= freeze + C.detection_bound_s(1.0)


def test_the_bound_is_far_below_five_minutes():
    assert C.detection_bound_s(5.0) < 60


@pytest.mark.parametrize("tokens_every_s", [0.01, 0.5, 2.0, 4.0])
def test_overload_is_never_dead_however_long_probes_time_out(tokens_every_s):
    run = drive(Engine(tokens_every_s=tokens_every_s, probe_s=60.0, in_flight=1000), 900)
    assert "dead" not in run.statuses


def test_slow_but_progressing_is_busy():
    """A token every 8 s: probes time out in between, yet tokens keep coming."""
    run = drive(Engine(tokens_every_s=8.0, probe_s=60.0, in_flight=4), 600)
    assert "dead" not in run.statuses
    assert "busy" in run.statuses
    reason = next(verdict.reason for _, verdict in run.verdicts if verdict.status == "busy")
    assert "tokens have moved since" in reason


def test_refusing_while_tokens_move_is_busy_and_while_none_move_is_stuck():
    working = drive(Engine(tokens_every_s=8.0, full=True, in_flight=50), 600)
    assert "dead" not in working.statuses
    assert "busy" in working.statuses
    stuck = drive(Engine(full=True, in_flight=50, freezes_at=T0 + 30), 300)
    dead = stuck.first("dead")
    assert dead is not None
    assert dead <= T0 + 30 + C.busy_limit_s + C.quiet_s + C.interval_s + 2


@given(
    st.lists(st.sampled_from(["ok", "busy", "rejected", "timeout", "refused", "server_error"]), max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
)
@settings(deadline=None)
def test_no_mix_of_answers_is_deadly_while_tokens_move_and_two_failures_are_needed(outcomes, moved):
    memory, now, tokens, failures, silent_since = Memory(), T0, 0.0, 0, T0
    memory = look(memory, Sighting(generation_tokens=0.0), now=now)
    for outcome, has_moved in zip(outcomes, moved, strict=False):
        tokens += has_moved
        memory = look(memory, Sighting(generation_tokens=tokens), now=now + 1)
        if has_moved or outcome == "ok":
            failures, silent_since = 0, now + 1
        memory = record_probe(memory, Probe(now + 1.5, now + 3, outcome))
        failures += outcome not in ("ok", "busy", "rejected")
        now += 4
        verdict = judge(C, memory, now=now)
        if verdict.status == "dead":
            assert failures >= 2 or now - silent_since >= C.busy_limit_s
        assert verdict.reason


def test_a_failure_that_overlapped_with_progress_does_not_count():
    memory = look(Memory(), Sighting(generation_tokens=1.0), now=T0)
    memory = look(memory, Sighting(generation_tokens=2.0), now=T0 + 5)
    for start in (T0 + 1, T0 + 4):
        memory = record_probe(memory, Probe(start, start + 10, "timeout"))
    assert judge(C, memory, now=T0 + 15).status == "busy"


def test_tokens_that_moved_during_the_last_probe_save_the_replica():
    memory = look(Memory(), Sighting(generation_tokens=7.0), now=T0)
    for start in (T0 + 1, T0 + 13):
        memory = record_probe(memory, Probe(start, start + 10, "timeout"))
    undecided = judge(C, memory, now=T0 + 23)
    assert undecided.status == "unknown"
    assert "looked at once more" in undecided.reason
    moved = look(memory, Sighting(generation_tokens=8.0), now=T0 + 24)
    assert judge(C, moved, now=T0 + 24).status == "busy"
    still = look(memory, Sighting(generation_tokens=7.0), now=T0 + 24)
    assert judge(C, still, now=T0 + 24).status == "dead"


def test_a_loop_that_waits_for_its_probes_gets_its_verdict_at_the_tick_after_them():
    """Look, probe to the end, judge, each 5 s: the order of the probe loop."""
    memory, now, statuses = look(Memory(), Sighting(generation_tokens=7.0), now=T0), T0, []
    while len(statuses) < 8:
        now += 5
        memory = look(memory, Sighting(generation_tokens=7.0, in_flight=1), now=now)
        if should_probe(C, memory, now=now).is_due:
            memory = record_probe(memory, Probe(now, now + C.probe_timeout_s, "timeout"))
            now += C.probe_timeout_s
        statuses.append((now, judge(C, memory, now=now).status))
    assert next(at for at, status in statuses if status == "dead") <= T0 + C.detection_bound_s(5.0)
    asked = should_probe(C, memory, now=memory.failures[-1].ended_at + 4 * C.interval_s)
    assert asked.is_due, "a spared replica may have recovered"


def test_an_answer_that_refuses_the_question_says_nothing_about_the_core():
    memory = look(Memory(), Sighting(generation_tokens=7.0), now=T0)
    for start in range(0, 600, 5):
        memory = record_probe(memory, Probe(T0 + start, T0 + start + 0.1, "rejected", "HTTP 404"))
        memory = look(memory, Sighting(generation_tokens=7.0), now=T0 + start + 1)
        assert judge(C, memory, now=T0 + start + 1).status == "unknown"


def test_one_probe_at_a_time_and_one_whose_process_died_is_given_up():
    memory = asked(look(Memory(), Sighting(), now=T0), now=T0)
    memory = Memory.from_json(memory.to_json())
    waiting = should_probe(C, memory, now=T0 + C.probe_timeout_s)
    assert (waiting.is_due, waiting.reason) == (False, "a probe is under way")
    assert should_probe(C, memory, now=T0 + C.probe_timeout_s + C.interval_s + 1).is_due
    answered = record_probe(memory, Probe(T0, T0 + 10, "timeout"))
    assert should_probe(C, answered, now=T0 + 10 + C.confirm_after_s).is_due


def test_an_engine_is_not_dead_within_a_step_of_its_own():
    """8B on a CPU: 2,048 input tokens take 33 s, and nobody is answered before the step is over."""
    slow = C.for_steps(33.0)
    assert slow.probe_timeout_s == 99.0
    memory, now = look(Memory(), Sighting(in_flight=3, generation_tokens=7.0), now=T0), T0
    while now < T0 + 99:
        now += 1.0
        memory = look(memory, Sighting(in_flight=3, generation_tokens=7.0), now=now, config=slow)
        if should_probe(slow, memory, now=now).is_due:
            memory = asked(memory, now=now)
        assert judge(slow, memory, now=now).status == "unknown"
    assert C.for_steps(0.5) == C
    assert C.for_steps(1e9).probe_timeout_s <= 300.0


def test_a_restarted_engine_starts_with_a_clean_record():
    memory = look(Memory(), Sighting(process_start=1.0, generation_tokens=500.0), now=T0)
    for start in (T0, T0 + 12):
        memory = record_probe(memory, Probe(start, start + 10, "refused"))
    memory = look(memory, Sighting(process_start=1.0, generation_tokens=500.0), now=T0 + 25)
    assert judge(C, memory, now=T0 + 25).status == "dead"
    memory = look(memory, Sighting(process_start=2.0, generation_tokens=0.0), now=T0 + 26)
    assert judge(C, memory, now=T0 + 26).status == "unknown"
    assert should_probe(C, memory, now=T0 + 26).is_due


def test_a_stall_is_probed_at_once_and_an_old_mark_is_no_progress():
    memory = look(Memory(), Sighting(token_marks={"a": T0 - 3600}, in_flight=2), now=T0)
    assert judge(C, memory, now=T0).status == "unknown"
    memory = look(memory, Sighting(token_marks={"a": T0}, in_flight=2), now=T0 + 1)
    assert not should_probe(C, memory, now=T0 + 2).is_due
    advice = should_probe(C, memory, now=T0 + 1 + C.stall_s)
    assert advice.is_due
    assert "2 in flight and no token" in advice.reason


def test_a_second_gateway_with_a_slower_clock_is_heard():
    memory = look(Memory(), Sighting(token_marks={"a": T0 + 30, "b": T0}), now=T0)
    memory = record_probe(memory, Probe(T0 + 1, T0 + 11, "timeout"))
    memory = look(memory, Sighting(token_marks={"a": T0 + 30, "b": T0 + 2}), now=T0 + 12)
    assert memory.failures == ()


def test_a_clock_set_back_does_not_hide_a_hang():
    memory = look(Memory(), Sighting(token_marks={"a": T0}, in_flight=1), now=T0)
    memory = look(memory, Sighting(token_marks={"a": T0}, in_flight=1), now=T0 - 3600)
    assert should_probe(C, memory, now=T0 - 3600 + C.stall_s).is_due


def test_memory_survives_json():
    memory = record_probe(look(Memory(), Sighting(in_flight=1), now=T0), Probe(T0, T0 + 10, "timeout", "x"))
    assert Memory.from_json(memory.to_json()) == memory
    with pytest.raises(ValueError, match="object"):
        Memory.from_json("3")


ids = [f"r{i}" for i in range(10)]


@given(st.integers(0, 10), st.integers(1, 40), st.integers(0, 5), st.lists(st.floats(-2000, 100), max_size=6))
def test_the_restart_budget_holds_whatever_looks_dead(dead, replicas, replacing, killed):
    dead = min(dead, replicas)
    budget = restart_budget(
        ids[:dead], replicas=replicas, being_replaced=replacing, killed_at=[T0 + at for at in killed], now=T0
    )
    assert set(budget.condemned) | set(budget.spared) == set(ids[:dead])
    assert not set(budget.condemned) & set(budget.spared)
    if replicas > 1:
        assert len(budget.condemned) <= max(0, max(1, replicas // 5) - replacing)
        assert len(budget.condemned) + sum(-600 < at <= 0 for at in killed) <= 3 or not budget.condemned
    else:
        assert budget.condemned == tuple(ids[:dead])


def test_spared_replicas_are_told_why():
    at_once = restart_budget(ids, replicas=10, being_replaced=0, killed_at=[], now=T0)
    assert at_once.condemned == ("r0", "r1")
    assert at_once.spared["r2"] == "at most 2 of 10 replicas are replaced at once"
    lately = restart_budget(ids[:1], replicas=3, being_replaced=0, killed_at=[T0 - 1, T0 - 2, T0 - 599], now=T0)
    assert lately.condemned == ()
    assert "3 replicas were killed in the last 10 min" in lately.spared["r0"]


def test_a_server_error_counts_and_its_detail_is_told():
    memory = replace(Memory())
    for start in (T0, T0 + 3):
        memory = record_probe(memory, Probe(start, start + 0.1, "server_error", "EngineCore encountered an issue"))
    verdict = judge(C, look(memory, Sighting(), now=T0 + 4), now=T0 + 4)
    assert verdict.status == "dead"
    assert "2 probes in a row failed" in verdict.reason
    assert "EngineCore" in verdict.reason
