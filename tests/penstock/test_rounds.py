"""Which rounds ``penstock test`` runs."""

import argparse
import itertools
import os
import re
import threading
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

from penstock import paths
from penstock.cli.test import (
    AGAIN_AT_MOST,
    WITHOUT_DATABASE,
    Result,
    Round,
    rounds_of,
    run,
    run_again,
    run_round,
    run_rounds,
)
from penstock.testing import ONLY_DATABASE, TEMPLATES


def titles(database: str | None, *, has_arguments: bool = False) -> list[str]:
    return [each.title for each in rounds_of(database, has_arguments=has_arguments)]


def test_everything_runs_by_default() -> None:
    assert titles(None) == titles("both") == ["PostgreSQL", "SQLite", "Redis 6.2", "processes", "timed"]
    assert titles("sqlite") == ["SQLite", "processes", "timed"]
    assert titles("postgresql") == ["PostgreSQL"]


def test_chosen_tests_run_once_on_sqlite_unless_asked_otherwise() -> None:
    assert titles(None, has_arguments=True) == ["SQLite"]
    assert titles("both", has_arguments=True) == ["SQLite", "PostgreSQL"]
    assert rounds_of(None, has_arguments=True)[0].options == ()


def test_no_test_falls_between_two_rounds() -> None:
    def picked(each: Round, marks: set[str]) -> bool:
        return Expression.compile(each.options[each.options.index("-m") + 1]).evaluate(lambda name, **_: name in marks)

    postgresql, fast, redis, *processes = rounds_of(None, has_arguments=False)
    assert len(processes) == 2
    markers = ("e2e", "faults", "timed", "vllm", "slow", "browser")
    for marks in itertools.chain.from_iterable(itertools.combinations(markers, n) for n in range(len(markers) + 1)):
        assert [picked(each, set(marks)) for each in (fast, *processes)].count(True) == 1, marks
        assert picked(redis, set(marks)) == picked(fast, set(marks))
    assert postgresql.environment[ONLY_DATABASE] == "1"


def test_a_round_that_cannot_run_is_named_and_fails_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    each = Round("Redis 6.2", left_out="no wheel")
    monkeypatch.delenv("CI", raising=False)
    assert run_round(each, argparse.Namespace()) == Result(0, ["left out: no wheel"])
    monkeypatch.setenv("CI", "true")
    result = run_round(each, argparse.Namespace())
    assert result.code == 1
    assert "CI=true" in result.summary[0]


def test_a_round_behind_runs_while_the_next_ones_do_and_has_ended_before_one_that_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, ended = threading.Event(), []

    def run(each: Round, arguments: argparse.Namespace) -> Result:
        if each.behind:
            assert begun.wait(60)
        elif each.title == "after":
            begun.set()
        ended.append(each.title)
        return Result(len(each.title), [])

    monkeypatch.setattr("penstock.cli.test.run_round", run)
    rounds = [Round("behind", behind=True), Round("next"), Round("after"), Round("at last", alone=True)]
    told = run_rounds(rounds, argparse.Namespace())
    assert [(each.title, result.code) for each, result in told] == [
        ("behind", 6),
        ("next", 4),
        ("after", 5),
        ("at last", 7),
    ]
    assert ended[0] == "next"
    assert ended[-1] == "at last"


def test_the_rounds_share_a_folder_that_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TEMPLATES, "")
    seen: list[Path] = []

    def run_all(rounds: list[Round], arguments: argparse.Namespace) -> list[tuple[Round, Result]]:
        seen.append(Path(os.environ[TEMPLATES]))
        assert seen[0].is_dir()
        return [(rounds[0], Result(3, []))]

    monkeypatch.setattr("penstock.cli.test.prepare_environment", lambda: None)
    monkeypatch.setattr("penstock.cli.test.run_rounds", run_all)
    assert run(argparse.Namespace(database=None, pytest_arguments=[])) == 3
    assert not seen[0].exists()


