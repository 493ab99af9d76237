"""A pytest plugin: fast tests first, nothing is skipped silently, no secret in a log. ``penstock test`` loads it.

A module none of whose tests ``-m`` can pick is not even imported: its markers are read from its text.

Under ``CI=true`` a skipped test fails the run unless its reason matches ``--allow-skip``. ``-p penstock.testing`` takes
its settings from the environment, so that processes that share a round have them too.
"""

import functools
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.expression import Expression

ONLY_DATABASE, ALLOW_SKIP, SUMMARY = "PENSTOCK_TEST_ONLY_DATABASE", "PENSTOCK_TEST_ALLOW_SKIP", "PENSTOCK_TEST_SUMMARY"
"""Environment of a round: "1" for the tests that use the database; JSON list of patterns; file for the summary."""
FAILED = "PENSTOCK_TEST_FAILED"
"""Environment of a round: file for the names of the tests that failed, where nothing else is wrong with the round."""
TEMPLATES = "PENSTOCK_TEST_TEMPLATES"
"""Environment of all rounds: the folder in which the tests keep what is made once for all of them."""

_ORDER = ("browser", "postgres", "e2e", "vllm", "timed", "faults")
"""Markers from the cheapest to the most expensive; a test runs in the place of its most expensive one."""

CANARY = "canary in the coal mine"
"""Part of prompts that tests send: nobody may log it."""
SECRETS = re.compile(r"\b(?:mu|pst|pse)_[A-Za-z0-9]{6,}_[A-Za-z0-9_-]{20,}|\bpsm_[\w.-]{40,}|" + CANARY)
"""Whole API keys, access tokens, enrolment tokens and credentials of members, and the canary."""


_OF_ALL = re.compile(r"^pytestmark\b[^=\n]*= *(?:\[[^]]*\]$|[^\n]*)", re.MULTILINE)
_MARKER = re.compile(r"\bmark\.(\w+)")
_TOGETHER = re.compile(r"\bmark\.together\(\"([^\"]+)\"\)")


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


def may_be_picked(text: str, expression: str) -> bool:
    """Whether some test of the module with this source may have markers for which ``-m expression`` picks it.

    ``pytestmark`` at the module's beginning counts for all of its tests, any other marker for any of them. Raises
    SyntaxError for an expression that pytest does not understand.
    """
    picks = Expression.compile(expression)
    named = set(re.findall(r"\w+", expression))
    for_all = {name for part in _OF_ALL.findall(text) for name in _MARKER.findall(part)} & named
    for_some = sorted({*_MARKER.findall(text)} & named - for_all)
    for count in range(len(for_some) + 1):
        for more in itertools.combinations(for_some, count):
            if picks.evaluate(_Has(for_all.union(more))):
                return True
    return False


class _Has:
    """Answers whether a test with these markers has one."""

    def __init__(self, markers: set[str]) -> None:
        self.markers = markers

    def __call__(self, name: str, /, **_: str | int | bool | None) -> bool:
        return name in self.markers


def unit_of(path: Path) -> str:
    """What a process takes as a whole: the file's path, or what its tests are ``together`` under."""
    found = _TOGETHER.search(path.read_text(encoding="utf-8")) if path.exists() else None
    return found[1] if found else str(path)


def longest_files_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """For processes that take whole files from one queue: those with slow tests first, then those whose tests may take
    longest, then those with most tests.

    A long file that is taken last is waited for by all others.
    """
    counts, timeouts = Counter(item.path for item in items), dict.fromkeys((item.path for item in items), 0.0)
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    for item in items:
        if (marker := item.get_closest_marker("timeout")) is not None and marker.args:
            timeouts[item.path] = max(timeouts[item.path], float(marker.args[0]))
    return sorted(
        items, key=lambda item: (item.path not in slow, -timeouts[item.path], -counts[item.path], str(item.path))
    )


class Plugin:
    """Collects why tests were skipped. ``only_database`` keeps the tests that use the database."""

    def __init__(self, *, allowed: Sequence[str] = (), only_database: bool = False) -> None:
        self.allowed, self.only_database = allowed, only_database
        self.skipped: Counter[str] = Counter()
        self.leaks: list[str] = []
        self.failed: dict[str, None] = {}
        self.is_broken = False

    def pytest_ignore_collect(self, collection_path: Path, config: pytest.Config) -> bool | None:
        expression = config.option.markexpr
        if not expression or not collection_path.match("test_*.py"):
            return None
        try:
            wanted = may_be_picked(collection_path.read_text(encoding="utf-8"), expression)
        except SyntaxError:  # pytest says what is wrong with it
            return None
        return None if wanted else True

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Files that are ``together`` go to one process, one after the other; each other file goes by itself."""
        if config.getoption("dist") != "loadfile":
            return None
        from xdist.scheduler import LoadFileScheduling  # a development tool

        made: Any = LoadFileScheduling(config, log)
        of_file = functools.cache(lambda name: unit_of(config.rootpath / name))
        made._split_scope = lambda nodeid: of_file(nodeid.partition("::")[0])
        return made

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
        if report.failed:
            self.failed[report.nodeid] = None
        logged = "".join(text for name, text in report.sections if " log " in f"{name} " or "stderr" in name)
        if SECRETS.search(logged):
            self.leaks.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report.longrepr)
        self.is_broken |= report.failed

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        is_unlawful = bool(in_ci() and unlawful(self.skipped, self.allowed)) or bool(self.leaks)
        if exitstatus == pytest.ExitCode.OK and is_unlawful:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if hasattr(session.config, "workerinput"):
            return
        if summary := os.environ.get(SUMMARY):
            Path(summary).write_text("\n".join(self.summary()), encoding="utf-8")
        is_of_tests = exitstatus == pytest.ExitCode.TESTS_FAILED and not (is_unlawful or self.is_broken)
        if (failed := os.environ.get(FAILED)) and self.failed and is_of_tests:
            here = session.config.invocation_params.dir
            files = [name.partition("::") for name in self.failed]
            names = [os.path.relpath(session.config.rootpath / file, here) + mark + test for file, mark, test in files]
            Path(failed).write_text(json.dumps(names), encoding="utf-8")

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
