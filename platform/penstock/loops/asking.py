"""A real answer, at top priority where engines know one, asked past the gateways: nobody's usage. No tick waits for it.

What an engine answers is put into the shared state, where the next tick of whichever loops process finds it: an engine
that may take minutes for a step would else hold up the probes of all others.
"""

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import aiohttp
import redis

from serving.gateway.state import policy_state_read, policy_state_write
from serving.policy import health
from worker.options import ProbeRequest, Proof

log = logging.getLogger(__name__)

_LOOP = "probe-answer"
_ANSWER_BYTES = 1 << 20
_KEEP_S = 3600
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Question:
    """Whom to ask, at which base URL, what, and how long an answer may take."""

    replica_id: str
    address: str
    request: ProbeRequest
    timeout_s: float


def ask(client: redis.Redis, questions: Sequence[Question]) -> threading.Thread:
    """Ask all of them at once, on a thread of its own that ends with the process."""
    thread = threading.Thread(target=_ask, args=(client, questions), name="probes", daemon=True)
    thread.start()
    return thread


def take_answer(client: redis.Redis, replica_id: str, *, since: float) -> health.Probe | None:
    """The result of the probe that was asked at ``since`` or later, if it is known; it is forgotten here."""
    stored = policy_state_read(client, _LOOP, replica_id)
    if stored is None:
        return None
    client.delete(f"penstock:policy:{_LOOP}:{replica_id}")
    try:
        probe = health.Probe(**stored)
        return probe if probe.started_at >= since else None
    except TypeError:
        return None  # Of another version: the question is asked again.


def _ask(client: redis.Redis, questions: Sequence[Question]) -> None:
    async def ask_all() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_AT_ONCE)) as session:
            await asyncio.gather(*(_ask_one(client, session, question) for question in questions))

    asyncio.run(ask_all())


async def _ask_one(client: redis.Redis, session: aiohttp.ClientSession, question: Question) -> None:
    started_at = time.time()
    try:
        outcome, detail = await _answer(session, question)
    except Exception as error:  # noqa: BLE001  (what this side could not send says nothing about the engine)
        outcome, detail = "rejected", f"it could not be sent ({type(error).__name__})"
    probe = health.Probe(started_at=started_at, ended_at=time.time(), outcome=outcome, detail=detail)
    try:
        await asyncio.to_thread(_tell, client, question.replica_id, probe)
    except (redis.RedisError, RuntimeError) as error:  # The state is away, or this process ends.
        log.warning("a probe's answer is lost (%s); it is asked again", type(error).__name__)


def _tell(client: redis.Redis, replica_id: str, probe: health.Probe) -> None:
    policy_state_write(client, _LOOP, replica_id, asdict(probe))
    client.expire(f"penstock:policy:{_LOOP}:{replica_id}", _KEEP_S)


async def _answer(session: aiohttp.ClientSession, question: Question) -> tuple[health.ProbeOutcome, str]:
    request = question.request
    headers = {"X-Request-Id": f"probe-{uuid.uuid4()}"}
    url, timeout = question.address + request.path, aiohttp.ClientTimeout(total=question.timeout_s)
    method = "GET" if request.body is None else "POST"
    try:
        async with session.request(
            method, url, json=request.body, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            text = bytearray()
            async for chunk in response.content.iter_any():
                text += chunk
                if len(text) > _ANSWER_BYTES:
                    break
            return classify(response.status, bytes(text), request.proof)
    except TimeoutError:
        return "timeout", ""
    except (aiohttp.ClientError, OSError) as error:
        return "refused", type(error).__name__


def classify(status: int, body: bytes, proof: Proof) -> tuple[health.ProbeOutcome, str]:
    """What an answer to the probe says. A 200 counts only with what ``proof`` asks for in it."""
    if status in (429, 503):
        return "busy", f"HTTP {status}"
    if 300 <= status < 500:
        return "rejected", f"HTTP {status}"
    if status != 200:
        return "server_error", f"HTTP {status}"
    if proof == "status":
        return "ok", ""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return "server_error", f"HTTP 200 that is no {proof}"
    if isinstance(answer, dict) and answer.get("error"):
        return "server_error", "HTTP 200 with an error in it"
    if proof == "answer":
        return "ok", ""
    if not isinstance(answer, dict) or not answer.get(_HOLDS[proof]):
        return "server_error", f"HTTP 200 that is no {proof}"
    return "ok", ""


_HOLDS: Mapping[Proof, str] = {
    "completion": "choices",
    "embedding": "data",
    "ranking": "results",
    "predictions": "predictions",
}
"""The member that must be there, and not be empty."""
