"""The supervisor: looks at every replica, asks ``worker.plan`` what to do, does it, and keeps the report fresh.

Level-triggered: each tick starts from the orders, the remembered states and what is seen now. One event loop in one
thread; what blocks (evidence, host facts) runs beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator

import aiohttp
import msgspec

from worker.calibration.manager import Calibrations
from worker.config import AgentConfig
from worker.engines import Engines
from worker.files import read_tail
from worker.gpus import AcceleratorInventory
from worker.host import HostState, read_host
from worker.learnt import LearntStart
from worker.live import Live
from worker.needs import Need, need_of
from worker.plan import Act, Limits, Seen, Step, decide, start_limit_s, start_slots
from worker.preparation import Preparation
from worker.report import ReplicaView, build_report
from worker.runtimes import get_runtime
from worker.runtimes.base import HostFacts, OptionError
from worker.spec import HostOrders, HostReport, ReplicaOrder
from worker.state import MISSING, ReplicaState, load_states, replica_folder, save_state
from worker.weights import WeightsError
from worker.words import error_words, say_once

log = logging.getLogger(__name__)

TICK_S = 0.2
REPORT_S = 1.0
HOST_S = 2.0
ROTATE_S = 30.0
LOG_TAIL_BYTES = 4096

OnReport = Callable[[HostReport, bool], None]


class Supervisor:
    """All replicas of one agent folder. ``clock`` gives UNIX seconds; ``on_report`` gets each report and whether
    something changed since the last."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        on_report: OnReport,
        clock: Callable[[], float] = time.time,
        inventory: AcceleratorInventory | None = None,
        host_reader: Callable[[], HostState] = read_host,
    ) -> None:
        self.config = config
        self.orders: HostOrders | None = None
        self.states: dict[str, ReplicaState] = {}
        self._live: dict[str, Live] = {}
        self._clock, self._on_report, self._read_host = clock, on_report, host_reader
        self._inventory = inventory or AcceleratorInventory()
        self._host, self._accelerators = host_reader(), self._inventory.read()
        self._reported_at = self._rotated_at = clock()
        self._preparation = Preparation(folder=config.folder, root=config.environments, models=config.models)
        self._engines = Engines(config)
        self._calibrations = Calibrations(config.replicas, pids=self._engines.members)
        self._learnt = LearntStart(config.folder)
        self._has_changed = True
        self._left_out: tuple[str, ...] = ()
        self._trouble = ""
        self._wake = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    # ------------------------------------------------------------------ life
    async def run(self, stop: asyncio.Event) -> None:
        """Adopt what runs, then tick until ``stop``. Engines are left running."""
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False)
        facts = asyncio.create_task(self._refresh_host())
        try:
            self.states = load_states(self.config.replicas)
            self._engines.adopt(self.states)
            self._engines.remove_old_folders(self.states)
            while not stop.is_set():
                self._wake.clear()
                try:
                    self.tick()
                except Exception as error:  # noqa: BLE001  (said in one line; the next look sees afresh)
                    self._trouble = say_once(log, self._trouble, error, "a look at the replicas failed")
                await self._pause(stop)
        finally:
            facts.cancel()
            self._calibrations.stop()
            for live in self._live.values():
                live.end()
            await self._session.close()

    def give_orders(self, orders: HostOrders) -> None:
        """Take new orders. Call it within the event loop."""
        self.orders = orders
        self._has_changed = True
        self._wake.set()

    async def _pause(self, stop: asyncio.Event) -> None:
        waits = [asyncio.create_task(self._wake.wait()), asyncio.create_task(stop.wait())]
        await asyncio.wait(waits, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _refresh_host(self) -> None:
        trouble = ""
        while True:
            await asyncio.sleep(HOST_S)
            try:
                self._host = await asyncio.to_thread(self._read_host)
                self._accelerators = await asyncio.to_thread(self._inventory.read)
                self._say_left_out()
            except Exception as error:  # noqa: BLE001  (said in one line; what was read last still holds)
                trouble = say_once(log, trouble, error, "this host's facts cannot be read")

    def _say_left_out(self) -> None:
        if (left_out := self._inventory.left_out) != self._left_out:
            self._left_out = left_out
            for words in left_out:
                log.warning("no engine is given %s", words)

    # ------------------------------------------------------------------ one tick
    def tick(self) -> None:
        """Look, decide, act, report. Without orders nothing is decided: an agent that knows nothing ends nothing."""
        now = self._clock()
        try:
            if self.orders is not None:
                self._follow(self.orders, now)
            if now - self._rotated_at >= ROTATE_S:
                self._rotated_at = now
                self._engines.rotate_logs(self.states)
                self._engines.remove_old_folders(self.states)
        finally:
            # A host that says nothing is taken for lost, and every engine of it replaced.
            if self._has_changed or not 0 <= now - self._reported_at < REPORT_S:
                self._on_report(self._report(now), self._has_changed)
                self._reported_at, self._has_changed = now, False

    def _follow(self, orders: HostOrders, now: float) -> None:
        by_id = {order.replica_id: order for order in orders.replicas}
        seen: dict[str, Seen] = {}
        for replica_id in [*by_id, *(each for each in self.states if each not in by_id)]:
            with self._isolated(replica_id):
                self._check(by_id.get(replica_id))
                seen[replica_id] = self._live_of(replica_id).seen = self._look(replica_id, now)
        limits = Limits(start_slots=start_slots(self._host.cores), learnt_start_s=self._learnt.seconds)
        for step in decide(tuple(by_id.values()), self.states, seen, limits=limits, now=now):
            with self._isolated(step.replica_id):
                self._apply(step, by_id.get(step.replica_id), now)
        for order in orders.replicas:
            with self._isolated(order.replica_id):
                view = self._live_of(order.replica_id).view
                self._calibrations.follow(order, self.states.get(order.replica_id), view)
        self._calibrations.end_all_but(by_id)
        self._cancel_unwanted(orders)

    @contextlib.contextmanager
    def _isolated(self, replica_id: str) -> Iterator[None]:
        """A fault that one replica causes is said, once, and is no other's."""
        live = self._live_of(replica_id)
        try:
            yield
        except Exception as error:  # noqa: BLE001  (the other replicas need their supervisor)
            live.trouble = say_once(log, live.trouble, error, f"replica {replica_id}")

    def _check(self, order: ReplicaOrder | None) -> None:
        if order is not None and (live := self._live_of(order.replica_id)).need.order != order:
            live.need = need_of(order, self._facts(order))

    def _look(self, replica_id: str, now: float) -> Seen:
        state, need = self.states.get(replica_id), self._live_of(replica_id).need
        if state is not None and state.process is not None:
            return self._look_at_process(state, self._live_of(replica_id), now)
        if state is None or state.phase not in ("environment", "weights", "starting"):
            return Seen(environment=MISSING, weights=MISSING, refusal=need.refusal)
        environment = self._preparation.environment(need.environment)
        weights = self._preparation.weights(need.weights) if environment.state == "ready" else MISSING
        return Seen(environment=environment, weights=weights, refusal=need.refusal)

    def _look_at_process(self, state: ReplicaState, live: Live, now: float) -> Seen:
        is_alive = self._engines.is_alive(state)
        if is_alive and live.watcher is None and self._session is not None:
            live.begin_watch(self._session, state, clock=self._clock, on_news=self._wake.set)
        return live.look_at_process(state, self._engines, is_alive=is_alive, is_late=self._is_late(state, now))

    def _is_late(self, state: ReplicaState, now: float) -> bool:
        if state.phase != "starting" or state.plan is None or state.launched_at is None:
            return False
        return now - state.launched_at > start_limit_s(state.plan.readiness.start_limit_s, self._learnt.seconds)

    # ------------------------------------------------------------------ acting
    def _apply(self, step: Step, order: ReplicaOrder | None, now: float) -> None:
        for act in step.acts:
            self._act(act, step, order, now)
        state = self.states.get(step.replica_id)
        if state is None or (state.phase, state.reason) == (step.phase, step.reason):
            return
        reason = step.reason
        if state.phase != step.phase:
            if step.phase == "failed" and state.phase in ("starting", "warming"):
                reason += self._held_words(state)
            log.info("replica %s (%s): %s, %s", state.replica_id, state.deployment_name, step.phase, reason)
            self._enter(state, step, now)
        state.reason = reason
        self._save(state)

    def _held_words(self, state: ReplicaState) -> str:
        """What else holds the accelerators of an engine that did not start: often what an engine left behind."""
        if not state.accelerators:
            return ""
        held = self._inventory.held_by_others(state.accelerators, self._engines.members(state))
        return f" Its accelerators are in use by {held}." if held else ""

    def _enter(self, state: ReplicaState, step: Step, now: float) -> None:
        state.phase, state.since = step.phase, now
        if step.phase == "ready" and state.ready_at is None:
            state.ready_at = now
            if not state.is_light and state.launched_at is not None and state.replica_id not in self._engines.adopted:
                self._learnt.learn(now - state.launched_at)
        if step.phase == "failed":
            state.log_tail = read_tail(self._engines.log_path(state.replica_id), bytes_=LOG_TAIL_BYTES)

    def _act(self, act: Act, step: Step, order: ReplicaOrder | None, now: float) -> None:
        live = self._live_of(step.replica_id)
        need, refusal = live.need, ""
        try:
            if act is Act.BEGIN and order is not None:
                self._begin(order, live, now)
            elif act is Act.BUILD_ENVIRONMENT and need.environment is not None:
                self._preparation.build_environment(need.environment)
            elif act is Act.FETCH_WEIGHTS and need.weights is not None:
                environment = self._preparation.environment(need.environment).path
                self._preparation.fetch_weights(need.weights, environment)
            elif act is Act.LAUNCH and order is not None:
                self._launch(order, need, now)
            else:
                self._act_on_process(act, self.states[step.replica_id], live, now)
        except (OptionError, WeightsError) as error:
            refusal = str(error)
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            what = "The program cannot be started" if act is Act.LAUNCH else f"{act.value} failed"
            hint = (
                "Install it on this host, or correct the revision" if act is Act.LAUNCH else "Check the agent's folder"
            )
            refusal = f"{what}: {error.strerror}: {error.filename}. {hint}."
        except OSError as error:
            refusal = f"{act.value} failed: {error}. Check disk space and the owner of the agent's folder."
        except Exception as error:  # noqa: BLE001  (an order that cannot be carried out fails its replica alone)
            refusal = f"{act.value} failed ({error_words(error)}). Check the options of the revision."
        if refusal:
            live.need = msgspec.structs.replace(need, refusal=refusal)

    def _act_on_process(self, act: Act, state: ReplicaState, live: Live, now: float) -> None:
        if act is Act.WARM_UP and live.watcher is not None:
            live.watcher.warm_up()
        elif act is Act.KEEP_EVIDENCE and live.evidence_task is None:
            live.evidence_task = asyncio.create_task(self._keep_evidence(state, live))
        elif act is Act.TERMINATE:
            self._engines.signal(state, signal.SIGTERM)
            state.term_sent_at = now
            self._save(state)
        elif act is Act.KILL:
            log.warning("replica %s: SIGKILL to its process group", state.replica_id)
            self._engines.signal(state, signal.SIGKILL)
            state.kill_sent_at = now
            self._save(state)
        elif act is Act.CLEAR:
            live.end_watch()
            self._engines.forget(state)
            self._save(state)
        elif act is Act.FORGET:
            live.end_watch()
            del self.states[state.replica_id], self._live[state.replica_id]
            (replica_folder(self.config.replicas, state.replica_id) / "state.json").unlink(missing_ok=True)
            self._engines.remove_old_folders(self.states)
            self._has_changed = True

    def _begin(self, order: ReplicaOrder, live: Live, now: float) -> None:
        live.end_watch()
        if (old := self.states.get(order.replica_id)) is not None:
            self._engines.forget(old)
        self._preparation.forget_failures(live.need.environment, live.need.weights)
        self._live[order.replica_id] = Live(live.need)
        self.states[order.replica_id] = ReplicaState(
            replica_id=order.replica_id,
            deployment_name=order.deployment_name,
            runtime=order.runtime,
            attempt=order.attempt,
            since=now,
        )

    def _launch(self, order: ReplicaOrder, need: Need, now: float) -> None:
        environment = self._preparation.environment(need.environment).path
        weights = self._preparation.weights(need.weights).path
        plan = get_runtime(order.runtime).launch_plan(
            order=order,
            host=self._facts(order),
            environment=environment,
            weights=weights,
            port=self._engines.choose_port(self.states.values()),
        )
        state = self.states[order.replica_id]
        state.accelerators = order.accelerators
        self._engines.launch(state, plan, is_light=environment is None, now=now)
        self._save(state)

    async def _keep_evidence(self, state: ReplicaState, live: Live) -> None:
        try:
            await live.keep_evidence(state, self._engines, clock=self._clock)
        finally:
            self._has_changed = True
            self._wake.set()

    # ------------------------------------------------------------------ small parts
    def _live_of(self, replica_id: str) -> Live:
        return self._live.setdefault(replica_id, Live(Need()))

    def _facts(self, order: ReplicaOrder) -> HostFacts:
        orders = self.orders.replicas if self.orders is not None else ()
        return HostFacts(
            cores=self._host.cores,
            memory_bytes=self._host.memory_bytes,
            has_cuda=self._inventory.has_cuda,
            engines=sum(1 for each in orders if each.runtime == order.runtime and each.intent == "run") or 1,
            python=sys.executable,
        )

    def _cancel_unwanted(self, orders: HostOrders) -> None:
        needs = [self._live_of(order.replica_id).need for order in orders.replicas if order.intent == "run"]
        names = {need.environment.name for need in needs if need.environment is not None}
        self._preparation.cancel_unwanted(names, {need.weights for need in needs if need.weights is not None})

    def _save(self, state: ReplicaState) -> None:
        self._has_changed = True
        try:
            save_state(self.config.replicas, state)
        except (OSError, ValueError) as error:
            log.error("replica %s: its state could not be written: %s", state.replica_id, error)

    # ------------------------------------------------------------------ report
    def _report(self, now: float) -> HostReport:
        """Without orders it speaks of no replica: what an earlier agent left says nothing about what is wanted."""
        states = self.states.values() if self.orders is not None else ()
        return build_report(
            config=self.config,
            generation=self.orders.generation if self.orders is not None else 0,
            host=self._host,
            accelerators=self._accelerators,
            environments=self._preparation.environment_reports(),
            replicas=[(state, self._view(state, now)) for state in states],
            now=now,
        )

    def _view(self, state: ReplicaState, now: float) -> ReplicaView:
        live = self._live_of(state.replica_id)
        return ReplicaView(
            live.view,
            live.progress(state, now, learnt_start_s=self._learnt.seconds),
            state.replica_id in self._engines.adopted,
            self._calibrations.report(state.replica_id),
        )
