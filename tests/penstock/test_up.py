"""``penstock up`` when something goes wrong in it: what runs is stopped in order all the same."""

from __future__ import annotations

import asyncio
import errno
import io
import time
from pathlib import Path
from typing import Any

import pytest

from penstock import installation as module
from penstock import quickstart
from penstock.cli.up import _foreground
from penstock.installation import Installation
from penstock.logs import Terminal
from penstock.quickstart import Model
from penstock.roles import Options

FULL = OSError(errno.ENOSPC, "No space left on device")


class Scripted:
    """An installation whose steps end as told; ``calls`` says which were taken."""

    def __init__(self, **outcomes: Any) -> None:
        self.outcomes, self.calls = outcomes, list[str]()

    def _end(self, step: str, default: Any) -> Any:
        self.calls.append(step)
        outcome = self.outcomes.get(step, default)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def run(self, *, check_s: float | None) -> int:
        return self._end("run", 0)  # type: ignore[no-any-return]

    async def stop(self) -> list[str]:
        return self._end("stop", [])  # type: ignore[no-any-return]

    async def kill(self) -> None:
        self._end("kill", None)


def screen() -> tuple[io.StringIO, Terminal]:
    stream = io.StringIO()
    return stream, Terminal(stream)


def installation(data: Path, terminal: Terminal) -> Installation:
    data.mkdir(exist_ok=True)
    return Installation(
        Options(data=data), terminal=terminal, demo_engine=None, model=None, stop_within_s=1.0, began=time.monotonic()
    )


@pytest.mark.parametrize("check_s", [None, 5.0])
async def test_an_error_that_nobody_expected_ends_in_the_orderly_stop(check_s: float | None) -> None:
    stream, terminal = screen()
    scripted = Scripted(run=FULL)
    assert await _foreground(scripted, terminal, check_s) == 1  # type: ignore[arg-type]
    assert scripted.calls == ["run", "stop"]
    assert "stopped by an error: OSError: [Errno 28] No space left on device" in stream.getvalue()
    assert "Traceback" not in stream.getvalue()


async def test_a_stop_that_fails_kills_what_is_left() -> None:
    stream, terminal = screen()
    scripted = Scripted(stop=FULL)
    assert await _foreground(scripted, terminal, None) == 1  # type: ignore[arg-type]
    assert scripted.calls == ["run", "stop", "kill"]
    assert "No space left" in stream.getvalue()


def test_a_quickstart_that_cannot_be_written_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, terminal = screen()
    made = installation(tmp_path, terminal)
    write = quickstart.write

    def full(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(quickstart, "write", full)
    made._write_quickstart({"tenants": [{"api_key": "mu_x"}], "models": []})
    for state in ("starting", "warming", "ready"):
        made._show([Model("demo-sim", "simulated", "simulated", state)])
    assert stream.getvalue().count("No space left on device") == 1
    monkeypatch.setattr(quickstart, "write", write)
    made._show([Model("demo-sim", "simulated", "simulated", "ready")])
    assert quickstart.read(tmp_path)["tenants"] == [{"api_key": "mu_x"}]


async def test_a_check_does_not_wait_for_a_follower_that_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = installation(tmp_path, screen()[1])

    async def nothing() -> None:
        return

    async def forever(*args: object, **kwargs: object) -> int:
        await asyncio.sleep(600)
        return 0

    async def broken() -> None:
        raise KeyError("models")

    monkeypatch.setattr(made, "_start", nothing)
    monkeypatch.setattr(made, "_welcome", nothing)
    monkeypatch.setattr(made, "_follow", broken)
    monkeypatch.setattr(module, "check", forever)
    async with asyncio.timeout(5):
        with pytest.raises(KeyError):
            await made.run(check_s=900.0)
