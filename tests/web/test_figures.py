"""How figures are written, and how samples become lines. Expected values are worked out by hand."""

import math
import statistics
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.web import figures
from penstock.web.capacity_series import decision_minute
from penstock.web.console_data import start_steps
from penstock.web.live import DeploymentSample, decode_samples, summarise
from penstock.web.look import moment
from penstock.web.series import Minute, add, bucketed, means, per_bucket, sold_line, totals
from penstock.web.snippets import snippets


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (3, "3"),
        (0.4217, "0.42"),
        (12.34, "12.3"),
        (1234.6, "1,235"),
        (-36, "−36"),
        (-0.001, "0.00"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert figures.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, ("999", "")), (9_999, ("9,999", "")), (12_345, ("12.3", "k")), (878_000_000, ("878", "M"))],
)
def test_large_counts(value: float, text: tuple[str, str]) -> None:
    assert figures.compact(value) == text


def test_a_day_of_another_year_has_its_year() -> None:
    year = datetime.now(UTC).year
    assert ">06 Apr 09:04<" in moment(datetime(year, 4, 6, 9, 4, tzinfo=UTC), "day")
    assert f">06 Apr {year + 1} 09:04<" in moment(datetime(year + 1, 4, 6, 9, 4, tzinfo=UTC), "day")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (42, "42 s"), (60, "1 min"), (125, "2 min 5 s"), (3600, "1 h"), (273_700, "3 d 4 h"), (None, "–")],
)
def test_lengths_of_time(seconds: float | None, text: str) -> None:
    assert figures.duration(seconds) == text


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_a_percentile_is_a_value_that_the_right_share_does_not_exceed(values: list[float]) -> None:
    got = figures.percentile(values, 0.95)
    assert got in values
    assert sum(value <= got for value in values) >= 0.95 * len(values) - 1e-9
    assert sum(value < got for value in values) < 0.95 * len(values) + 1e-9


def sample(at: float, mu: float = 0.0, requests: float = 0.0, capacity: float = 100.0) -> DeploymentSample:
    return DeploymentSample(at=at, offered_mu=mu, offered_requests=requests, capacity_mu_per_min=capacity)


@given(st.floats(0.5, 3.0), st.floats(0.01, 50.0))
def test_a_steady_load_reads_the_same_however_late_the_samples_come(gap_s: float, mu_per_s: float) -> None:
    ring = [sample(1000.0 - index * gap_s, mu=mu_per_s * gap_s) for index in range(40)]
    now = summarise(ring)
    assert now is not None
    assert now.offered_mu_per_min == pytest.approx(mu_per_s * 60, rel=1e-6)


def test_nothing_is_known_without_a_sample() -> None:
    assert summarise([]) is None


def test_entries_of_another_shape_are_left_out() -> None:
    assert [row.at for row in decode_samples([b'{"at": 1}', b"broken", b'{"other": 1}'])] == [1.0]


def test_buckets_hold_what_was_offered_in_them() -> None:
    # Two buckets of 10 s from 100 s on: 1 MU/s, then 3 MU/s, capacity raised inside the second.
    ring = [sample(at, mu=1.0) for at in range(99, 110)] + [
        sample(at, mu=3.0, capacity=100.0 if at < 115 else 200.0) for at in range(110, 120)
    ]
    seen = bucketed([100.0, 110.0], 10.0, ring, [])
    assert seen.offered[0] == pytest.approx(60.0)
    assert seen.offered[1] == pytest.approx(180.0)
    assert seen.have == [100.0, 200.0]


def test_a_late_sample_is_no_peak() -> None:
    # The observe loop paused for 20 s: the next sample counts all of them.
    ring = [sample(float(at), mu=2.0) for at in range(-1, 10)] + [sample(29.0, mu=40.0)]
    seen = bucketed([0.0, 10.0, 20.0], 10.0, ring, [])
    assert seen.offered[0] == pytest.approx(120.0)
    assert seen.offered[1] is None
    assert seen.offered[2] == pytest.approx(120.0, rel=0.06)


def test_minutes_of_the_scale_loop_fill_what_the_ring_has_lost() -> None:
    minutes = [Minute(at=5.0, offered_mu_per_min=30.0, capacity_mu_per_min=100.0)]
    seen = bucketed([0.0, 60.0, 120.0, 180.0], 60.0, [sample(61.0, mu=9.0), sample(62.0, mu=1.0)], minutes)
    assert seen.offered[0] == 30.0
    assert seen.offered[1] == pytest.approx(60.0)
    assert seen.offered[2:] == [None, None]
    # A level holds for one bucket of a minute, then nobody knows.
    assert seen.have == [100.0, 100.0, 100.0, None]


