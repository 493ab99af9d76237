"""Processes of this agent: launched into sessions of their own, found again by markers, ended as groups."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import psutil

from worker.runtimes.base import MARKER_AGENT, MARKER_REPLICA

INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CUDA_HOME", "CUDA_PATH",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
)  # fmt: skip
INHERITED_PREFIXES = ("LC_", "NCCL_", "NVIDIA_")
FETCHING_PREFIXES = ("PIP_", "HF_", "HUGGING_FACE_")
"""Only what fetches packages or weights sees these: they may hold tokens."""
START_TOLERANCE_S = 2.0
"""The kernel tells a start time relative to boot; the boot time moves when the clock is set."""
FIRST_PORT, LAST_PORT = 20_000, 32_767
"""Below the range from which Linux takes outgoing ports: nothing grabs the port while an engine loads."""


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    started: float


def engine_environment(
    parent: Mapping[str, str], extra: Mapping[str, str], *, is_fetching: bool = False
) -> dict[str, str]:
    """Return a child's environment: an allow-list of the agent's, then ``extra``. Secrets of the platform stay out."""
    prefixes = INHERITED_PREFIXES + (FETCHING_PREFIXES if is_fetching else ())
    kept = {k: v for k, v in parent.items() if k in INHERITED or k.startswith(prefixes)}
    return kept | dict(extra)


def launch(
    argv: Iterable[str], *, env: Mapping[str, str], cwd: Path, log: Path, keep: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start a process in its own session, its output appended to ``log``: it outlives this agent. Raises OSError.

    ``keep`` names descriptors it inherits (a lock, held as long as it lives); no other is passed on.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        return subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=keep,
        )
    finally:
        os.close(descriptor)


def start_time(pid: int) -> float | None:
    """Return when the process started (UNIX s), or None when there is no such living process."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_same_process(pid: int, started: float, replica_id: str) -> bool:
    """Whether ``pid`` is still the process that was launched, and not another one with its number."""
    now = start_time(pid)
    if now is None or abs(now - started) > START_TOLERANCE_S:
        return False
    marker = marker_of(pid, MARKER_REPLICA)
    return marker is None or marker == replica_id


def marker_of(pid: int, name: str) -> str | None:
    """Return a marker variable of a process; None when it has none or may not be read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    prefix = name.encode() + b"="
    for entry in raw.split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode("utf-8", "replace")
    return None


def members(replica_id: str, agent_folder: Path, leader: Launched | None) -> list[int]:
    """Return the living processes of a replica: marked as such, or in its leader's session.

    The kernel gives a leader's number to nobody while its session lives, so the session is ours unless the number is
    in use by a process that is not the one launched.
    """
    sessions = {}
    if leader is not None:
        is_reused = start_time(leader.pid) is not None and not is_same_process(leader.pid, leader.started, replica_id)
        sessions = {} if is_reused else {leader.pid: replica_id}
    return [pid for pid, owner in marked(agent_folder, sessions) if owner == replica_id]


def marked(agent_folder: Path, sessions: Mapping[int, str] | None = None) -> list[tuple[int, str]]:
    """Return ``(pid, replica id)`` of every living process that an agent of ``agent_folder`` started.

    Builders and fetchers carry an empty replica id. ``sessions`` maps session leaders known to be ours to their
    replica, for processes that rewrote their environment.
    """
    folder, found, sessions = str(agent_folder), [], sessions or {}
    for process in psutil.process_iter():
        pid = process.pid
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            session = os.getsid(pid)
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue
        if marker_of(pid, MARKER_AGENT) == folder:
            found.append((pid, marker_of(pid, MARKER_REPLICA) or ""))
        elif session in sessions:
            found.append((pid, sessions[session]))
    return found


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal once to every process group that ``pids`` are in.

    All of ``pids`` live in sessions of their own launch, so their groups hold nobody else; the agent's own group is
    never signalled.
    """
    groups = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    for group in groups - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def choose_port(taken: set[int], rng: random.Random) -> int:
    """Return a loopback port that nobody listens on and no replica was given. Raises OSError when none is left."""
    span = LAST_PORT - FIRST_PORT + 1
    first = rng.randrange(span)
    for step in range(span):
        port = FIRST_PORT + (first + step) % span
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {FIRST_PORT} and {LAST_PORT}")
