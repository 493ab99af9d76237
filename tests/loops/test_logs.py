"""The way of an engine's log from the agent's folder to who reads it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import redis

from serving.agents.logs import log_ask, log_kept, logs_keep
from serving.models import Replica
from tests import factories
from worker.follow import MOST, PIECE_BYTES, follow_key, followed, read_piece
from worker.spec import HostReport, LogPiece

pytestmark = pytest.mark.django_db


@pytest.fixture
def state(state_url: str) -> redis.Redis:
    return redis.Redis.from_url(state_url)


@pytest.fixture
def replica() -> Replica:
    return factories.replica(host=factories.host())


def report(replica: Replica, **logs: LogPiece) -> HostReport:
    return HostReport(
        host_id=str(replica.host_id), boot_id="b", sequence=1, generation=0, agent_version="1", agent_pid=1,
        hostname="h", cores=1, memory_bytes=1, memory_available_bytes=1, load_1m=0.0, logs=logs,
    )  # fmt: skip


def test_who_asks_is_heard_by_the_agent_until_they_stop(state: redis.Redis, replica: Replica) -> None:
    log_ask(replica, client=state)
    log_ask(replica, client=state)
    key = follow_key(str(replica.host_id))
    assert followed(state.get(key)) == (str(replica.pk),)
    assert 0 < state.ttl(key) <= 10  # type: ignore[operator]
    state.zadd(f"penstock:policy:follow:{replica.host_id}", {"long-gone": time.time() - 11})
    log_ask(replica, client=state)
    assert followed(state.get(key)) == (str(replica.pk),)


def test_a_report_brings_the_log(state: redis.Redis, replica: Replica) -> None:
    assert log_kept(replica, client=state) is None
    piece = LogPiece(data=b"loading\n\xff\0", end=1000)
    assert logs_keep(report(replica, **{str(replica.pk): piece}), replica.host, client=state) == 0  # type: ignore[arg-type]
    assert log_kept(replica, client=state) == piece


def test_logs_of_other_hosts_replicas_are_passed_over(state: redis.Redis, replica: Replica) -> None:
    other = factories.replica(host=factories.host(name="other"))
    said = report(replica, **{str(other.pk): LogPiece(data=b"lies\n", end=5)})
    assert logs_keep(said, replica.host, client=state) == 1  # type: ignore[arg-type]
    assert log_kept(other, client=state) is None
    assert logs_keep(report(replica, nonsense=LogPiece(data=b"", end=0)), replica.host, client=state) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [None, b"", b"{", b'"x"', b"{}", b"[" * 100_000, b"[1, null]", "text"])
def test_what_makes_no_sense_is_nobody(kept: object) -> None:
    assert followed(kept) == ()


def test_only_some_at_once() -> None:
    assert followed(json.dumps([str(number) for number in range(99)]).encode()) == tuple(map(str, range(MOST)))


def test_the_end_of_a_log_is_read_and_no_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "replicas" / "r-1"
    folder.mkdir(parents=True)
    (folder / "engine.log").write_bytes(b"x" * PIECE_BYTES + b"end\n")
    piece = read_piece(tmp_path / "replicas", "r-1")
    assert piece is not None
    assert (len(piece.data), piece.data[-4:], piece.end) == (PIECE_BYTES, b"end\n", PIECE_BYTES + 4)
    (tmp_path / "engine.log").write_text("secret")
    assert [read_piece(tmp_path / "replicas", name) for name in ("..", "r-2", "", "/etc")] == [None] * 4
