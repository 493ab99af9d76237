"""Reports: who is believed, and each is taken once and in order."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from django.db import OperationalError, connection, connections

from capacity.services import host_secret_renew
from penstock.loops.reports import ReportConsumer
from serving.agents.envelopes import HostSecrets, ReportRejected, report_verify
from tests.loops.conftest import BOSS, World
from tests.loops.reporting import apply, report
from worker.spec import seal

pytestmark = pytest.mark.django_db


class TestTrust:
    def reason(self, envelope: object, secrets: HostSecrets | None = None) -> str:
        with pytest.raises(ReportRejected) as caught:
            report_verify(envelope, secrets=secrets or HostSecrets())
        return caught.value.reason

    def test_a_signed_report_is_opened(self, world: World) -> None:
        opened = report_verify(world.agent.envelope(world.now), secrets=HostSecrets())
        assert opened.host_id == world.agent.host_id

    def test_a_wrong_signature_is_refused(self, world: World) -> None:
        world.agent.secret = b"another secret"
        assert self.reason(world.agent.envelope(world.now)) == "forged"

    def test_a_changed_payload_is_refused(self, world: World) -> None:
        envelope = world.agent.envelope(world.now)
        envelope["payload"] = envelope["payload"].replace('"cores":8', '"cores":9')
        assert self.reason(envelope) == "forged"

    def test_another_hosts_secret_does_not_sign_for_this_host(self, world: World) -> None:
        other = world.add_host("host-2")
        envelope = seal(world.agent.report(world.now), secret=other.secret)
        assert self.reason(envelope) == "forged"

    def test_one_hosts_envelope_cannot_carry_another_hosts_report(self, world: World) -> None:
        other = world.add_host("host-2")
        envelope = seal(other.report(world.now), secret=other.secret)
        envelope["host_id"] = world.agent.host_id
        assert self.reason(envelope) == "forged"

    def test_orders_are_no_report(self, world: World) -> None:
        assert self.reason(seal(world.agent.orders, secret=world.agent.secret)) == "forged"

    @pytest.mark.parametrize("rubbish", [None, [], "x", {}, {"host_id": 1}, {"kind": "report"}])
    def test_rubbish_is_refused(self, db: None, rubbish: object) -> None:
        assert self.reason(rubbish) == "malformed"

    @pytest.mark.parametrize("host_id", ["0e0f1c52-4e0e-7c3b-9d0f-3f6f3f1c9a11", "../etc/passwd", ""])
    def test_an_unknown_host_is_refused(self, world: World, host_id: str) -> None:
        world.agent.host_id = host_id
        assert self.reason(world.agent.envelope(world.now)) == "unknown_host"

    def test_the_old_form_of_a_renewed_secret_counts_for_two_seconds_at_most(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secrets, real = HostSecrets(), time.monotonic
        old = world.agent.envelope(world.now)
        report_verify(old, secrets=secrets)
        host_secret_renew(host=world.host(), actor=BOSS)
        monkeypatch.setattr("serving.agents.envelopes.time.monotonic", lambda: real() + 2.0)
        assert self.reason(old, secrets) == "forged"

    def test_a_renewed_secret_counts_at_once_and_the_old_one_no_more(self, world: World) -> None:
        secrets = HostSecrets()
        old = world.agent.envelope(world.now)
        report_verify(old, secrets=secrets)
        world.agent.secret = host_secret_renew(host=world.host(), actor=BOSS)
        for kept in secrets._kept:
            read_at, secret = secrets._kept[kept]
            secrets._kept[kept] = (read_at - 5.0, secret)
        assert report_verify(world.agent.envelope(world.now), secrets=secrets).sequence == 2
        assert self.reason(old, secrets) == "forged"


def message(envelope: object) -> Any:
    """An agent's ``serving.report`` call, as it comes from the broker."""
    body = envelope if isinstance(envelope, bytes) else json.dumps([[envelope], {}, {}])
    return SimpleNamespace(headers={"task": "serving.report"}, body=body)


def counted(world: World) -> dict[str, int]:
    found: dict[bytes, bytes] = world.client.hgetall("penstock:count:reports_rejected")  # type: ignore[assignment]
    return {reason.decode(): int(number) for reason, number in found.items()}


