"""Probes against a scripted engine over real HTTP: who is asked, who is condemned, what is kept as evidence."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from capacity.selectors import profile_in_force
from penstock.loops import probe as loop
from penstock.loops.asking import classify
from penstock.loops.probe import CONFIG, longest_step_s, probe
from serving.gateway.loads import ReplicaBeat
from serving.models import Incident, Replica
from serving.policy import health
from serving.services import incident_close, replica_create, revision_create
from tests.loops.conftest import BOSS, FakeGateway, World
from worker.options import Proof

FAST = health.Config(
    interval_s=0.2, quiet_s=0.4, stall_s=0.3, probe_timeout_s=0.5, confirm_after_s=0.1, busy_limit_s=1.0, fresh_s=5.0
)


class ScriptedEngine:
    """Answers completions as its ``mode`` says; keeps every request. ``/health`` is always 200."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.requests: list[dict[str, Any]] = []
        self.others: list[tuple[str, str, Any]] = []
        self.other_answer: Any = {}
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._up.wait(60)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_route("*", "/{path:.*}", self._other)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._up.set()
        return runner

    async def _other(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        self.others.append((request.method, request.path, body))
        if self.mode == "hang":
            await asyncio.sleep(30)
        return web.json_response(self.other_answer)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        if self.mode == "hang":
            await asyncio.sleep(30)
        if self.mode == "slow loris":
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(300):
                await response.write(b" ")
                await asyncio.sleep(0.1)
        if self.mode == "in two writes":
            response = web.StreamResponse()
            await response.prepare(request)
            for part in (b'{"choices": [{"te', b'xt": "a"}]}'):
                await response.write(part)
                await asyncio.sleep(0.05)
            return response
        if self.mode == "deep":
            return web.Response(body=b"[" * 60_000)
        answers = {
            "ok": (200, {"choices": [{"text": "a", "finish_reason": "length"}]}),
            "busy": (503, {"error": "The engine is currently busy"}),
            "broken": (500, {"error": "EngineCore encountered an issue"}),
            "renamed": (404, {"error": "The model `demo` does not exist"}),
            "lying": (200, {"error": {"message": "EngineCore encountered an issue"}}),
        }
        status, body = answers[self.mode]
        return web.json_response(body, status=status)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Probes that fail within half a second, and none that outlives its test."""
    monkeypatch.setattr(loop, "CONFIG", FAST)
    yield
    end_probes()


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    made = ScriptedEngine()
    yield made
    end_probes()
    made.stop()


def end_probes() -> None:
    for thread in threading.enumerate():
        if thread.name == "probes":
            thread.join(5)


def serve(world: World, address: str, state: str = "ready") -> Replica:
    # By the price of this pool a whole batch takes long: its steps are short, so that probes may be, too.
    revision = world.deployment.revisions.filter(is_current=True).get()
    if not revision.options:
        options = {"max_num_batched_tokens": 1}
        revision = revision_create(deployment=world.deployment, runtime="simulated", actor=BOSS, options=options)
    replica = replica_create(deployment=world.deployment, revision=revision, reason="a test", host=world.host())
    Replica.objects.filter(pk=replica.pk).update(state=state, address=address)
    replica.refresh_from_db()
    return replica


def probe_for(world: World, seconds: float) -> list[Any]:
    condemned = []
    end = time.time() + seconds
    while time.time() < end:
        condemned += probe(world.client, now=time.time())
        time.sleep(0.05)
    return condemned


@pytest.mark.django_db
class TestLoop:
    def test_an_idle_replica_is_asked_for_one_token_first_in_the_queue(
        self, world: World, engine: ScriptedEngine
    ) -> None:
        replica = serve(world, engine.address)
        assert probe_for(world, 1.0) == []
        assert 2 <= len(engine.requests) <= 8
        first = engine.requests[0]
        assert (first["model"], first["max_tokens"]) == (world.deployment.name, 1)
        assert first["priority"] <= -1000
        replica.refresh_from_db()
        assert replica.state == "ready"

    def test_a_replica_with_real_traffic_is_not_asked(
        self, world: World, engine: ScriptedEngine, gateway: FakeGateway
    ) -> None:
        replica = serve(world, engine.address)
        end = time.time() + 1.0
        while time.time() < end:
            now = time.time()
            gateway.replicas[str(replica.pk)] = ReplicaBeat(n=1, last_token_at=now, last_success_at=now)
            gateway.beat()
            probe(world.client, now=now)
            time.sleep(0.05)
        assert engine.requests == []

    @pytest.mark.parametrize("mode", ["hang", "slow loris", "broken", "lying"])
    def test_an_engine_that_gives_no_token_is_condemned(
        self, world: World, engine: ScriptedEngine, gateway: FakeGateway, mode: str
    ) -> None:
        replica = serve(world, engine.address)
        gateway.replicas[str(replica.pk)] = ReplicaBeat(n=7, last_token_at=1.0)
        gateway.beat()
        engine.mode = mode
        started = time.time()
        condemned: list[Any] = []
        while not condemned and time.time() < started + 8:
            gateway.beat()
            condemned = probe(world.client, now=time.time())
            time.sleep(0.05)
        assert condemned == [replica.pk]
        assert time.time() - started <= FAST.detection_bound_s(0.1) + 1.0
        replica.refresh_from_db()
        incident = Incident.objects.get()
        assert (replica.state, replica.kill, incident.kind) == ("stopping", True, "hang")
        assert incident.evidence["in_flight_by_gateway"] == {"gw-1": 7}
        assert len(incident.evidence["failed_probes"]) == 2
        orders = json.loads(world.client.get(f"agent:orders:{world.agent.host_id}") or b"{}")  # type: ignore[arg-type]
        (order,) = json.loads(orders["payload"])["replicas"]
        assert (order["intent"], order["kill"], order["evidence"]) == ("stop", True, True)

    def test_a_dead_address_is_condemned(self, world: World) -> None:
        replica = serve(world, "http://127.0.0.1:9")
        assert replica.pk in probe_for(world, 2.0)

    def test_a_busy_engine_whose_tokens_move_is_spared(
        self, world: World, engine: ScriptedEngine, gateway: FakeGateway
    ) -> None:
        replica = serve(world, engine.address)
        engine.mode = "busy"
        end = time.time() + 2.0
        while time.time() < end:
            gateway.replicas[str(replica.pk)] = ReplicaBeat(n=9, last_token_at=time.time() - 0.05)
            gateway.beat()
            assert probe(world.client, now=time.time()) == []
            time.sleep(0.05)
        assert Incident.objects.count() == 0

    def test_an_engine_that_wakes_up_in_time_is_spared(self, world: World, engine: ScriptedEngine) -> None:
        serve(world, engine.address)
        engine.mode = "hang"
        probe(world.client, now=time.time())
        while not engine.requests:
            time.sleep(0.01)
        engine.mode = "ok"
        assert probe_for(world, 1.5) == []

    def test_many_hanging_replicas_hold_up_no_tick_and_one_is_killed_first(
        self, world: World, engine: ScriptedEngine
    ) -> None:
        engine.mode = "hang"
        replicas = [serve(world, engine.address) for _ in range(8)]
        started = time.time()
        probe(world.client, now=started)
        assert time.time() - started < FAST.probe_timeout_s
        condemned = probe_for(world, 2.5)
        assert len(condemned) == 1
        assert Replica.objects.filter(state="ready").count() == len(replicas) - 1

    def test_the_next_is_killed_only_when_the_first_is_replaced(self, world: World, engine: ScriptedEngine) -> None:
        """A killed engine has stopped within seconds; what looks dead everywhere is likelier a fault outside."""
        engine.mode = "hang"
        for _ in range(4):
            serve(world, engine.address)
        (first,) = probe_for(world, 2.5)
        Replica.objects.filter(pk=first).update(state="stopped")
        assert probe_for(world, 2.5) == []
        incident_close(incident=Incident.objects.get(), what="serving again after 3 s")
        assert len(probe_for(world, 2.5)) == 1

    def test_an_ordinary_stop_that_is_late_does_not_count_as_a_kill(self, world: World, engine: ScriptedEngine) -> None:
        engine.mode = "hang"
        for _ in range(3):
            serve(world, engine.address)
        late = serve(world, engine.address, "stopping")
        Replica.objects.filter(pk=late.pk).update(kill=True)
        assert len(probe_for(world, 2.5)) == 1

    @pytest.mark.parametrize("mode", ["renamed", "in two writes"])
    def test_an_engine_that_answers_in_its_own_way_is_spared(
        self, world: World, engine: ScriptedEngine, mode: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        replica = serve(world, engine.address)
        engine.mode = mode
        assert probe_for(world, 2.0) == []
        assert len(engine.requests) >= 2
        assert ("make a new revision" in caplog.text) == (mode == "renamed")
        assert str(replica) in caplog.text or mode != "renamed"

    def test_a_body_no_parser_takes_ends_no_tick(self, world: World, engine: ScriptedEngine) -> None:
        engine.mode = "deep"
        serve(world, engine.address)
        assert len(probe_for(world, 2.0)) == 1

    def test_a_row_nobody_can_read_does_not_hide_a_hang(self, world: World, engine: ScriptedEngine) -> None:
        poison, hung = serve(world, engine.address), serve(world, engine.address)
        engine.mode = "hang"
        world.client.set(f"penstock:policy:probe:{poison.pk}", b'{"probed_at": "yesterday"}')
        assert hung.pk in probe_for(world, 2.5)

    def test_what_an_engine_may_take_for_a_step_follows_its_price(self, world: World) -> None:
        """100 MU/min at the knee and 0.01 MU per token: 2,048 tokens are 20.48 MU, at 0.62 of saturation 7.6 s."""
        replica = serve(world, "http://127.0.0.1:1")
        profile = profile_in_force(pool_id=world.pool.pk, at=world.at)
        assert longest_step_s(replica, None) == 0.0
        assert longest_step_s(replica, profile) < 0.01
        replica.revision.options = {}
        step_s = longest_step_s(replica, profile)
        assert step_s == pytest.approx(20.48 / 100 * 60 * 0.62, rel=0.05)
        assert CONFIG.for_steps(step_s).probe_timeout_s == pytest.approx(3 * step_s)

    @pytest.mark.parametrize(
        ("runtime", "options", "asked", "answer"),
        [
            (
                "vllm",
                {"task": "embed"},
                ("POST", "/v1/embeddings", {"model": "demo", "input": "1", "priority": -1000}),
                {"data": [{"embedding": [0.1]}]},
            ),
            ("mlflow", {"longest_request_s": 0.1}, ("GET", "/ping", None), "\n"),
            (
                "mlflow",
                {"longest_request_s": 0.1, "probe_input": {"inputs": [[1.0]]}},
                ("POST", "/invocations", {"inputs": [[1.0]]}),
                {"predictions": [0]},
            ),
            (
                "command",
                {"longest_request_s": 0.1, "argv": ["s"], "speaks": ["http"], "readiness_path": "/ready"},
                ("GET", "/ready", None),
                "up",
            ),
        ],
    )
    def test_each_kind_is_asked_for_what_it_does(
        self, world: World, engine: ScriptedEngine, runtime: str, options: Any, asked: Any, answer: Any
    ) -> None:
        short = {"max_num_batched_tokens": 1} if runtime == "vllm" else {}
        revision_create(deployment=world.deployment, runtime=runtime, actor=BOSS, options={**short, **options})
        replica = serve(world, engine.address)
        engine.other_answer = answer
        assert probe_for(world, 1.5) == []
        assert set(map(repr, engine.others)) == {
            repr(
                (
                    asked[0],
                    asked[1],
                    asked[2] and {k: world.deployment.name if k == "model" else v for k, v in asked[2].items()},
                )
            )
        }
        engine.mode = "hang"
        assert probe_for(world, 4.0) == [replica.pk]

    def test_a_draining_replica_is_watched_but_not_condemned(self, world: World, engine: ScriptedEngine) -> None:
        serve(world, engine.address, "draining")
        engine.mode = "hang"
        assert probe_for(world, 2.0) == []


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b'{"choices": [{"text": "a"}]}', "ok"),
        (200, b'{"choices": []}', "server_error"),
        (200, b'{"choices": [{"text": "a"}], "error": {"message": "x"}}', "server_error"),
        (200, b"not json", "server_error"),
        (200, b"[]", "server_error"),
        (200, b"", "server_error"),
        (503, b"", "busy"),
        (429, b"", "busy"),
        (500, b"", "server_error"),
        (200, b"[" * 60_000, "server_error"),
        (404, b"", "rejected"),
        (400, b"", "rejected"),
        (401, b"", "rejected"),
    ],
)
def test_what_a_completion_says(status: int, body: bytes, outcome: str) -> None:
    assert classify(status, body, "completion")[0] == outcome


@pytest.mark.parametrize(
    ("proof", "body", "outcome"),
    [
        ("status", b"<h1>up</h1>", "ok"),
        ("answer", b"[]", "ok"),
        ("answer", b'{"error": "x"}', "server_error"),
        ("answer", b"<h1>up</h1>", "server_error"),
        ("embedding", b'{"data": [{"embedding": [1.0]}]}', "ok"),
        ("embedding", b'{"data": []}', "server_error"),
        ("ranking", b'{"results": [{"index": 0}]}', "ok"),
        ("predictions", b'{"predictions": [0]}', "ok"),
        ("predictions", b'{"error_code": "BAD_REQUEST"}', "server_error"),
    ],
)
def test_each_kind_of_answer_holds_something_of_its_own(proof: Proof, body: bytes, outcome: str) -> None:
    assert classify(200, body, proof)[0] == outcome
    assert classify(307, body, proof)[0] == "rejected"
    assert classify(503, body, proof)[0] == "busy"
