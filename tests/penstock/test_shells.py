"""What is run by hand from a shell that is set up for a platform: it takes the browser named there, not the data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cli.test import chromium

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_the_snapshots_benchmark_leaves_the_platform_of_the_shell_alone(tmp_path: Path) -> None:
    elsewhere = {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/real",
        "DATABASE_URL_FILE": str(tmp_path / "database"),
        "REDIS_URL_FILE": str(tmp_path / "redis"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
    }
    done = python("-m", "bench.snapshot", "3", "bare", **elsewhere)
    assert done.returncode == 0, done.stderr
    assert "one new key" in done.stdout


def test_the_pictures_are_taken_with_the_browser_that_is_named(tmp_path: Path) -> None:
    environment = {"PENSTOCK_CHROMIUM": "/opt/browser/chrome", "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    done = python("-c", "from tests.web.screens import CHROMIUM; print(CHROMIUM)", **environment)
    assert done.stdout == "/opt/browser/chrome\n", done.stderr


def test_a_browser_is_found_by_the_names_it_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PENSTOCK_CHROMIUM", raising=False)
    assert chromium() == ""
    chrome = tmp_path / "google-chrome"
    chrome.write_text("")
    chrome.chmod(0o755)
    assert chromium() == str(chrome)
    monkeypatch.setenv("PENSTOCK_CHROMIUM", "google-chrome")
    assert chromium() == str(chrome)
