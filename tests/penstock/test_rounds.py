"""Which rounds ``penstock test`` runs."""

import argparse

import pytest

from penstock.cli.test import Round, rounds_of, run_round
from penstock.testing import ONLY_DATABASE


def titles(database: str | None, *, has_arguments: bool = False) -> list[str]:
    return [each.title for each in rounds_of(database, has_arguments=has_arguments)]


def test_everything_runs_by_default() -> None:
    assert titles(None) == titles("both") == ["SQLite", "PostgreSQL", "Redis 6.2", "processes"]
    assert titles("sqlite") == ["SQLite", "processes"]
    assert titles("postgresql") == ["PostgreSQL"]


def test_chosen_tests_run_once_on_sqlite_unless_asked_otherwise() -> None:
    assert titles(None, has_arguments=True) == ["SQLite"]
    assert titles("both", has_arguments=True) == ["SQLite", "PostgreSQL"]
    assert rounds_of(None, has_arguments=True)[0].options == ()


def test_no_test_falls_between_two_rounds() -> None:
    fast, postgresql, redis, processes = rounds_of(None, has_arguments=False)
    picked = fast.options[fast.options.index("-m") + 1]
    assert picked == f"not ({processes.options[processes.options.index('-m') + 1]})"
    assert postgresql.environment[ONLY_DATABASE] == "1"
    assert redis.options[redis.options.index("-m") + 1] == picked


def test_a_round_that_cannot_run_is_named_and_fails_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    each = Round("Redis 6.2", left_out="no wheel")
    monkeypatch.delenv("CI", raising=False)
    assert run_round(each, argparse.Namespace()) == (0, ["left out: no wheel"])
    monkeypatch.setenv("CI", "true")
    code, (told,) = run_round(each, argparse.Namespace())
    assert code == 1
    assert "CI=true" in told
