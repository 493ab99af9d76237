"""A calibration by the command line, against the whole house: a replica leaves, is measured, and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import Stack, wait_for
from tests.e2e.test_command_line import MAKE_TOKEN

pytestmark = [pytest.mark.timed, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

TERMS = {"base": "base_ms", "alpha": "alpha_ms", "beta": "beta_ms", "gamma": "gamma_ms"}
LARGEST_MISS = 0.25
"""Of the engine's own coefficients: the machine of this test is busy with everything else of the house."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Stack]:
    """With the simulated engine alone, so that nothing else takes the machine."""
    running = Stack(tmp_path / "data", engine="simulated", gateways=1)
    try:
        yield running.start()
        assert running.stop() == 0
    except BaseException:
        print(running.tail(120))
        running.kill_all()
        raise


class Shell:
    """``penstock`` as its operator uses it."""

    def __init__(self, house: Stack, home: Path) -> None:
        self.environment = {**os.environ, "XDG_CONFIG_HOME": str(home), "COLUMNS": "200"}
        token = house.manage(MAKE_TOKEN).rpartition("token:")[2].split()[0]
        self("login", house.console_url, stdin=token + "\n")

    def start(self, *words: str) -> subprocess.Popen[str]:
        # A shell that runs the tests in the background has them ignore it, and what they start inherits that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command = [sys.executable, "-P", "-m", "penstock", *words]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=self.environment, **pipes)

    def __call__(self, *words: str, stdin: str = "", seconds: float = 90.0, code: int = 0) -> str:
        running = self.start(*words)
        out, err = running.communicate(stdin, timeout=seconds)
        print(f"$ penstock {' '.join(words)}\n{out}{err}")
        assert running.returncode == code, out + err
        return out

    def rows(self, *words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self(*words, "--json"))
        return found


def test_from_the_command_to_a_measured_price(house: Stack, tmp_path: Path) -> None:
    penstock = Shell(house, tmp_path / "home")
    penstock("deployments", "set", "demo-sim", "--pinned-replicas", "2")
    (deployment,) = [one for one in penstock.rows("deployments", "list") if one["name"] == "demo-sim"]
    own, slots = deployment["revision"]["options"], deployment["revision"]["target_concurrency"]
    # The prompts that are measured fill the context: a shorter one takes less time.
    options = json.dumps(own | {"max_model_len": 2048})
    penstock("deployments", "revise", "demo-sim", "--options", options, "--target-concurrency", str(slots))

    def ready() -> int:
        return sum(
            (row["deployment_name"], row["revision_number"]) == ("demo-sim", 2)
            for row in penstock.rows("replicas", "list", "--state", "ready")
        )

    wait_for("two ready replicas", lambda: ready() == 2, seconds=90, every=2.0)
    failed, over = [], threading.Event()

    def clients() -> None:
        while not over.wait(1.0):
            if not house.is_serving("demo-sim"):
                failed.append(time.time())

    asking = threading.Thread(target=clients)
    asking.start()
    try:
        # It can be left, and goes on by itself.
        watching = penstock.start("calibrate", "demo-sim", "--grid", "small", "--wait")
        measuring = lambda: penstock.rows("calibrations", "list", "--state", "measuring")  # noqa: E731
        wait_for("the measurement", measuring, seconds=90, every=2.0)
        wait_for(
            "a first shape", lambda: measuring() and measuring()[0]["progress"].get("share"), seconds=120, every=2.0
        )
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=30)
        assert watching.returncode == 130, said
        assert "it goes on by itself" in said
        assert ready() == 1
        # And is found again.
        out = penstock("calibrate", "demo-sim", "--wait", seconds=1000)
    finally:
        over.set()
        asking.join()
    assert "demo-sim on" in out
    assert failed == [], "clients noticed"
    (row,) = penstock.rows("calibrations", "list", "--state", "fitted")
    found = json.loads(penstock("calibrations", "show", row["id"], "--json"))
    for term, option in TERMS.items():
        if own.get(option) and term not in [one["term"] for one in found["fit"]["dropped"]]:
            assert found["fit"]["terms"][term] == pytest.approx(own[option], rel=LARGEST_MISS), term
    assert found["fit"]["r2"] > 0.95
    assert found["knee"]["rate_per_s"] > 0
    wait_for("both replicas in rotation", lambda: ready() == 2, seconds=30, every=2.0)
    adopted = json.loads(penstock("calibrations", "adopt", row["id"], "--yes", "--json"))
    assert (adopted["state"], adopted["adopted_version"]) == ("adopted", 2)
    pools = penstock.rows("pools", "list")
    prices = {one["slug"]: one["price"]["calibrated"] for one in pools}
    assert prices[deployment["pool"]] is True
    assert house.is_serving("demo-sim"), "the new price is at the gateways, and requests are admitted by it"
