"""Which rounds ``penstock test`` runs."""

import argparse
import itertools
import re

import pytest
from _pytest.mark.expression import Expression

from penstock import paths
from penstock.cli.test import WITHOUT_DATABASE, Round, rounds_of, run_round
from penstock.testing import ONLY_DATABASE


def titles(database: str | None, *, has_arguments: bool = False) -> list[str]:
    return [each.title for each in rounds_of(database, has_arguments=has_arguments)]


def test_everything_runs_by_default() -> None:
    assert titles(None) == titles("both") == ["SQLite", "PostgreSQL", "Redis 6.2", "processes", "faults"]
    assert titles("sqlite") == ["SQLite", "processes", "faults"]
    assert titles("postgresql") == ["PostgreSQL"]


def test_chosen_tests_run_once_on_sqlite_unless_asked_otherwise() -> None:
    assert titles(None, has_arguments=True) == ["SQLite"]
    assert titles("both", has_arguments=True) == ["SQLite", "PostgreSQL"]
    assert rounds_of(None, has_arguments=True)[0].options == ()


def test_no_test_falls_between_two_rounds() -> None:
    def picked(each: Round, marks: set[str]) -> bool:
        return Expression.compile(each.options[each.options.index("-m") + 1]).evaluate(lambda name, **_: name in marks)

    fast, postgresql, redis, *processes = rounds_of(None, has_arguments=False)
    assert len(processes) == 2
    markers = ("e2e", "faults", "vllm", "slow", "browser")
    for marks in itertools.chain.from_iterable(itertools.combinations(markers, n) for n in range(len(markers) + 1)):
        assert [picked(each, set(marks)) for each in (fast, *processes)].count(True) == 1, marks
        assert picked(redis, set(marks)) == picked(fast, set(marks))
    assert postgresql.environment[ONLY_DATABASE] == "1"


def test_a_round_that_cannot_run_is_named_and_fails_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    each = Round("Redis 6.2", left_out="no wheel")
    monkeypatch.delenv("CI", raising=False)
    assert run_round(each, argparse.Namespace()) == (0, ["left out: no wheel"])
    monkeypatch.setenv("CI", "true")
    code, (told,) = run_round(each, argparse.Namespace())
    assert code == 1
    assert "CI=true" in told


@pytest.mark.parametrize("folder", WITHOUT_DATABASE)
def test_where_the_second_round_does_not_look_nothing_uses_the_database(folder: str) -> None:
    files = list((paths.ASSETS / folder).rglob("*.py"))
    assert files
    uses = re.compile(r"django_db|transactional_db|live_server|\bdb: ")
    assert [str(each) for each in files if uses.search(each.read_text(encoding="utf-8"))] == []
