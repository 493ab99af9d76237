"""What becomes of hosts and replicas by what is reported of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from capacity.models import Accelerator, Host
from penstock.loops.dispatch import orders_send
from serving.agents.envelopes import ReportRejected
from serving.agents.reports import report_apply
from serving.models import Deployment, Incident
from tenants.models import AuditEntry, Change
from tests.loops.agent import BROKEN
from tests.loops.conftest import World
from tests.loops.reporting import apply, place, ready, report
from worker.spec import AcceleratorReport, Address, HostReport, Progress, ReplicaReport, open_orders

pytestmark = pytest.mark.django_db


class TestHosts:
    def test_facts_are_kept(self, world: World) -> None:
        apply(world, report(world))
        host = world.host()
        assert (host.report["cores"], host.report["memory_bytes"], host.last_report_at) == (8, 32 << 30, world.at)

    def test_load_alone_is_written_only_now_and_then(self, world: World) -> None:
        apply(world, report(world, sequence=1, load_1m=1.0))
        world.now += 1
        apply(world, report(world, sequence=2, load_1m=2.0))
        assert world.host().report["load_1m"] == 1.0
        world.now += 5
        apply(world, report(world, sequence=3, load_1m=3.0))
        assert world.host().report["load_1m"] == 3.0

    def test_a_fact_that_changed_is_written_at_once(self, world: World) -> None:
        apply(world, report(world, sequence=1))
        world.now += 1
        apply(world, report(world, sequence=2, agent_version="2"))
        assert world.host().report["agent_version"] == "2"

    def test_accelerators_come_change_and_go(self, world: World) -> None:
        one = AcceleratorReport(index=0, name="H200", uuid="GPU-a", memory_bytes=141 << 30)
        two = AcceleratorReport(index=1, name="H200", uuid="GPU-b", memory_bytes=141 << 30)
        apply(world, report(world, sequence=1, accelerators=(one, two)))
        apply(world, report(world, sequence=2, accelerators=(one,)))
        rows = Accelerator.objects.filter(host=world.host()).values_list("index", "uuid", "is_healthy")
        assert list(rows) == [(0, "GPU-a", True), (1, "GPU-b", False)]
        apply(world, report(world, sequence=3, accelerators=(one, two)))
        assert Accelerator.objects.filter(is_healthy=True).count() == 2

    def test_orders_count_on_from_what_an_agent_has_after_the_database_was_restored(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The agent has orders 800, the database 2; it knows nothing of a replica that ran when the backup was made."""
        replica = place(world, "ready", address="http://127.0.0.1:9000", ready_at=world.at)
        Host.objects.update(generation=2, orders_digest="of the second")
        for sequence in (1, 2, 3):
            apply(world, report(world, sequence=sequence, generation=800))
        replica.refresh_from_db()
        assert (replica.state, Incident.objects.count()) == ("ready", 0)
        assert (world.host().generation, world.host().acknowledged_generation) == (800, 800)
        assert caplog.text.count("restored from a backup") == 1
        orders_send(world.host(), client=world.client, now=world.at)
        raw: bytes = world.client.get(f"agent:orders:{world.agent.host_id}")  # type: ignore[assignment]
        orders = open_orders(json.loads(raw), host_id=world.agent.host_id, secret=world.agent.secret)
        assert (orders.generation, [order.replica_id for order in orders.replicas]) == (801, [str(replica.pk)])
        starting = ReplicaReport(replica_id=str(replica.pk), phase="starting")
        apply(world, report(world, starting, sequence=4, generation=801))
        replica.refresh_from_db()
        assert replica.state == "starting"

    @pytest.mark.parametrize("number", [-1, 2**63, 2**64 - 1])
    def test_numbers_that_nobody_can_keep_are_refused(self, world: World, number: int) -> None:
        for field in ({"generation": number}, {"sequence": number}):
            with pytest.raises(ReportRejected) as caught:
                apply(world, report(world, **field))
            assert caught.value.reason == "malformed"