def test_a_decision_tells_load_and_capacity() -> None:
    inputs = {"observation": {"offered_mu_per_min": 50.5, "ready": 3, "replica_mu_per_min": 80.0}}
    assert decision_minute(7.0, inputs) == Minute(at=7.0, offered_mu_per_min=50.5, capacity_mu_per_min=240.0)
    assert decision_minute(7.0, {}).offered_mu_per_min is None


def test_what_is_known_of_moments_becomes_means_and_sums_of_buckets() -> None:
    known = [(5.0, 1.0), (8.0, 3.0), (25.0, 7.0), (99.0, 1.0), (-1.0, 1.0)]
    assert means([0.0, 10.0, 20.0], 10.0, known) == [2.0, None, 7.0]
    assert totals([0.0, 10.0, 20.0, 30.0], 10.0, known, until=30.0) == [4.0, 0.0, 7.0, None]


def test_settled_minutes_spread_over_short_and_long_buckets() -> None:
    minutes = {0.0: 60.0, 60.0: 120.0}
    assert per_bucket([0.0, 30.0, 60.0, 90.0, 120.0], 30.0, minutes, until=120.0) == [60, 60, 120, 120, None]
    assert per_bucket([0.0], 120.0, minutes, until=120.0) == [90.0]


def test_sold_follows_the_reservations() -> None:
    sales = [(10.0, 30.0, 100.0), (20.0, None, 50.0)]
    assert sold_line([0.0, 10.0, 20.0, 30.0], sales) == [0, 100, 150, 50]


@given(st.lists(st.lists(st.none() | st.floats(0, 1e6), min_size=4, max_size=4), min_size=1, max_size=5))
def test_lines_add_up_bucket_by_bucket(lines: list[list[float | None]]) -> None:
    for index, got in enumerate(add(lines)):
        known = [line[index] for line in lines if line[index] is not None]
        assert (got is None) == (not known)
        if known:
            assert got == pytest.approx(math.fsum(known))


@pytest.mark.parametrize(
    ("state", "phase", "progress", "marks"),
    [
        ("pending", "", {}, ["", "", "", "", ""]),
        ("starting", "environment", {"share": 0.4}, ["now", "", "", "", ""]),
        ("starting", "warming", {}, ["done", "done", "done", "now", ""]),
        ("failed", "failed", {"step": "weights"}, ["done", "fail", "", "", ""]),
    ],
)
def test_the_phases_of_a_start(state: str, phase: str, progress: dict[str, object], marks: list[str]) -> None:
    assert [step.mark for step in start_steps(state, phase, progress)] == marks


def test_what_is_past_its_start_shows_no_phases() -> None:
    assert start_steps("ready", "ready", {}) == ()
    assert start_steps("failed", "failed", {}) == ()


@pytest.mark.parametrize("model", ["demo-sim", "it's", 'a "quoted" model'])
def test_snippets_parse_in_their_languages(model: str) -> None:
    import ast
    import json
    import shlex

    curl, python, javascript = snippets("http://127.0.0.1:8080/v1", model)
    words = shlex.split(curl.code.replace("\\\n", " "))
    assert words[2] == "http://127.0.0.1:8080/v1/chat/completions"
    assert json.loads(words[words.index("-d") + 1])["model"] == model
    tree = ast.parse(python.code)
    assert model in [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert json.dumps(model) in javascript.code


@pytest.mark.parametrize("model", ["m", "it's", 'a "quoted" model', "org/name"])
@pytest.mark.parametrize(
    ("speaks", "path", "member"),
    [
        (("embed", "score"), "/v1/embeddings", "input"),
        (("score",), "/v1/rerank", "documents"),
        (("invocations",), "/invocations/", "inputs"),
        (("http",), "/invocations/", "inputs"),
        (("embed", "generate"), "/v1/chat/completions", "messages"),
    ],
)
def test_snippets_ask_what_the_model_can_be_asked(speaks: tuple[str, ...], path: str, member: str, model: str) -> None:
    import ast
    import json
    import shlex
    from urllib.parse import unquote, urlsplit

    for snippet in snippets("http://127.0.0.1:8080/v1", model, speaks):
        if snippet.id == "python":
            constants = [node.value for node in ast.walk(ast.parse(snippet.code)) if isinstance(node, ast.Constant)]
            assert model in constants or any(model in unquote(str(value)) for value in constants)
        if snippet.id != "curl":
            assert snippet.install
            continue
        words = shlex.split(snippet.code.replace("\\\n", " "))
        address = urlsplit(next(word for word in words if word.startswith("http")))
        body = json.loads(words[words.index("-d") + 1])
        assert member in body
        assert unquote(address.path) == path + (model if path.endswith("/") else "")
        assert body.get("model", model) == model


def test_the_oracle_of_percentiles_agrees_on_a_known_list() -> None:
    values = [float(value) for value in range(1, 101)]
    assert figures.percentile(values, 0.95) == 95.0
    assert figures.percentile(values, 0.5) == statistics.median_low(values)
