"""A host is drained under streams: a second agent on this machine, engines and gateways as they run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from tests.e2e.second_host import SecondHost
from tests.e2e.stack import Stack, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.together("stack")]
MODEL = "demo-sim"
CALLERS = 6


@dataclass
class Callers:
    """They stream one answer after the other, until they are told to stop."""

    stack: Stack
    whole: int = 0
    failed: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self.threads = [threading.Thread(target=self._stream, daemon=True) for _ in range(CALLERS)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)

    def _stream(self) -> None:
        with openai.OpenAI(base_url=self.stack.base_url, api_key=self.stack.key(), max_retries=0) as client:
            while not self.stopping.is_set():
                self._stream_once(client)

    def _stream_once(self, client: openai.OpenAI) -> None:
        try:
            with client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Tell me."}], max_tokens=80, stream=True
            ) as events:
                reasons = [choice.finish_reason for event in events for choice in event.choices]
            if not any(reasons):
                self.failed.append("a stream ended without its end")
            self.whole += 1
        except openai.OpenAIError as error:
            self.failed.append(f"{type(error).__name__}: {error}")


@pytest.fixture
def second(stack: Stack, tmp_path: Path) -> Iterator[SecondHost]:
    made = SecondHost(stack, tmp_path / "second")
    try:
        yield made
    finally:
        made.stop()
        stack.manage(
            "from serving.models import Deployment\nfrom serving.services import deployment_update\n"
            f"deployment_update(deployment=Deployment.objects.get(name='{MODEL}'), actor='test', pinned_replicas=None)"
        )


def act(stack: Stack, what: str) -> None:
    stack.manage(
        "from capacity.models import Host\nfrom capacity.services import host_drain, host_remove\n"
        f"assert {what}(host=Host.objects.get(name='second'), actor='test')"
    )


def test_a_host_is_drained_and_removed_under_streams(stack: Stack, second: SecondHost) -> None:
    second.start()
    wait_for(
        "the report of the second agent",
        lambda: stack.rows("select 1 from capacity_host where name = 'second' and last_report_at is not null"),
        seconds=30,
    )
    stack.manage(
        "from serving.models import Deployment\nfrom serving.services import deployment_update\n"
        f"deployment_update(deployment=Deployment.objects.get(name='{MODEL}'), actor='test', pinned_replicas=2)"
    )
    wait_for("a replica on the second host", lambda: second.ready_on("second", MODEL) == 1, seconds=60)
    assert second.engines
    callers = Callers(stack)
    callers.start()
    wait_for("streams", lambda: callers.whole >= CALLERS, seconds=60)
    act(stack, "host_drain")
    fewest = 9

    def is_drained() -> bool:
        nonlocal fewest
        fewest = min(fewest, second.ready_on("second", MODEL) + second.ready_on(second.first, MODEL))
        return not second.held()

    wait_for("the end of the drain", is_drained, seconds=90)
    wait_for("the end of its engine", lambda: not second.engines, seconds=20)
    before = callers.whole
    wait_for("more streams", lambda: callers.whole >= before + CALLERS, seconds=60)
    callers.stop()
    assert callers.failed == []
    assert fewest == 2, "a replica stopped before its replacement was ready"
    assert second.ready_on(second.first, MODEL) == 2
    act(stack, "host_remove")
    wait_for(
        "the end of its secret",
        lambda: stack.rows("select 1 from capacity_host where name = 'second' and length(secret) = 0"),
        seconds=20,
    )