class TestReplicas:
    def test_a_replica_lives_from_pending_to_ready(self, world: World) -> None:
        replica = place(world)
        starting = ReplicaReport(replica_id=str(replica.pk), phase="weights", reason="12 of 40 MiB")
        apply(world, report(world, starting, sequence=1))
        replica.refresh_from_db()
        assert (replica.state, replica.phase) == ("starting", "weights")
        assert "12 of 40 MiB" in replica.reason
        Change.objects.all().delete()
        result = apply(world, report(world, ready(replica, engine_version="0.99", max_model_len=2048), sequence=2))
        replica.refresh_from_db()
        assert result.changed
        assert (replica.state, replica.address, replica.max_model_len) == ("ready", "http://127.0.0.1:9000", 2048)
        assert set(Change.objects.values_list("kind", flat=True)) == {"replica", "deployment"}

    def test_the_cold_start_is_learnt(self, world: World) -> None:
        apply(world, report(world, ready(place(world)), sequence=1))
        world.deployment.refresh_from_db()
        assert world.deployment.cold_start_s == pytest.approx(4.0)
        apply(world, report(world, ready(place(world), ready_at=114.0), sequence=2))
        world.deployment.refresh_from_db()
        assert 4.0 < world.deployment.cold_start_s < 14.0

    def test_an_adopted_engine_teaches_nothing(self, world: World) -> None:
        apply(world, report(world, ready(place(world), adopted=True)))
        world.deployment.refresh_from_db()
        assert world.deployment.cold_start_s == 60.0

    def test_nothing_is_ready_without_an_address(self, world: World) -> None:
        replica = place(world, "starting")
        apply(world, report(world, ready(replica, address=None)))
        replica.refresh_from_db()
        assert replica.state == "starting"

    @pytest.mark.parametrize(
        ("hostname", "address", "state"),
        [
            ("gpu-2", "127.0.0.1", "starting"),
            ("gpu-2", "::1", "starting"),
            ("gpu-2", "localhost", "starting"),
            ("gpu-2", "10.0.0.7", "ready"),
            ("", "127.0.0.1", "ready"),
        ],
    )
    def test_an_engine_on_another_machines_loopback_is_not_served_from(
        self, world: World, hostname: str, address: str, state: str
    ) -> None:
        world.agent.hostname = hostname or world.agent.hostname
        replica = place(world)
        for sequence in (1, 2):
            seen = ready(replica, address=Address(host=address, port=9000))
            assert apply(world, report(world, seen, sequence=sequence)).changed == (sequence == 1)
        replica.refresh_from_db()
        assert replica.state == state
        if state == "starting":
            assert "of gpu-2 only, where no gateway can reach it. Run the agent on" in replica.reason
            assert Deployment.objects.get(pk=world.deployment.pk).cold_start_s == 60.0

    @pytest.mark.parametrize("host", ["evil.example/x?", "user@evil", "", "a b", "http://x"])
    def test_an_address_can_only_be_a_host_and_a_port(self, world: World, host: str) -> None:
        replica = place(world, "starting")
        apply(world, report(world, ready(replica, address=Address(host=host, port=80))))
        replica.refresh_from_db()
        assert (replica.state, replica.address) == ("starting", "")

    def test_a_moved_engine_is_published(self, world: World) -> None:
        replica = place(world, "ready", address="http://127.0.0.1:9000")
        result = apply(world, report(world, ready(replica, address=Address(host="127.0.0.1", port=9001))))
        replica.refresh_from_db()
        assert (result.changed, replica.address) == (True, "http://127.0.0.1:9001")

    @pytest.mark.parametrize("known", [None, 4096])
    def test_a_context_length_that_comes_late_or_changes_is_published(self, world: World, known: int | None) -> None:
        replica = place(world, "ready", address="http://127.0.0.1:9000", max_model_len=known)
        Change.objects.all().delete()
        assert apply(world, report(world, ready(replica, max_model_len=2048), sequence=1)).changed
        assert list(Change.objects.values_list("kind", "object_id")) == [("replica", replica.pk)]
        assert not apply(world, report(world, ready(replica, max_model_len=2048), sequence=2)).changed

    def test_another_hosts_replica_is_not_touched(self, world: World) -> None:
        foreign = place(world)
        other = world.add_host("host-2")
        message = other.report(world.now)
        result = report_apply(
            HostReport(
                **{name: getattr(message, name) for name in message.__struct_fields__} | {"replicas": (ready(foreign),)}
            ),
            client=world.client,
            now=world.at,
        )
        foreign.refresh_from_db()
        assert (foreign.state, result.foreign, result.changed) == ("pending", 1, False)

    def test_rubbish_ids_are_foreign(self, world: World) -> None:
        seen = ReplicaReport(replica_id="no uuid", phase="ready")
        assert apply(world, report(world, seen)).foreign == 1

    @pytest.mark.parametrize(("old", "kind"), [("starting", "start_failed"), ("ready", "crash")])
    def test_an_end_nobody_asked_for_is_an_incident(self, world: World, old: str, kind: str) -> None:
        replica = place(world, old, address="http://127.0.0.1:9000", ready_at=world.at if old == "ready" else None)
        failed = ReplicaReport(
            replica_id=str(replica.pk), phase="failed", reason="out of memory", exit_code=0, log_tail="the end"
        )
        assert apply(world, report(world, failed)).changed
        replica.refresh_from_db()
        incident = Incident.objects.get()
        assert (replica.state, incident.kind, incident.replica_id) == ("failed", kind, replica.pk)
        assert incident.evidence["log_tail"] == "the end"
        assert incident.evidence["exit_code"] == 0
        assert "out of memory" in incident.summary
        assert AuditEntry.objects.filter(action="replica.failed").exists()

    def test_a_nul_in_what_an_engine_says_keeps_nobody_alive(self, world: World) -> None:
        replica = place(world, "ready", address="http://127.0.0.1:9000", ready_at=world.at)
        failed = ReplicaReport(
            replica_id=str(replica.pk),
            phase="failed",
            reason="out\0 of memory",
            engine_version="0\0.99",
            progress=Progress(step="start\0ing"),
            log_tail="the\0 end",
            evidence={"proc\0ess": ["sta\0te"]},
        )
        gpu = AcceleratorReport(index=0, name="H\x00200", uuid="GPU\0-a", memory_bytes=1)
        assert apply(world, report(world, failed, hostname="h\0", accelerators=(gpu,))).changed
        replica.refresh_from_db()
        incident, host = Incident.objects.get(), world.host()
        assert (replica.state, replica.engine_version, replica.progress["step"]) == ("failed", "0.99", "starting")
        assert "out of memory" in replica.reason
        assert incident.evidence == {"log_tail": "the end", "process": ["state"]}
        assert (host.report["hostname"], host.accelerators.get().name) == ("h", "H200")

    def test_an_engine_that_vanished_has_failed_once_the_agent_knows_its_orders(self, world: World) -> None:
        replica = place(world, "ready", address="http://127.0.0.1:9000", ready_at=world.at)
        Host.objects.filter(pk=replica.host_id).update(generation=3, orders_digest="of the third")
        apply(world, report(world, sequence=1, generation=2))
        replica.refresh_from_db()
        assert replica.state == "ready"
        apply(world, report(world, sequence=2, generation=3))
        replica.refresh_from_db()
        assert replica.state == "failed"

    def test_a_report_does_not_end_a_drain(self, world: World) -> None:
        replica = place(world, "draining", address="http://127.0.0.1:9000")
        apply(world, report(world, ready(replica), sequence=1))
        apply(world, report(world, ReplicaReport(replica_id=str(replica.pk), phase="draining"), sequence=2))
        replica.refresh_from_db()
        assert replica.state == "draining"

    def test_a_stopped_engine_was_asked_to(self, world: World) -> None:
        replica = place(world, "stopping", address="http://127.0.0.1:9000")
        apply(world, report(world, ReplicaReport(replica_id=str(replica.pk), phase="stopped")))
        replica.refresh_from_db()
        assert (replica.state, Incident.objects.count()) == ("stopped", 0)

    def test_what_a_lower_attempt_did_is_forgotten(self, world: World) -> None:
        replica = place(world, "starting", attempt=2)
        failed = ReplicaReport(replica_id=str(replica.pk), phase="failed", attempt=1)
        apply(world, report(world, failed))
        replica.refresh_from_db()
        assert replica.state == "starting"

    def test_metrics_go_to_the_ring(self, world: World) -> None:
        replica = place(world, "ready", address="http://127.0.0.1:9000")
        metrics = {"running": 2.0, "generation_tokens_total": 41.0}
        apply(world, report(world, ready(replica, metrics=metrics, metrics_at=77.0)))
        assert world.client.llen(f"penstock:ring:replica:{replica.pk}") == 1
        newest = world.client.lindex(f"penstock:ring:replica:{replica.pk}", 0)
        assert b"generation_tokens_total" in newest  # type: ignore[operator]

    def test_a_report_costs_few_queries(self, world: World, django_assert_max_num_queries: Any) -> None:
        replicas = [place(world, "ready", address="http://127.0.0.1:9000", ready_at=world.at) for _ in range(5)]
        apply(world, report(world, *map(ready, replicas), sequence=1))
        with django_assert_max_num_queries(6):
            apply(world, report(world, *map(ready, replicas), sequence=2))


def test_the_scripted_agent_and_the_reports_agree(world: World) -> None:
    world.agent.behaviour = lambda order: BROKEN
    place(world)
    world.agent.step(world.now)
    assert world.deliver(world.agent).foreign == 0
