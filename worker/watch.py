"""Watching one engine over HTTP: health and metrics every second, a warm-up request when asked.

Each engine has a task of its own in the supervisor's event loop, so a hanging one delays nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal

import aiohttp
import msgspec

from worker.metrics import read_info, read_metrics
from worker.runtimes.base import LaunchPlan, MetricTable
from worker.words import error_words

PERIOD_S = 1.0
STARTING_PERIOD_S = 0.2
ANSWER_LIMIT_S = 2.0
NO_ROUTE = (404, 405, 501)
KV_INFO = ("vllm:cache_config_info", "kv_cache_size_tokens")
"""Info metric and label that tell the KV cache's size; engines without it tell nothing."""


class EngineView:
    """The newest answers of one engine. Written by its watcher, read by the supervisor, both in one event loop."""

    def __init__(self) -> None:
        self.is_healthy = False
        self.health_status: int | None = None
        self.health_ms: float | None = None
        self.health_error = ""
        self.metrics: dict[str, float] = {}
        self.metrics_at: float | None = None
        self.engine_version = ""
        self.max_model_len: int | None = None
        self.kv_tokens: int | None = None
        self.warm_up: Literal["idle", "running", "ok", "failed"] = "idle"
        self.warm_up_error = ""

    @property
    def in_engine(self) -> float | None:
        """Requests running or waiting, or None before the first metrics."""
        if "running" not in self.metrics:
            return None
        return self.metrics["running"] + self.metrics.get("waiting", 0.0)


class EngineWatcher:
    """Keeps an EngineView fresh until cancelled."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        plan: LaunchPlan,
        metric_table: Callable[[str], MetricTable],
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self.view = EngineView()
        self._session, self._plan, self._metric_table = session, plan, metric_table
        self._clock, self._on_change = clock, on_change
        self._base = f"http://{plan.host}:{plan.port}"
        self._task = asyncio.create_task(self._run())
        self._warm_up_task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        self._task.cancel()
        if self._warm_up_task is not None:
            self._warm_up_task.cancel()

    def warm_up(self) -> None:
        """Send the first request, unless one is on its way."""
        if self.view.warm_up == "running":
            return
        self.view.warm_up = "running"
        self._warm_up_task = asyncio.create_task(self._warm_up())

    async def look(self) -> None:
        """Ask health and metrics once, side by side."""
        await asyncio.gather(self._look_health(), self._look_metrics())

    async def _run(self) -> None:
        while True:
            started = time.monotonic()
            try:
                await self._look_all()
            except Exception as error:  # noqa: BLE001  (an engine whose watcher is dead would look healthy for ever)
                self.view.is_healthy = False
                self.view.health_error = f"its answers cannot be read: {error_words(error)}"
            period = PERIOD_S if self.view.is_healthy else STARTING_PERIOD_S
            await asyncio.sleep(max(0.05, period - (time.monotonic() - started)))

    async def _look_all(self) -> None:
        await self._look_health()
        if self.view.is_healthy:
            if not self.view.engine_version:
                await self._look_identity()
            await self._look_metrics()

    async def _look_health(self) -> None:
        was, started = self.view.is_healthy, time.monotonic()
        try:
            async with self._session.get(self._base + self._plan.readiness.health_path, timeout=_limit()) as answer:
                self.view.health_status, self.view.is_healthy = answer.status, answer.status == 200
                self.view.health_error = "" if answer.status == 200 else f"health answers {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.view.health_status, self.view.is_healthy = None, False
            self.view.health_error = _words(error)
        self.view.health_ms = round((time.monotonic() - started) * 1000, 1)
        if was != self.view.is_healthy:
            self._on_change()

    async def _look_metrics(self) -> None:
        if not self._plan.metrics_path:
            return
        try:
            text = await self._get_text(self._plan.metrics_path)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return
        self.view.metrics = read_metrics(text, self._metric_table(self.view.engine_version))
        self.view.metrics_at = self._clock()
        if self.view.kv_tokens is None:
            metric, label = KV_INFO
            tokens = read_info(text, metric).get(label, "")
            self.view.kv_tokens = int(tokens) if tokens.isdigit() else None

    async def _look_identity(self) -> None:
        """Version and context length; an engine that does not answer is asked again with the next look."""
        readiness = self._plan.readiness
        if not readiness.version_path:
            return
        try:
            version = await self._get_text(readiness.version_path)
            if readiness.models_path:
                models = msgspec.json.decode(await self._get_text(readiness.models_path))
                self.view.max_model_len = int(models["data"][0].get("max_model_len") or 0) or None
            self.view.engine_version = _version(version)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError, TypeError, AttributeError):
            return

    async def _warm_up(self) -> None:
        readiness, view = self._plan.readiness, self.view
        limit = aiohttp.ClientTimeout(total=readiness.warm_up_limit_s)
        method = "GET" if readiness.warm_up_body is None else "POST"
        try:
            async with self._session.request(
                method, self._base + readiness.warm_up_path, json=readiness.warm_up_body, timeout=limit
            ) as answer:
                body = await answer.read()
                view.warm_up_error = "" if answer.status == 200 else f"answered {answer.status}: {_error_text(body)}"
                if answer.status in NO_ROUTE:
                    asked = f"{method} {readiness.warm_up_path}"
                    view.warm_up_error += f". It has no {asked}: correct the option task, speaks or probe"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            view.warm_up_error = _words(error)
        if view.warm_up_error:
            # A refused request must not turn into a storm of them.
            await asyncio.sleep(PERIOD_S)
        view.warm_up = "failed" if view.warm_up_error else "ok"
        self._on_change()

    async def _get_text(self, path: str) -> str:
        async with self._session.get(self._base + path, timeout=_limit()) as answer:
            if answer.status != 200:
                raise ValueError(f"{path} answers {answer.status}")
            return (await answer.read()).decode("utf-8", "replace")


def _version(text: str) -> str:
    """The version in an answer: ``{"version": ...}`` or, as MLflow says it, the bare text. Raises ValueError."""
    text = text.strip()
    if text.startswith("{"):
        return str(msgspec.json.decode(text)["version"])
    if not text or len(text) > 60 or "\n" in text:
        raise ValueError("that is no version")
    return text


def _limit() -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)


def _words(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else "does not listen yet or any more"


def _error_text(body: bytes) -> str:
    """The message of an OpenAI-shaped error, or the start of whatever came."""
    try:
        decoded: Any = msgspec.json.decode(body)
        return str(decoded["error"]["message"])[:200]
    except (ValueError, LookupError, TypeError):
        return body[:200].decode("utf-8", "replace")
