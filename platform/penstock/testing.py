"""A pytest plugin: fast tests first, nothing is skipped silently, no secret in a log. ``penstock test`` loads it.

Under ``CI=true`` a skipped test fails the run unless its reason matches ``--allow-skip``. ``-p penstock.testing`` takes
its settings from the environment, so that processes that share a round have them too.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

ONLY_DATABASE, ALLOW_SKIP, SUMMARY = "PENSTOCK_TEST_ONLY_DATABASE", "PENSTOCK_TEST_ALLOW_SKIP", "PENSTOCK_TEST_SUMMARY"
"""Environment of a round: "1" for the tests that use the database; JSON list of patterns; file for the summary."""

_ORDER = ("browser", "postgres", "e2e", "vllm", "faults")
"""Markers from the cheapest to the most expensive; a test runs in the place of its most expensive one."""

CANARY = "canary in the coal mine"
"""Part of prompts that tests send: nobody may log it."""
SECRETS = re.compile(r"\b(?:mu|pst|pse)_[A-Za-z0-9]{6,}_[A-Za-z0-9_-]{20,}|\bpsm_[\w.-]{40,}|" + CANARY)
"""Whole API keys, access tokens, enrolment tokens and credentials of members, and the canary."""


def pytest_configure(config: pytest.Config) -> None:
    """``-p penstock.testing``."""
    allowed = json.loads(os.environ.get(ALLOW_SKIP, "[]"))
    config.pluginmanager.register(Plugin(allowed=allowed, only_database=os.environ.get(ONLY_DATABASE) == "1"))


def rank(markers: Iterable[str]) -> int:
    """The place of a test with these markers: 0 for the fast ones."""
    return max((_ORDER.index(name) + 1 for name in markers if name in _ORDER), default=0)


def unlawful(reasons: Iterable[str], allowed: Sequence[str]) -> list[str]:
    """The reasons for which nothing may be skipped in CI."""
    return [reason for reason in reasons if not any(re.search(pattern, reason) for pattern in allowed)]


def longest_files_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """For processes that take whole files from one queue: the files with slow tests, then those with most tests.

    A long file that is taken last is waited for by all others.
    """
    counts = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    return sorted(items, key=lambda item: (item.path not in slow, -counts[item.path], str(item.path)))


class Plugin:
    """Collects why tests were skipped. ``only_database`` keeps the tests that use the database."""

    def __init__(self, *, allowed: Sequence[str] = (), only_database: bool = False) -> None:
        self.allowed, self.only_database = allowed, only_database
        self.skipped: Counter[str] = Counter()
        self.leaks: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if self.only_database:
            kept = [item for item in items if _uses_database(item)]
            config.hook.pytest_deselected(items=[item for item in items if not _uses_database(item)])
            items[:] = kept
        if hasattr(config, "workerinput"):
            items[:] = longest_files_first(items)
        else:
            items.sort(key=lambda item: rank(marker.name for marker in item.iter_markers()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.longrepr)
        logged = "".join(text for name, text in report.sections if " log " in f"{name} " or "stderr" in name)
        if SECRETS.search(logged):
            self.leaks.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report.longrepr)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.OK and in_ci() and unlawful(self.skipped, self.allowed):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if exitstatus == pytest.ExitCode.OK and self.leaks:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if (summary := os.environ.get(SUMMARY)) and not hasattr(session.config, "workerinput"):
            Path(summary).write_text("\n".join(self.summary()), encoding="utf-8")

    def _note(self, longrepr: object) -> None:
        reason = str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
        self.skipped[reason.removeprefix("Skipped: ").strip()] += 1

    def summary(self) -> list[str]:
        """The last lines of a run: what was skipped, why, and whether that fails it; and what was logged."""
        leaks = [f"a secret or a prompt was logged by {name}  (fails the run)" for name in sorted(set(self.leaks))]
        if not self.skipped:
            return [*leaks, "nothing was skipped"]
        refused = set(unlawful(self.skipped, self.allowed)) if in_ci() else set()
        return leaks + [
            f"skipped {count}: {reason}{'  (fails the run: CI=true)' if reason in refused else ''}"
            for reason, count in sorted(self.skipped.items())
        ]


def in_ci() -> bool:
    return os.environ.get("CI", "").strip().lower() in ("1", "true", "yes")


def _uses_database(item: pytest.Item) -> bool:
    expensive = rank(marker.name for marker in item.iter_markers())
    fixtures = getattr(item, "fixturenames", ())
    uses = item.get_closest_marker("django_db") is not None or any(
        name in fixtures for name in ("db", "transactional_db", "django_db_reset_sequences", "live_server")
    )
    return uses and not expensive
