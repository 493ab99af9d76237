"""Keeps a set of child processes running, and stops them in order within a bound.

Knows nothing of what the children are: ``penstock.roles`` says that. Every child gets a session of its own (a Ctrl-C
in the terminal reaches the supervisor alone, which then stops everything in order), is asked to stop by the kernel
when the supervisor dies, and is noted in a file, so that the next start can end what the last one left.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

HEALTHY_AFTER_S = 10.0
"""A child that ran this long starts its back-off anew when it dies: what loops dies while it starts."""
_KILL_RESERVE_S = 2.0
"""Kept back of a stop's bound, so that what does not stop can still be killed and reaped within it."""
_PR_SET_PDEATHSIG = 1
_LINE_LIMIT = 256 * 1024
_LAST_LINES_S = 1.0
"""How long the last lines of a dead child are waited for, in case something still holds its pipe."""


@dataclass(frozen=True)
class Role:
    """One process to keep running. Higher ``stage`` starts later and stops earlier; ``grace_s`` is from the signal."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stage: int = 0
    grace_s: float = 8.0
    stop_signal: int = signal.SIGTERM


def restart_delay_s(failures: int) -> float:
    """Seconds to wait before start number ``failures`` + 1 in a row: 0.5, 1, 2 … at most 8."""
    return min(8.0, 0.5 * 2.0 ** max(0, failures - 1))


def describe_exit(code: int) -> str:
    """``code`` as asyncio gives it (negative: a signal), in words."""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


def _death_signal() -> Callable[[], None] | None:
    """What a child runs before exec: ask the kernel for SIGTERM when the supervisor dies (Linux only)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return in_child


@dataclass
class _Child:
    """A running process and what it writes.

    The pipe is our own: asyncio's ``wait`` would not return while a grandchild holds the one that it makes.
    """

    process: asyncio.subprocess.Process
    output: asyncio.StreamReader
    aside: asyncio.StreamReader | None
    transports: list[asyncio.ReadTransport]

    def close(self) -> None:
        for transport in self.transports:
            transport.close()


