"""The supervisor, with small scripted children: real processes, real signals."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from penstock.supervisor import Role, Supervisor, describe_exit, restart_delay_s, sweep

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(code))


class Book:
    """What the supervisor told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.news: list[str] = []

    def supervisor(self, **options: object) -> Supervisor:
        return Supervisor(
            on_line=lambda role, text: self.lines.append((role, text)),
            say=self.news.append,
            **options,  # type: ignore[arg-type]
        )


async def until(ask: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


FOREVER = python("import time\nprint('up', flush=True)\ntime.sleep(600)")
DEAF = python(
    """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("up", flush=True)
    time.sleep(600)
    """
)


@pytest.mark.parametrize(("failures", "delay"), [(1, 0.5), (2, 1), (3, 2), (5, 8), (6, 8), (50, 8)])
def test_the_back_off_doubles_up_to_eight_seconds(failures: int, delay: float) -> None:
    assert restart_delay_s(failures) == delay


def test_exits_are_told_in_words() -> None:
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9) == "signal SIGKILL"


async def test_lines_of_a_child_arrive_with_its_name_whatever_they_hold() -> None:
    book = Book()
    code = r"""
    import sys, time
    sys.stdout.buffer.write(b"first\nbroken \xff\n" + b"x" * 400_000 + b"\nno newline")
    sys.stdout.flush()
    sys.stderr.write("")
    time.sleep(600)
    """
    supervisor = book.supervisor()
    supervisor.start(Role("talker", python(code)))
    await until(lambda: sum(len(text) for _, text in book.lines) >= 400_000)
    await supervisor.stop(bound_s=6)
    texts = [text for role, text in book.lines if role == "talker"]
    assert texts[:2] == ["first", "broken �"]
    assert sum(text.count("x") for text in texts) == 400_000
    assert texts[-1] == "no newline"


async def test_a_child_that_dies_is_started_again_with_growing_delays(tmp_path: Path) -> None:
    book, asked = Book(), []

    def delay(failures: int) -> float:
        asked.append(failures)
        return 0.01

    supervisor = book.supervisor(delay_s=delay, healthy_after_s=60)
    supervisor.start(Role("mayfly", python("raise SystemExit(3)")))
    await until(lambda: len(asked) >= 3)
    await supervisor.stop(bound_s=6)
    assert asked[:3] == [1, 2, 3]
    assert "mayfly ended with exit code 3" in book.news[0]


async def test_the_back_off_starts_anew_after_a_healthy_life() -> None:
    book, asked = Book(), []

    def delay(failures: int) -> float:
        asked.append(failures)
        return 0.01

    supervisor = book.supervisor(delay_s=delay, healthy_after_s=0.0)
    supervisor.start(Role("mayfly", python("raise SystemExit(3)")))
    await until(lambda: len(asked) >= 3)
    await supervisor.stop(bound_s=6)
    assert set(asked) == {1}