@pytest.mark.django_db(transaction=True)
class TestReceiving:
    def test_whatever_a_stranger_sends_the_next_report_is_received(self, world: World) -> None:
        consumer = ReportConsumer()
        good = world.agent.envelope(world.now)
        bad = [
            message({**good, "mac": "é" * 64}),
            message({**good, "payload": "\ud800"}),
            message(seal(world.agent.report(world.now), secret=world.agent.secret) | {"payload": "no json"}),
            message(b"[" * 60_000),
            message(b"\xff\xfe"),
            message(None),
        ]
        for each in bad:
            consumer._receive(each)
        assert sum(counted(world).values()) == len(bad)
        consumer._receive(message(good))
        assert list(consumer._newest) == [world.agent.host_id]

    def test_an_error_nobody_thought_of_is_a_malformed_report(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("penstock.loops.reports.report_verify", fail)
        ReportConsumer()._receive(message(world.agent.envelope(world.now)))
        assert counted(world) == {"malformed": 1}

    def test_a_database_that_is_away_is_a_line_in_the_log_and_no_rejection(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise OperationalError("server closed the connection unexpectedly\n\tThis probably means")

        consumer = ReportConsumer()
        monkeypatch.setattr("penstock.loops.reports.report_verify", fail)
        monkeypatch.setattr("penstock.loops.reports.report_apply", fail)
        for _ in range(3):
            consumer._receive(message(world.agent.envelope(world.now)))
            consumer._apply(world.agent.report(world.now))
        assert counted(world) == {}
        (record,) = caplog.records
        assert record.exc_info is None
        assert "This probably means" not in caplog.text

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (ZeroDivisionError("of zero hosts"), "failed (ZeroDivisionError: of zero hosts, at "),
            (redis.exceptions.ConnectionError("refused"), "does not answer: refused"),
        ],
    )
    def test_a_report_that_cannot_be_applied_is_a_line_however_often_it_comes(
        self,
        world: World,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        error: Exception,
        words: str,
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise error

        consumer = ReportConsumer()
        monkeypatch.setattr("penstock.loops.reports.report_apply", fail)
        for _ in range(3):
            consumer._apply(world.agent.report(world.now))
        (record,) = caplog.records
        assert record.exc_info is None
        assert words in record.getMessage()

    def test_a_fault_of_the_consumer_is_said_once_while_it_stays(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        consumer, tries = ReportConsumer(), itertools.count(1)

        def fail() -> None:
            consumer.should_stop = next(tries) == 3
            raise ZeroDivisionError

        monkeypatch.setattr(consumer, "run", fail)
        monkeypatch.setattr("penstock.loops.reports.time.sleep", lambda seconds: None)
        consumer._receive_forever()
        (record,) = caplog.records
        assert record.exc_info, "nobody thought of it: where it was is needed"

    def test_a_lost_connection_to_the_database_is_replaced(self, world: World) -> None:
        """The server ends it, as a restart does. SQLite has no connection to lose."""
        consumer = ReportConsumer()

        def backend() -> int:
            with connection.cursor() as cursor:
                cursor.execute("select pg_backend_pid()")
                return int(cursor.fetchone()[0])

        with ThreadPoolExecutor(1) as receiver:
            receiver.submit(consumer._receive, message(world.agent.envelope(world.now))).result()
            assert consumer._newest.pop(world.agent.host_id)
            if connection.vendor == "postgresql":
                pid = receiver.submit(backend).result()
                with connection.cursor() as cursor:
                    cursor.execute("select pg_terminate_backend(%s, 5000)", [pid])
            consumer._secrets._kept.clear()
            receiver.submit(consumer._receive, message(world.agent.envelope(world.now))).result()
            receiver.submit(connections.close_all).result()
        assert list(consumer._newest) == [world.agent.host_id]


class TestReplay:
    def test_a_sequence_counts_once(self, world: World) -> None:
        message = report(world, sequence=5)
        apply(world, message)
        for sequence in (5, 4):
            with pytest.raises(ReportRejected) as caught:
                apply(world, report(world, sequence=sequence))
            assert caught.value.reason == "replayed"
        apply(world, report(world, sequence=6))

    def test_a_new_agent_process_counts_anew_and_the_old_one_is_refused(self, world: World) -> None:
        old = world.agent.boot_id
        apply(world, report(world, sequence=500))
        world.agent.restart()
        apply(world, report(world, sequence=1))
        with pytest.raises(ReportRejected) as caught:
            apply(world, report(world, sequence=501, boot_id=old))
        assert caught.value.reason == "replayed"
        apply(world, report(world, sequence=2))
