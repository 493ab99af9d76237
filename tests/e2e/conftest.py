"""One shared installation for tests that only use it; tests that break things start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two gateways, the simulated demo and the real vLLM demo, all roles as processes of their own."""
    running = Stack(tmp_path_factory.mktemp("stack") / "data", engine="vllm", gateways=2)
    try:
        yield running.start()
        assert running.stop() == 0
    except BaseException:
        print(running.tail(120))
        running.kill_all()
        raise
