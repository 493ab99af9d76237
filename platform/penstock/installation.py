"""One machine's installation as ``penstock up`` runs it: start in order, tell how far it is, stop in order."""

import asyncio
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

from penstock import quickstart, roles
from penstock.check_run import check
from penstock.loglines import Sieve
from penstock.logs import RoleLog, Terminal
from penstock.quickstart import Model
from penstock.roles import Options
from penstock.status_client import StatusClient, StatusError
from penstock.supervisor import Supervisor, sweep

_STATE_READY_S = 20.0
_FIRST_ANSWER_S = 14.0
"""How long the welcome waits for the simulated deployment, so that its curl line streams at once."""
_PENDING_TOLD_S = 5.0
_STOP_BY = {roles.STAGE_GATEWAY: 0.40, roles.STAGE_CONTROL: 0.55, roles.STAGE_LOOPS: 0.90, roles.STAGE_STATE: 0.97}
"""By which share of the stop's bound each stage is over, killed if need be."""
_ENGINES_STOP_BY = 0.78


class StartError(RuntimeError):
    """The installation did not come up; the message says why and what to do."""


class Installation:
    """``demo_engine``: ``vllm`` or ``simulated`` for the demo on an empty database, None for no demo.

    With ``is_verbose`` the terminal shows every line of the roles, else what a person needs.
    """

    def __init__(
        self,
        options: Options,
        *,
        terminal: Terminal,
        demo_engine: str | None,
        model: str | None,
        stop_within_s: float,
        began: float,
        is_verbose: bool = False,
    ) -> None:
        self._token = secrets.token_urlsafe(32)
        self.options = options
        self.demo_engine, self.model_source = demo_engine, model
        self._terminal, self._stop_within_s, self._began = terminal, stop_within_s, began
        self._is_verbose = is_verbose
        self._logs: dict[str, RoleLog] = {}
        self._sieves: dict[str, Sieve] = {}
        self._promised = ""
        self._pids_file = options.data / "run" / "pids.json"
        self.supervisor = Supervisor(on_line=self._line, say=terminal.line, pids_file=self._pids_file)
        self.status = StatusClient(options.console_url, self._token)
        self._models: dict[str, Model] = {}
        self._told: dict[str, Model] = {}
        self._stands: dict[str, tuple[tuple[str, str, str, int], float]] = {}
        self.quickstart: dict[str, Any] = {}
        self._is_written = True

    # ------------------------------------------------------------------ start
    async def run(self, *, check_s: float | None) -> int:
        """Start everything and follow it for ever; with ``check_s`` run the check and return its exit code."""
        await self._start()
        follower = asyncio.create_task(self._follow())
        checking: asyncio.Task[int] | None = None
        try:
            await self._welcome()
            if check_s is not None:
                checking = asyncio.create_task(check(self, terminal=self._terminal, timeout_s=check_s))
            # The check reads what the follower learns: without it, it would wait until its time is over.
            await asyncio.wait([follower, *([checking] if checking else [])], return_when=asyncio.FIRST_COMPLETED)
            return checking.result() if checking is not None and checking.done() else follower.result()
        finally:
            tasks = [follower, *([checking] if checking else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self) -> None:
        left = await asyncio.to_thread(sweep, self._pids_file)
        if left:
            self._terminal.line(f"ended what an earlier start left behind: {', '.join(left)}")
        if not self.options.redis_url:
            self.supervisor.start(roles.state_role(self.options))
            await self._wait_for_state()
        for number in range(1, self.options.gateways + 1):
            role = roles.gateway_role(self.options, number)
            # What still streams when its time is over is closed by the gateway itself, with its usage, not by a kill.
            drain_s = 0.8 * _STOP_BY[roles.STAGE_GATEWAY] * self._stop_within_s
            self.supervisor.start(replace(role, env={"PENSTOCK_GATEWAY_DRAIN_S": f"{drain_s:.1f}", **role.env}))
        outcome = await self._set_up()
        self.supervisor.start(roles.loops_role(self.options))
        self.supervisor.start(roles.agent_role(self.options))
        web = roles.web_role(self.options)
        self.supervisor.start(replace(web, env={**web.env, **self.status.environment}))
        content = quickstart.merge(
            quickstart.read(self.options.data),
            seeded=outcome["tenants"],
            base_url=self.options.api_url,
            console_url=self.options.console_url,
            sign_in_url=outcome["sign_in_url"],
            is_demo=bool(outcome["is_demo"]),
        )
        self._write_quickstart(content)
        self._show([Model.of(raw) for raw in outcome["models"]])

    async def _wait_for_state(self) -> None:
        end = time.monotonic() + _STATE_READY_S
        while not await asyncio.to_thread(_answers_ping, str(self.options.state_socket)):
            if time.monotonic() > end:
                log = self.options.data / "log" / "state.log"
                raise StartError(f"the shared state did not answer within {_STATE_READY_S:.0f} s; see {log}")
            await asyncio.sleep(0.05)

    async def _set_up(self) -> dict[str, Any]:
        arguments = []
        if self.demo_engine is not None:
            arguments += ["--demo", "--engine", self.demo_engine]
            if self.model_source:
                arguments += ["--model", self.model_source]
        code, output = await self.supervisor.run_once(roles.setup_role(self.options, *arguments))
        if code != 0:
            raise StartError("the set-up failed; its last lines are above")
        outcome: dict[str, Any] = json.loads(output.splitlines()[-1])
        if outcome["migrations"]:
            self._terminal.line(f"database migrated ({outcome['migrations']} migrations)", source="setup")
        if outcome["tenants"]:
            names = ", ".join(tenant["slug"] for tenant in outcome["tenants"])
            self._terminal.line(f"demo made: tenants {names}", source="setup")
        elif self.model_source:
            advice = "deploy it in the console's admin, or start with another --data"
            self._terminal.line(f"--model is for the first start only, and is not used: {advice}", source="setup")
        return outcome

    # ----------------------------------------------------------------- follow
    async def _follow(self) -> NoReturn:
        """Keep quickstart.json and the terminal up to date with the models' states."""
        while True:
            with suppress(StatusError):
                self._show(await self.status.models())
            settled = all(m.state in ("ready", "failed", "disabled") for m in self._models.values()) and self._models
            await asyncio.sleep(2.0 if settled else 0.5)

    def _show(self, models: list[Model]) -> None:
        changed = [text for model in models if (text := self._news(model))]
        moved = [m for m in models if self._models.get(m.name) != m]
        self._models = {model.name: model for model in models}
        under_way = [model for model in models if model.state in ("environment", "weights", "starting", "warming")]
        for text in changed:
            for line in text.splitlines():
                self._terminal.line(line, source="models")
        if self._terminal.is_tty:
            self._terminal.status("   ".join(model.line() for model in under_way))
        promised = self._models.get(self._promised)
        if promised is not None and promised.state == "ready":
            self._terminal.line(f"{self._promised} answers now: the curl line above streams", source="models")
            self._promised = ""
        if moved or not self._is_written:
            self._write_quickstart(quickstart.with_models(self.quickstart, models))

    def _news(self, model: Model) -> str:
        """What to print of a model. On a terminal the status line shows what moves within a state."""
        told, now = self._told.get(model.name), time.monotonic()
        milestone, since = self._stands.get(model.name, (model.milestone, now))
        since = since if milestone == model.milestone else now
        self._stands[model.name] = (model.milestone, since)
        # Every start waits for a moment; only a wait that lasts is news.
        is_passing = model.state == "pending" and now - since < _PENDING_TOLD_S
        if is_passing or (self._terminal.is_tty and told is not None and told.state == model.state):
            return ""
        text = quickstart.change_line(None if self._terminal.is_tty else told, model)
        if text:
            self._told[model.name] = model
        return text

    def model(self, name: str) -> Model | None:
        """How far a model was when it was last looked at."""
        return self._models.get(name)

    def _write_quickstart(self, content: Mapping[str, Any]) -> None:
        self.quickstart = dict(content)
        try:
            quickstart.write(self.options.data, self.quickstart)
        except OSError as error:
            if self._is_written:
                path = quickstart.quickstart_path(self.options.data)
                why = error.strerror or type(error).__name__
                self._terminal.line(f"{path} cannot be written ({why}): make room; it is tried again")
            self._is_written = False
        else:
            self._is_written = True

    # ---------------------------------------------------------------- welcome
    async def _welcome(self) -> None:
        key = next((tenant["api_key"] for tenant in self.quickstart["tenants"]), "")
        first, is_ready = await self._first_model(key)
        say = self._terminal.plain
        say()
        say(f"  Penstock is up after {time.monotonic() - self._began:.1f} s")
        say(f"    console     {self.options.console_url}")
        if self.quickstart["sign_in_url"]:
            say(f"    open once   {self.quickstart['sign_in_url']}")
        if key and first:
            say(f"    try it      {quickstart.curl_line(self.options.api_url, key, first)}")
            if not is_ready:
                self._promised = first
                say(f"                as soon as {first} is ready, which is told below; until then it answers 503")
        say(f"    keys        {quickstart.quickstart_path(self.options.data)}")
        say(f"    logs        {self.options.data / 'log'}")
        say("    stop        Ctrl-C")
        say()

    async def _first_model(self, key: str) -> tuple[str, bool]:
        """A model a client can stream from, waited for as long as a first start may take; and whether it is ready."""
        end = self._began + _FIRST_ANSWER_S
        while True:
            ready = [m.name for m in self._models.values() if m.state == "ready"]
            listed = await self.status.listed(self.options.api_url, key) if ready and key else []
            usable = sorted(set(ready) & set(listed), key=ready.index)
            if usable:
                return usable[0], True
            if time.monotonic() > end:
                rest = sorted((m for m in self._models.values() if m.state != "disabled"), key=lambda m: not m.label)
                return (rest[0].name if rest else ""), False
            await asyncio.sleep(0.1)

    # ------------------------------------------------------------------- stop
    async def stop(self) -> list[str]:
        """Stop everything in order within the bound. Returns what had to be killed, for people."""
        self._terminal.status("")
        began = time.monotonic()
        for stage in sorted(_STOP_BY, reverse=True):
            await self.supervisor.stop_stage(stage, deadline=began + _STOP_BY[stage] * self._stop_within_s)
            if stage == roles.STAGE_CONTROL:
                await self._stop_engines(deadline=began + _ENGINES_STOP_BY * self._stop_within_s)
        return await self._end()

    async def _stop_engines(self, *, deadline: float) -> None:
        if not await asyncio.to_thread(roles.agent_processes, self.options.data):
            return
        role = roles.stop_engines_role(self.options)
        try:
            await asyncio.wait_for(self.supervisor.run_once(role), max(0.1, deadline - time.monotonic()))
        except TimeoutError:
            self._terminal.line("the engines did not stop in time")

    async def kill(self) -> None:
        """End everything now."""
        await self.supervisor.kill()
        await self._end()
        self._terminal.line("stopped at once")

    async def _end(self) -> list[str]:
        left = await asyncio.to_thread(roles.agent_processes, self.options.data)
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for log in self._logs.values():
            log.close()
        self._pids_file.unlink(missing_ok=True)
        return [f"engine {replica} (pid {pid})" if replica else f"pid {pid}" for pid, replica in left.items()]

    def _line(self, role: str, text: str) -> None:
        if role not in self._logs:
            self._logs[role] = RoleLog(self.options.data / "log" / f"{role}.log")
            self._sieves[role] = Sieve()
        self._logs[role].write(text)
        shown = text if self._is_verbose else self._sieves[role].shown(text)
        if shown:
            self._terminal.line(shown, source=role)


def _answers_ping(path: str) -> bool:
    """Whether a Valkey answers on the unix socket, its file loaded. Plain protocol: no client is imported."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(path)
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
