"""A backup taken under traffic, restored into an empty folder: every request that had ended is there, once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.e2e.stack import ROOT, Stack, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]


class Restored(Stack):
    """Its keys are those of the installation that the backup was made of."""

    known_key = ""

    def key(self, index: int = 0) -> str:
        return self.known_key


def ask(stack: Stack, *, tokens: int = 3) -> str:
    """One request; its id, as SQLite keeps it."""
    answer = httpx.post(
        f"{stack.base_url}/completions",
        json={"model": "demo-sim", "prompt": "hello", "max_tokens": tokens},
        headers={"Authorization": f"Bearer {stack.key()}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-request-id"]).replace("-", "")


def test_usage_survives_a_restore(tmp_path: Path) -> None:
    before = Stack(tmp_path / "before", gateways=1)
    kept = tmp_path / "kept.tar.gz"
    try:
        before.start()
        ended = [ask(before) for _ in range(20)]
        traffic = threading.Event()
        late: list[str] = []

        def go_on() -> None:
            while not traffic.is_set():
                late.append(ask(before))

        thread = threading.Thread(target=go_on)
        thread.start()
        command = [sys.executable, "-m", "penstock", "backup", "--data", str(before.data), "-o", str(kept)]
        done = subprocess.run(command, cwd=ROOT, env=before.environment(), capture_output=True, text=True, timeout=60)
        traffic.set()
        thread.join()
        assert done.returncode == 0, done.stderr
        wait_for("all usage rows", lambda: len(before.usage()) >= len(ended) + len(late), seconds=30)
        booked = {row["id"]: row for row in before.usage()}
        key = before.key()
        assert before.stop() == 0
    except BaseException:
        print(before.tail())
        before.kill_all()
        raise
    after = Restored(tmp_path / "after", gateways=1)
    after.known_key = key
    command = [sys.executable, "-m", "penstock", "restore", str(kept), "--data", str(after.data)]
    done = subprocess.run(command, cwd=ROOT, env=after.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    try:
        after.start()
        assert ask(after), "the keys work on"
        wait_for(
            "the usage of what had ended",
            lambda: {row["id"] for row in after.usage()}.issuperset(ended),
            seconds=30,
        )
        rows = after.usage()
        assert len({row["id"] for row in rows}) == len(rows), "each once"
        for row in rows:
            if row["id"] in booked and row["outcome"] == "completed":
                assert row["actual_mu"] == booked[row["id"]]["actual_mu"]
        print(f"{len(ended)} ended before, {len(late)} while the backup was made, {len(rows)} rows after the restore")
        assert after.stop() == 0
    except BaseException:
        print(after.tail())
        after.kill_all()
        raise
