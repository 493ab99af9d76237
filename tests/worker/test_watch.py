"""The watcher of one engine: whatever an engine answers, its watcher goes on and says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from worker.runtimes.base import LaunchPlan, Readiness
from worker.runtimes.vllm import METRICS
from worker.watch import EngineWatcher


class Engine:
    """An engine whose answers a test chooses."""

    def __init__(self) -> None:
        self.models: Any = {"data": [{"id": "m", "max_model_len": 512}]}
        self.looks = 0
        self.version: str = '{"version": "1"}'
        self.asked: list[tuple[str, str]] = []
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path))
        if request.path == "/metrics":
            self.looks += 1
            return web.Response(text="vllm:num_requests_running 1\n")
        if request.path == "/v1/models":
            return web.json_response(self.models)
        if request.path == "/gone":
            return web.Response(status=404, text="Not Found")
        if request.path == "/x":
            return web.Response(status=500, body=b'{"error": {"message": "\xff"}}')
        return web.Response(text=self.version)

    def plan(self) -> LaunchPlan:
        readiness = Readiness(
            health_path="/health", warm_up_path="/x", warm_up_body={}, start_limit_s=1, warm_up_limit_s=1
        )
        return LaunchPlan(argv=("x",), env={}, host="127.0.0.1", port=self.port, readiness=readiness)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.02)


async def test_answers_of_another_shape_end_no_watcher(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.watch.PERIOD_S", 0.05)
    engine.models = {"data": ["no card"]}
    async with aiohttp.ClientSession() as session:
        watcher = EngineWatcher(session, engine.plan(), lambda _: METRICS, lambda: 1.0, lambda: None)
        await until(lambda: engine.looks > 2)
        assert watcher.view.is_healthy
        assert watcher.view.max_model_len is None
        engine.models = {"data": [{"max_model_len": 512}]}
        await until(lambda: watcher.view.max_model_len == 512)
        watcher.cancel()


async def test_an_engine_whose_answers_cannot_be_read_is_not_healthy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.watch.PERIOD_S", 0.05)
    is_odd = True

    def table(version: str) -> Any:
        if is_odd:
            raise KeyError("no such version")
        return METRICS

    async with aiohttp.ClientSession() as session:
        watcher = EngineWatcher(session, engine.plan(), table, lambda: 1.0, lambda: None)
        await until(lambda: "KeyError: 'no such version'" in watcher.view.health_error)
        assert not watcher.view.is_healthy
        is_odd = False
        await until(lambda: watcher.view.is_healthy and watcher.view.metrics == {"running": 1.0})
        watcher.cancel()


async def test_an_error_in_no_encoding_is_an_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.watch.PERIOD_S", 0.05)
    async with aiohttp.ClientSession() as session:
        watcher = EngineWatcher(session, engine.plan(), lambda _: METRICS, lambda: 1.0, lambda: None)
        watcher.warm_up()
        await until(lambda: watcher.view.warm_up == "failed")
        assert watcher.view.warm_up_error.startswith("answered 500")
        watcher.cancel()


async def test_an_engine_of_another_kind_is_told_by_its_missing_route(engine: Engine) -> None:
    plan = engine.plan()
    readiness = msgspec.structs.replace(plan.readiness, warm_up_path="/gone")
    async with aiohttp.ClientSession() as session:
        gone = msgspec.structs.replace(plan, readiness=readiness)
        watcher = EngineWatcher(session, gone, lambda _: METRICS, lambda: 1.0, lambda: None)
        watcher.warm_up()
        await until(lambda: watcher.view.warm_up == "failed")
        assert watcher.view.warm_up_error == (
            "answered 404: Not Found. It has no POST /gone: correct the option task, speaks or probe"
        )
        watcher.cancel()


@pytest.mark.parametrize(
    ("text", "version"),
    [('{"version": "0.32.0"}', "0.32.0"), ("3.17.2\n", "3.17.2"), ("<html>\n</html>", ""), ("", "")],
)
async def test_a_version_is_told_as_json_or_as_text(
    engine: Engine, text: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.watch.PERIOD_S", 0.05)
    engine.version = text
    plan = engine.plan()
    readiness = msgspec.structs.replace(plan.readiness, models_path="")
    async with aiohttp.ClientSession() as session:
        told = msgspec.structs.replace(plan, readiness=readiness)
        watcher = EngineWatcher(session, told, lambda _: METRICS, lambda: 1.0, lambda: None)
        await until(lambda: engine.looks > 2)
        assert (watcher.view.engine_version, watcher.view.max_model_len) == (version, None)
        watcher.cancel()


async def test_what_an_engine_does_not_have_is_not_asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.watch.PERIOD_S", 0.05)
    plan = engine.plan()
    readiness = msgspec.structs.replace(
        plan.readiness, models_path="", version_path="", warm_up_path="/ready", warm_up_body=None
    )
    async with aiohttp.ClientSession() as session:
        bare = msgspec.structs.replace(plan, readiness=readiness, metrics_path="")
        watcher = EngineWatcher(session, bare, lambda _: {}, lambda: 1.0, lambda: None)
        watcher.warm_up()
        await until(lambda: watcher.view.warm_up == "ok" and engine.asked.count(("GET", "/health")) > 2)
        watcher.cancel()
    assert set(engine.asked) == {("GET", "/health"), ("GET", "/ready")}