class Supervisor:
    """Runs roles until ``stop``. ``on_line(role, text)`` gets every line a child writes, ``say`` the news about it."""

    def __init__(
        self,
        *,
        on_line: Callable[[str, str], None],
        say: Callable[[str], None],
        pids_file: Path | None = None,
        healthy_after_s: float = HEALTHY_AFTER_S,
        delay_s: Callable[[int], float] = restart_delay_s,
    ) -> None:
        self._on_line, self._say = on_line, say
        self._pids_file = pids_file
        self._healthy_after_s, self._delay_s = healthy_after_s, delay_s
        self._roles: dict[str, Role] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stopping: set[str] = set()
        self._preexec = _death_signal()
        self.restarts: dict[str, int] = {}

    # ------------------------------------------------------------------ start
    def start(self, role: Role) -> None:
        """Start ``role`` and keep it running until it is stopped."""
        self._roles[role.name] = role
        self._keepers[role.name] = asyncio.create_task(self._keep(role), name=f"keep {role.name}")

    async def run_once(self, role: Role) -> tuple[int, str]:
        """Run ``role`` to its end; its standard error goes to ``on_line``. Returns exit code and standard output."""
        child = await self._spawn(role, apart=True)
        self._note(role.name, child.process)
        relay = asyncio.create_task(self._relay(role.name, child.aside))
        output = asyncio.create_task(child.output.read())
        try:
            code = await child.process.wait()
            self._kill_group(child.process)
            await asyncio.wait([relay, output], timeout=_LAST_LINES_S)
            return code, output.result().decode("utf-8", "replace") if output.done() else ""
        finally:
            self._kill_group(child.process)
            relay.cancel()
            output.cancel()
            await asyncio.gather(child.process.wait(), relay, output, return_exceptions=True)
            child.close()
            self._forget(role.name)

    def pid(self, name: str) -> int | None:
        """The pid of a running role, or None while it is down."""
        process = self._processes.get(name)
        return process.pid if process is not None else None

    async def _keep(self, role: Role) -> None:
        failures = 0
        while role.name not in self._stopping:
            began = time.monotonic()
            try:
                child = await self._spawn(role)
            except OSError as error:
                how = f"could not be started: {error.strerror}"
            else:
                how = f"ended with {describe_exit(await self._live(role, child))}"
            if role.name in self._stopping:
                return
            failures = 1 if time.monotonic() - began >= self._healthy_after_s else failures + 1
            delay = self._delay_s(failures)
            self.restarts[role.name] = self.restarts.get(role.name, 0) + 1
            self._say(f"{role.name} {how}; starts again in {delay:g} s")
            await asyncio.sleep(delay)

    async def _live(self, role: Role, child: _Child) -> int:
        """Follow a child to its end and clean up after it. Returns its exit code."""
        self._note(role.name, child.process)
        relay = asyncio.create_task(self._relay(role.name, child.output))
        try:
            code = await child.process.wait()
            # What it left running in its group must not hold a port, nor the next start.
            self._kill_group(child.process)
            await asyncio.wait([relay], timeout=_LAST_LINES_S)
            return code
        finally:
            relay.cancel()
            await asyncio.gather(relay, return_exceptions=True)
            child.close()
            self._forget(role.name)

    async def _spawn(self, role: Role, *, apart: bool = False) -> _Child:
        """Start a process; with ``apart`` its standard error is a stream of its own, else part of its output."""
        loop = asyncio.get_running_loop()
        readers: list[asyncio.StreamReader] = []
        transports: list[asyncio.ReadTransport] = []
        ends: list[int] = []
        try:
            for _ in range(2 if apart else 1):
                read_end, write_end = os.pipe()
                ends.append(write_end)
                reader = asyncio.StreamReader(limit=_LINE_LIMIT)
                factory = partial(asyncio.StreamReaderProtocol, reader)
                transport, _protocol = await loop.connect_read_pipe(factory, os.fdopen(read_end, "rb", buffering=0))
                readers.append(reader)
                transports.append(transport)
            process = await asyncio.create_subprocess_exec(
                *role.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=ends[0],
                stderr=ends[-1],
                env={**os.environ, **role.env},
                start_new_session=True,
                preexec_fn=self._preexec,
            )
        except BaseException:
            for transport in transports:
                transport.close()
            raise
        finally:
            for end in ends:
                os.close(end)
        return _Child(process, readers[0], readers[1] if apart else None, transports)

    async def _relay(self, name: str, stream: asyncio.StreamReader | None) -> None:
        while stream is not None:
            try:
                raw = await stream.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                raw = error.partial
            except asyncio.LimitOverrunError as error:
                raw = await stream.readexactly(max(1, error.consumed))
            if not raw:
                return
            self._on_line(name, raw.decode("utf-8", "replace").rstrip("\r\n"))

    # ------------------------------------------------------------------- stop
    async def stop_role(self, name: str, *, grace_s: float) -> None:
        """Ask one role to stop; after ``grace_s`` its process group is killed. Returns when it is gone."""
        role, keeper = self._roles.get(name), self._keepers.get(name)
        if role is None or keeper is None:
            return
        self._stopping.add(name)
        process = self._processes.get(name)
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(role.stop_signal)
            try:
                await asyncio.wait_for(process.wait(), max(0.0, grace_s))
            except TimeoutError:
                self._say(f"{name} did not stop within {grace_s:.0f} s and is killed")
            self._kill_group(process)
            await process.wait()
            # The keeper notes the end and hands over the last lines.
            await asyncio.wait([keeper], timeout=2 * _LAST_LINES_S)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        self._forget(name)
        del self._roles[name], self._keepers[name]

    async def stop_stage(self, stage: int, *, deadline: float) -> None:
        """Stop the roles of one stage side by side; ``deadline`` is on the monotonic clock."""
        left = max(0.0, deadline - time.monotonic())
        names = [role.name for role in self._roles.values() if role.stage == stage]
        await asyncio.gather(*(self.stop_role(n, grace_s=min(self._roles[n].grace_s, left)) for n in names))

    async def stop(self, *, bound_s: float) -> None:
        """Stop all stages, the highest first, within ``bound_s`` seconds."""
        deadline = time.monotonic() + max(0.0, bound_s - _KILL_RESERVE_S)
        for stage in self.stages():
            await self.stop_stage(stage, deadline=deadline)

    def stages(self) -> list[int]:
        """The stages that still have roles, in the order in which they stop."""
        return sorted({role.stage for role in self._roles.values()}, reverse=True)

    async def kill(self) -> None:
        """SIGKILL every child's process group now and wait until all are reaped; nothing is restarted."""
        self._stopping.update(self._roles)
        for process in list(self._processes.values()):
            self._kill_group(process)
        keepers = list(self._keepers.values())
        if keepers:
            await asyncio.wait(keepers, timeout=2 * _LAST_LINES_S)
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    @staticmethod
    def _kill_group(process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    # ------------------------------------------------------------------- pids
    def _note(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._processes[name] = process
        self._write_pids()

    def _forget(self, name: str) -> None:
        if self._processes.pop(name, None) is not None:
            self._write_pids()

    def _write_pids(self) -> None:
        if self._pids_file is None:
            return
        entries = {}
        for name, process in self._processes.items():
            with suppress(psutil.Error):
                entries[name] = {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
        temporary = self._pids_file.with_suffix(".new")
        with suppress(OSError):
            temporary.write_text(json.dumps(entries), encoding="utf-8")
            os.replace(temporary, self._pids_file)


def sweep(pids_file: Path, *, patience_s: float = 3.0) -> list[str]:
    """End the roles that an earlier supervisor left behind (it was killed). Returns their names.

    A pid counts only together with its start time: another process may have been given the number since.
    """
    try:
        entries = json.loads(pids_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    left: dict[str, psutil.Process] = {}
    for name, entry in entries.items():
        with suppress(psutil.Error, KeyError, TypeError, ValueError):
            process = psutil.Process(int(entry["pid"]))
            if abs(process.create_time() - float(entry["started"])) < 0.05 and process.status() != "zombie":
                left[name] = process
    return end_processes(left, patience_s=patience_s)


def end_processes(processes: Mapping[str, psutil.Process], *, patience_s: float) -> list[str]:
    """SIGTERM, then after ``patience_s`` SIGKILL to the group. Returns the names of those that were running."""
    for process in processes.values():
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(list(processes.values()), timeout=patience_s)
    for process in alive:
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
    psutil.wait_procs(alive, timeout=patience_s)
    return list(processes)