async def test_a_killed_child_is_started_again_and_its_own_children_are_gone() -> None:
    book = Book()
    code = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    time.sleep(600)
    """
    supervisor = book.supervisor(delay_s=lambda _: 0.01)
    supervisor.start(Role("parent", python(code)))
    await until(lambda: len(book.lines) >= 1)
    first, grandchild = supervisor.pid("parent"), int(book.lines[0][1])
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(book.lines) >= 2)
    assert supervisor.pid("parent") != first
    await until(lambda: is_gone(grandchild))
    await supervisor.stop(bound_s=6)
    await until(lambda: is_gone(int(book.lines[1][1])))


async def test_a_program_that_cannot_be_started_is_told_and_tried_again() -> None:
    book = Book()
    supervisor = book.supervisor(delay_s=lambda _: 0.01)
    supervisor.start(Role("ghost", ("/nonexistent/program",)))
    await until(lambda: len(book.news) >= 2)
    await supervisor.stop(bound_s=6)
    assert "ghost could not be started: No such file" in book.news[0]


async def test_stages_stop_from_the_highest_to_the_lowest() -> None:
    book = Book()
    code = """
    import signal, sys, time
    def stop(*_):
        print("stopping", flush=True)
        time.sleep(0.2)
        print("stopped", flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    print("up", flush=True)
    while True:
        time.sleep(0.05)
    """
    supervisor = book.supervisor()
    for stage, name in enumerate(("low", "middle", "high")):
        supervisor.start(Role(name, python(code), stage=stage))
    await until(lambda: len(book.lines) == 3)
    await supervisor.stop(bound_s=20)
    told = [line for line in book.lines if line[1] != "up"]
    assert told == [(name, word) for name in ("high", "middle", "low") for word in ("stopping", "stopped")]
    assert not any("starts again" in text for text in book.news)


async def test_a_child_that_does_not_stop_is_killed_within_the_bound() -> None:
    book = Book()
    supervisor = book.supervisor()
    supervisor.start(Role("deaf", DEAF, grace_s=60))
    supervisor.start(Role("good", FOREVER, stage=1))
    await until(lambda: len(book.lines) == 2)
    pids = [pid for name in ("deaf", "good") if (pid := supervisor.pid(name))]
    began = time.monotonic()
    await supervisor.stop(bound_s=3)
    assert time.monotonic() - began < 3
    assert all(is_gone(pid) for pid in pids)
    assert any("deaf did not stop" in text for text in book.news)


async def test_a_child_stops_also_while_it_waits_to_be_started_again() -> None:
    book = Book()
    supervisor = book.supervisor(delay_s=lambda _: 600.0)
    supervisor.start(Role("mayfly", python("raise SystemExit(3)")))
    await until(lambda: book.news)
    began = time.monotonic()
    await supervisor.stop(bound_s=5)
    assert time.monotonic() - began < 1


async def test_a_short_run_gives_its_output_and_exit_code() -> None:
    book = Book()
    code = "import sys\nprint('result')\nprint('aside', file=sys.stderr)\nsys.exit(4)"
    assert await book.supervisor().run_once(Role("setup", python(code))) == (4, "result\n")
    assert book.lines == [("setup", "aside")]


async def test_a_short_run_that_is_cancelled_leaves_no_process() -> None:
    book = Book()
    supervisor = book.supervisor()
    code = "import os, sys, time\nprint(os.getpid(), file=sys.stderr, flush=True)\ntime.sleep(600)"
    task = asyncio.create_task(supervisor.run_once(Role("setup", python(code))))
    await until(lambda: book.lines)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: is_gone(int(book.lines[0][1])))


_OWN_SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from penstock.supervisor import Role, Supervisor

async def main():
    supervisor = Supervisor(on_line=lambda role, text: print(text, flush=True), say=print, pids_file=Path(sys.argv[1]))
    polite = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + polite
    supervisor.start(Role("polite", (sys.executable, "-c", polite)))
    supervisor.start(Role("deaf", (sys.executable, "-c", deaf)))
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_killed_supervisor_leaves_no_role_behind_after_the_next_start(tmp_path: Path) -> None:
    pids_file = tmp_path / "pids.json"
    command = [sys.executable, "-c", _OWN_SUPERVISOR, str(pids_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        process.kill()
        process.wait(60)
    end = time.monotonic() + 10
    while sum(is_gone(pid) for pid in pids) < 1:
        assert time.monotonic() < end, "the kernel did not tell the children"
        time.sleep(0.02)
    assert sweep(pids_file, patience_s=0.5) == ["deaf"]
    assert all(is_gone(pid) for pid in pids)


def test_a_sweep_spares_a_process_that_got_the_number_since(tmp_path: Path) -> None:
    pids_file = tmp_path / "pids.json"
    pids_file.write_text(f'{{"web": {{"pid": {os.getpid()}, "started": 12345.0}}, "bad": {{"pid": "x"}}}}')
    assert sweep(pids_file) == []
    assert sweep(tmp_path / "absent.json") == []
