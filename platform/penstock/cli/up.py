"""``penstock up``: all roles of one machine in the foreground."""

import argparse
import asyncio
import fcntl
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from penstock import doctor, env, model_source, quickstart
from penstock.cli.doctor import lines as finding_lines
from penstock.installation import Installation, StartError
from penstock.logs import Terminal, wants_colour
from penstock.machine import gather
from penstock.roles import Options, RoleError, is_loopback, role_named
from penstock.secrets import VARIABLES, ensure_secrets, load_secrets, missing

_SAME_KEYSTROKE_S = 0.5
_NEEDED = {"gateway": ("PENSTOCK_KEY_PEPPERS",), "web": VARIABLES, "loops": VARIABLES}
"""Secrets that a role cannot do without, by role."""


class UsageError(ValueError):
    """The command line asks for something that cannot be; the message says what to do."""


def run(arguments: argparse.Namespace) -> int:
    options = Options(
        data=arguments.data.expanduser().resolve(),
        host=arguments.host,
        port=arguments.port,
        api_port=arguments.api_port,
        gateways=arguments.gateways,
        redis_url=env.text("REDIS_URL"),
    )
    # Everything in the data folder is for its owner alone, whichever role makes it.
    os.umask(0o077)
    try:
        refuse_contradictions(arguments, options)
        if arguments.only:
            become(arguments.only, options, instance=arguments.instance)
        return _run_all(arguments, options)
    except (UsageError, RoleError) as error:
        print(f"penstock up: {error}", file=sys.stderr)
        return 2


def refuse_contradictions(arguments: argparse.Namespace, options: Options) -> None:
    """Raises UsageError for what is clear from the arguments and the data folder alone."""
    if arguments.only:
        return
    if arguments.check and arguments.no_demo:
        raise UsageError("--check asks the demo's deployments: leave --no-demo out")
    if options.port == options.api_port:
        raise UsageError("the console and the gateway need a port each: --port and --api-port are the same")
    wrong = model_source.problem(arguments.model) if arguments.model else ""
    if wrong:
        raise UsageError(wrong)
    has_demo = not arguments.no_demo or bool(quickstart.read(options.data).get("demo"))
    if has_demo and not is_loopback(options.host) and not arguments.allow_remote_demo:
        raise UsageError(
            f"the demo's tenants and keys must not be reachable from other machines, and --host {options.host} is. "
            "Start with --no-demo and an empty data folder, or say --allow-remote-demo"
        )


def become(name: str, options: Options, *, instance: int) -> None:
    """Replace this process by one role: what systemd and containers run. Raises RoleError and SettingError."""
    role = role_named(name, options, instance=instance)
    unset = [variable for variable in missing(load_secrets(options.data)) if variable in _NEEDED.get(name, ())]
    if unset:
        raise RoleError(
            f"{options.data} is not set up ({', '.join(unset)}): run `penstock setup --data {options.data}` once "
            "before the roles, or set each of these to what the other roles have"
        )
    os.execve(role.argv[0], role.argv, {**os.environ, **role.env})  # noqa: S606  (that is the point)


def _run_all(arguments: argparse.Namespace, options: Options) -> int:
    terminal = Terminal()
    began = time.monotonic()
    lock = _take_folder(options.data)
    try:
        facts = gather(options, database_url=env.text("DATABASE_URL"))
        findings = doctor.judge(facts)
        colour = wants_colour(sys.stdout)
        for finding in findings:
            if finding.status != "ok":
                for line in finding_lines(finding, colour=colour):
                    terminal.line(line, source="doctor")
        if doctor.worst(findings) == "fail":
            terminal.line("not started: see above. `penstock doctor` looks again.")
            return 1
        shown = [f for f in findings if f.name in ("python", "cpu", "memory", "accelerators") and f.status == "ok"]
        terminal.line(" · ".join(f"{f.name} {f.detail}" for f in shown), source="doctor")
        engine, obstacle = doctor.choose_engine(arguments.engine, facts)
        if arguments.engine == "vllm" and obstacle:
            raise UsageError(f"--engine vllm was asked for, but {obstacle}. Without it: --engine auto")
        if arguments.engine == "auto" and obstacle and not arguments.no_demo:
            terminal.line(f"no real vLLM here: {obstacle}. The demo runs on the simulated engine.", source="doctor")
        ensure_secrets(options.data)
        _allow_many_files()
        installation = Installation(
            options,
            terminal=terminal,
            demo_engine=None if arguments.no_demo else engine,
            model=arguments.model,
            stop_within_s=arguments.stop_within,
            began=began,
            is_verbose=arguments.verbose,
        )
        check_s = arguments.check_timeout if arguments.check else None
        return asyncio.run(_foreground(installation, terminal, check_s))
    finally:
        lock.close()


async def _foreground(installation: Installation, terminal: Terminal, check_s: float | None) -> int:
    """Run until a signal or, with ``check_s``, until the check is done. A second signal stops at once."""
    signals: asyncio.Queue[float] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: signals.put_nowait(time.monotonic()))
    asked = asyncio.create_task(signals.get())
    body = asyncio.create_task(installation.run(check_s=check_s))
    await asyncio.wait([asked, body], return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if body.done():
        code = _outcome(body, terminal)
    else:
        terminal.status("")
        terminal.line("stopping; once more Ctrl-C stops at once")
        body.cancel()
        await asyncio.gather(body, return_exceptions=True)
        asked = asyncio.create_task(_next_after(signals, asked.result() + _SAME_KEYSTROKE_S))
        # Interrupted before it had its answers, a check has not passed.
        code = 1 if check_s is not None else 0
    stopping = asyncio.create_task(installation.stop())
    await asyncio.wait([asked, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        await installation.kill()
        return code or 130
    asked.cancel()
    try:
        left = stopping.result()
    except Exception as error:  # noqa: BLE001  (whatever went wrong, nothing may be left running)
        terminal.line(f"the orderly stop failed ({_worded(error)})")
        await installation.kill()
        return code or 1
    if left:
        terminal.line(f"killed what did not stop: {', '.join(left)}")
        code = code or (1 if check_s is not None else 0)
    terminal.line("stopped")
    return code


async def _next_after(signals: "asyncio.Queue[float]", moment: float) -> float:
    """The first signal after ``moment``: a wrapper such as ``uv run`` passes on what the terminal sent us as well."""
    while (at := await signals.get()) <= moment:
        pass
    return at


def _outcome(body: "asyncio.Task[int]", terminal: Terminal) -> int:
    try:
        return body.result()
    except StartError as error:
        terminal.status("")
        terminal.line(f"not started: {error}")
        return 1
    except Exception as error:  # noqa: BLE001  (it must come to the orderly stop: engines outlive this process)
        terminal.status("")
        terminal.line(f"stopped by an error: {_worded(error)}")
        return 1


def _worded(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _take_folder(data: Path) -> IO[str]:
    """Hold ``run/up.lock`` for as long as this process lives. Raises UsageError when another ``up`` holds it."""
    folder = data / "run"
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        lock = (folder / "up.lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{data} cannot be used as data folder ({error.strerror}): name another with --data"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise UsageError(
            f"`penstock up` runs on {data} already{f' (pid {holder})' if holder else ''}: "
            "stop it first (Ctrl-C or kill), or name another folder with --data"
        ) from None
    os.fchmod(lock.fileno(), 0o600)
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _allow_many_files() -> None:
    import resource  # absent on Windows

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