def test_what_is_timed_has_the_machine_to_itself() -> None:
    rounds = rounds_of(None, has_arguments=False)
    assert [each.title for each in rounds if each.behind] == ["PostgreSQL"]
    assert [each.title for each in rounds if each.alone] == ["timed"]
    assert rounds[-1].title == "timed"


def test_what_a_round_behind_prints_comes_when_it_has_ended(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = argparse.Namespace(pytest_arguments=[], allow_skip=[])
    assert run_round(Round("quiet", ("--version",), behind=True), arguments).code == 0
    told = capfd.readouterr().out.splitlines()
    assert told[:2] == ["== quiet, printed when it has ended", "== quiet"]
    assert "pytest" in told[2]


ARGUMENTS = argparse.Namespace(pytest_arguments=[], allow_skip=[])
UNSTEADY = """
from pathlib import Path

def test_steady():
    pass

def test_unsteady(tmp_path):
    mark = Path(__file__).with_name("was here")
    is_second, _ = mark.exists(), mark.touch()
    assert is_second

def test_wrong():
    assert MARK
"""


def test_what_failed_beside_others_and_passes_alone_is_told_and_fails_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_it.py").write_text(UNSTEADY.replace("MARK", "True"))
    first = Round("SQLite", ("-c", "/dev/null", "-n", "2", str(tmp_path)))
    result = run_round(first, ARGUMENTS)
    assert result.code == 1
    (name,) = result.failed
    assert name.endswith("test_it.py::test_unsteady")
    ((_, again),) = run_again([(first, result)], ARGUMENTS)
    assert again.code == 0
    assert again.summary == ["nothing was skipped", f"unsteady: failed beside others and passed alone: {name}"]
    assert "assert is_second" in capfd.readouterr().out, "the first failure is to be read"


def test_what_fails_again_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(UNSTEADY.replace("MARK", "False"))
    first = Round("SQLite", ("-c", "/dev/null", str(tmp_path)))
    result = run_round(first, ARGUMENTS)
    assert len(result.failed) == 2
    ((_, again),) = run_again([(first, result)], ARGUMENTS)
    assert again.code == 1


@pytest.mark.parametrize(
    "failed",
    [
        tuple(f"tests/web/test_pages.py::test_{number}" for number in range(AGAIN_AT_MOST + 1)),
        ("tests/faults/test_kill.py::test_it", "tests/web/test_pages.py::test_it"),
        (),
    ],
)
def test_many_failures_and_those_that_chance_has_found_are_final(
    failed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.cli.test.run_round", lambda *_: pytest.fail("run again"))
    results = [(Round("SQLite"), Result(1, ["told"], failed)), (Round("timed"), Result(0, []))]
    assert run_again(results, ARGUMENTS) == results


def test_what_is_wrong_with_a_round_beside_its_tests_is_never_passed_over(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(UNSTEADY.replace("MARK", "True"))
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name")
    broken = run_round(
        Round("SQLite", ("-c", "/dev/null", "--continue-on-collection-errors", str(tmp_path))), ARGUMENTS
    )
    assert (broken.code, broken.failed) == (1, ())
    ended = UNSTEADY.replace("MARK", "False") + "\n\ndef test_ended():\n    raise KeyboardInterrupt\n"
    (tmp_path / "test_it.py").write_text(ended)
    stopped = run_round(Round("SQLite", ("-c", "/dev/null", str(tmp_path / "test_it.py"))), ARGUMENTS)
    assert (stopped.code, stopped.failed) == (2, ()), "what came after it did not run"


@pytest.mark.parametrize("folder", WITHOUT_DATABASE)
def test_where_the_second_round_does_not_look_nothing_uses_the_database(folder: str) -> None:
    files = list((paths.ASSETS / folder).rglob("*.py"))
    assert files
    uses = re.compile(r"django_db|transactional_db|live_server|\bdb: ")
    # What has a round of its own is in no other, whatever it uses.
    others = [each.read_text(encoding="utf-8") for each in files]
    assert [text[:80] for text in others if uses.search(text) and "pytest.mark.faults" not in text] == []
