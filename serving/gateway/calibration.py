"""Measures a deployment's bytes per token once it is ready, so that the first requests' estimates are right.

One ready replica is asked, off every request's path. What requests then really use takes over by itself.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from serving.gateway.dialects import Tokenize
from serving.gateway.ids import new_request_id
from serving.gateway.upstream import UpstreamError

if TYPE_CHECKING:
    from serving.gateway.records import DeploymentRecord, ReplicaRecord
    from serving.gateway.services import Services

logger = logging.getLogger(__name__)

SAMPLE = """\
Quarterly totals, compared: 48,213.75 against 51,960.20 (a rise of 7.8%), as of 2024-11-30T09:15:00Z.
Please summarise the attached correspondence in three short paragraphs, then list unresolved questions.
def merge(left: list[int], right: list[int]) -> list[int]:
    return sorted({*left, *right}, key=lambda value: -value)
{"id": "a1b2c3d4", "tags": ["überprüft", "déjà vu", "niño"], "ok": true, "ratio": 0.125}
Москва — столица. 東京は日本の首都です。 مرحبا بالعالم. SELECT name FROM users WHERE age >= 21;
"""
"""Prose, figures, code, JSON and other scripts: what clients send, mixed."""
_SIZE = len(SAMPLE.encode())
_LOOK_EVERY_S = 0.1
_ANSWER_WITHIN_S = 5.0
_RETRY_S, _RETRY_MAX_S = 1.0, 60.0
_AT_ONCE = 8
_LARGEST_ANSWER = 1024 * 1024


class _Count(msgspec.Struct):
    count: int


class Calibration:
    """One per gateway process. Makes no record and costs nobody anything."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, tuple[float, float]] = {}
        """By deployment: when to ask again (the loop's clock), and the pause that follows the next failure."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._look_on())

    async def stop(self) -> None:
        tasks = [task for task in (self._task, *self._asking.values()) if task is not None]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _look_on(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                logger.exception("calibration: looking for new deployments failed")
            await asyncio.sleep(_LOOK_EVERY_S)

    def _look(self) -> None:
        view, learned = self._services.store.view, self._services.learned
        now = asyncio.get_running_loop().time()
        for gone in self._failed.keys() - view.deployments.keys():
            del self._failed[gone]
        for deployment in view.deployments.values():
            if len(self._asking) >= _AT_ONCE:
                return
            if deployment.id in self._asking or learned.knows(deployment.id):
                continue
            if not any(word in deployment.speaks for word in Tokenize.speaks):
                continue
            if self._failed.get(deployment.id, (0.0, 0.0))[0] > now:
                continue
            ready = [r for r in view.replicas_by_deployment.get(deployment.id, ()) if r.state == "ready"]
            if ready:
                replica = min(ready, key=lambda r: self._services.loads.replica(r.id).n)
                task = asyncio.get_running_loop().create_task(self._measure(deployment, replica))
                self._asking[deployment.id] = task

    async def _measure(self, deployment: DeploymentRecord, replica: ReplicaRecord) -> None:
        body = msgspec.json.encode({"model": deployment.name, "prompt": SAMPLE, "add_special_tokens": False})
        try:
            status, answer = await self._services.ask_replica(
                replica, b"/tokenize", body, new_request_id(), seconds=_ANSWER_WITHIN_S, limit=_LARGEST_ANSWER
            )
            count = msgspec.json.decode(answer, type=_Count).count if status == 200 else 0
            if count <= 0:
                raise ValueError(f"the engine answered {status}, {count} tokens")
        except (UpstreamError, TimeoutError, ValueError) as error:
            pause = self._failed.get(deployment.id, (0.0, _RETRY_S))[1]
            again_at = asyncio.get_running_loop().time() + pause
            self._failed[deployment.id] = (again_at, min(_RETRY_MAX_S, 2 * pause))
            logger.info("calibration: %s could not be measured: %s", deployment.id, error)
        else:
            self._failed.pop(deployment.id, None)
            self._services.learned.seed(deployment.id, _SIZE / count)
        finally:
            self._asking.pop(deployment.id, None)
