"""Deployments, revisions, replicas, incidents, decisions, credentials."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from serving.models import Deployment, Incident, ProviderCredential, Replica
from serving.policy.lifecycle import ALLOWED
from serving.services import (
    TransitionError,
    deployment_create,
    deployment_disable,
    deployment_enable,
    deployment_retry,
    deployment_update,
    incident_close,
    incident_evidence_add,
    incident_open,
    provider_credential_remove,
    provider_credential_set,
    replica_transition,
    replicas_delete_old,
    revision_create,
    scaling_decision_record,
)
from tenants.crypto import decrypt
from tenants.models import AuditEntry, Change
from tests import factories

pytestmark = pytest.mark.django_db


def test_a_deployment_begins_with_a_revision() -> None:
    served = deployment_create(
        pool=factories.pool(),
        name="demo",
        runtime="simulated",
        options={"alpha_ms": 0.1},
        target_concurrency=8,
        min_replicas=2,
        max_replicas=5,
        actor="t",
    )
    revision = served.revisions.get()
    assert served.desired_replicas == 2
    assert (revision.number, revision.is_current, revision.options) == (1, True, {"alpha_ms": 0.1})
    assert Change.objects.filter(kind="deployment", object_id=served.pk).exists()


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"name": " "}, "name"),
        ({"min_replicas": 4, "max_replicas": 2}, "max_replicas"),
        ({"runtime": "abacus"}, "runtime"),
        ({"target_concurrency": 0}, "target_concurrency"),
        ({"options": "fast"}, "options"),
        ({"options": {"tensor_parallel_size": "auto"}}, "options"),
        ({"options": {"pipeline_parallel_size": 0}}, "options"),
        ({"options": {"accelerators": -1}}, "options"),
        ({"options": {"accelerators": True}}, "options"),
        ({"options": {"memory_bytes": 1.5}}, "options"),
        ({"options": {"kv_cache_bytes": None}}, "options"),
        ({"options": {"host_labels": "gpu"}}, "options"),
        ({"options": {"host_labels": {"zone": 1}}}, "options"),
        ({"cold_start_s": 0.0}, "cold_start_s"),
    ],
)
def test_a_bad_deployment_is_refused_at_its_field(fields: dict[str, Any], at: str) -> None:
    base = {"pool": factories.pool(), "name": "demo", "runtime": "simulated", "actor": "t"}
    with pytest.raises(ValidationError) as error:
        deployment_create(**{**base, **fields})
    assert at in error.value.message_dict
    assert not Deployment.objects.exists()


def test_the_wish_moves_inside_new_bounds() -> None:
    served = factories.deployment(min_replicas=1, max_replicas=8)
    Deployment.objects.filter(pk=served.pk).update(desired_replicas=7)
    deployment_update(deployment=served, actor="t", max_replicas=4)
    assert served.desired_replicas == 4
    deployment_update(deployment=served, actor="t", min_replicas=2, pinned_replicas=3)
    assert served.desired_replicas == 3
    with pytest.raises(ValidationError) as error:
        deployment_update(deployment=served, actor="t", max_replicas=1)
    assert "max_replicas" in error.value.message_dict
    served.refresh_from_db()
    assert served.max_replicas == 4


def test_a_deployment_is_disabled_enabled_and_retried() -> None:
    served = factories.deployment()
    assert deployment_disable(deployment=served, actor="t")
    assert not deployment_disable(deployment=served, actor="t")
    assert deployment_enable(deployment=served, actor="t")
    assert deployment_retry(deployment=served, actor="t").retry_attempt == 1
    actions = AuditEntry.objects.filter(object_id=str(served.pk)).order_by("at").values_list("action", flat=True)
    assert list(actions) == ["deployment.create", "deployment.disable", "deployment.enable", "deployment.retry"]


def test_a_new_revision_is_the_current_one() -> None:
    served = factories.deployment()
    second = revision_create(deployment=served, runtime="vllm", options={"max_model_len": 4096}, actor="t")
    assert second.number == 2
    assert served.revisions.get(is_current=True) == second


def test_options_of_placement_say_what_to_give() -> None:
    served = factories.deployment()
    good = {
        "tensor_parallel_size": 2,
        "accelerators": 0,
        "host_labels": {"zone": "a"},
        "max_model_len": 4096,
    }
    revision_create(deployment=served, runtime="vllm", options=good, actor="t")
    with pytest.raises(ValidationError) as error:
        revision_create(deployment=served, runtime="vllm", options={"tensor_parallel_size": "auto"}, actor="t")
    assert error.value.messages == ["tensor_parallel_size: give a whole number from 1, or leave it out."]
    assert served.revisions.get(is_current=True).options == good


@pytest.mark.parametrize(
    ("runtime", "options", "word"),
    [
        ("vllm", {"max_model_len": "long"}, "vLLM option max_model_len: Expected `int | null`"),
        ("vllm", {"max_model_length": 1}, "unknown field `max_model_length`"),
        ("vllm", {"extra_args": ["--runner", "pooling"]}, "follows from the option task"),
        ("vllm", {"task": "embed", "tool_call_parser": "hermes"}, "tool_call_parser: a model of task embed"),
        ("mlflow", {"probe_input": []}, "MLflow option probe_input"),
        ("mlflow", {"start_limit_s": 0}, "MLflow option start_limit_s"),
        ("command", {}, "missing required field `argv`"),
        ("command", {"argv": "llama-server --port {port}"}, "command option argv"),
        ("command", {"argv": []}, "command option argv"),
        ("command", {"argv": ["s", "{ports}"]}, "{ports} stands for nothing"),
        ("command", {"argv": ["s"], "env": {"A=B": "1"}}, "command option env"),
        ("command", {"argv": ["s"], "env": {"PENSTOCK_REPLICA_ID": "1"}}, "Penstock's own"),
        ("command", {"argv": ["s"], "readiness_path": "http://elsewhere/"}, "command option readiness_path"),
        ("command", {"argv": ["s"], "readiness_path": "//elsewhere"}, "command option readiness_path"),
        ("command", {"argv": ["s"], "invocations_path": "/a HTTP/1.1\r\nx: y"}, "command option invocations_path"),
        ("command", {"argv": ["s"], "metrics_path": "metrics"}, "command option metrics_path"),
        ("command", {"argv": ["s"], "speaks": ["telnet"]}, "command option speaks"),
        ("command", {"argv": ["s"], "speaks": []}, "command option speaks"),
        ("command", {"argv": ["s"], "probe": {"path": "p"}}, "command option probe.path"),
    ],
)
def test_options_of_an_engine_say_what_to_give(runtime: str, options: dict[str, Any], word: str) -> None:
    served = factories.deployment()
    with pytest.raises(ValidationError) as error:
        revision_create(deployment=served, runtime=runtime, options=options, actor="t")
    (said,) = error.value.message_dict["options"]
    assert word in said


def test_a_replica_takes_exactly_the_steps_of_the_life_cycle() -> None:
    """Every pair of states is tried against the table that the loops decide by."""
    served, host = factories.deployment(), factories.host()
    for old in Replica.State:
        for new in Replica.State:
            replica = factories.replica(served, host=host)
            Replica.objects.filter(pk=replica.pk).update(state=old, address="http://h:1")
            replica.refresh_from_db()
            if new.value in ALLOWED[old.value]:
                assert replica_transition(replica=replica, to=new, reason="r")
                assert Replica.objects.get(pk=replica.pk).state == new
            else:
                with pytest.raises(TransitionError):
                    replica_transition(replica=replica, to=new, reason="r")


def test_a_transition_carries_its_facts() -> None:
    replica = factories.replica(host=factories.host())
    stale = Replica.objects.get(pk=replica.pk)
    Change.objects.all().delete()
    assert replica_transition(replica=replica, to="ready", reason="x" * 900, address="http://h:1", pid=42)
    assert (replica.state, replica.pid, len(replica.reason)) == ("ready", 42, 500)
    assert not replica_transition(replica=stale, to="failed", reason="too late")
    stored = Replica.objects.get(pk=replica.pk)
    assert (stored.state, stored.address, stored.pid) == ("ready", "http://h:1", 42)
    assert stored.state_since == replica.state_since
    assert list(Change.objects.values_list("kind", flat=True)) == ["replica", "deployment"]


def test_no_ready_replica_without_address_and_none_running_without_host() -> None:
    placed, homeless = factories.replica(host=factories.host()), factories.replica()
    with pytest.raises(IntegrityError), transaction.atomic():
        replica_transition(replica=placed, to="ready", reason="r")
    with pytest.raises(IntegrityError), transaction.atomic():
        replica_transition(replica=homeless, to="starting", reason="r")
    assert Replica.objects.filter(state="pending").count() == 2


def test_ended_replicas_are_forgotten() -> None:
    replica = factories.replica()
    keep = factories.replica()
    replica_transition(replica=replica, to="stopped", reason="not needed")
    from django.utils import timezone

    assert replicas_delete_old(before=timezone.now()) == 1
    assert list(Replica.objects.all()) == [keep]


def test_an_incident_collects_evidence_until_it_is_closed() -> None:
    replica = factories.replica()
    incident = incident_open(kind="hang", summary="no tokens for 20 s", replica=replica, evidence={"log": "a"})
    again = incident_open(kind="hang", summary="still none", replica=replica, evidence={"metrics": {"running": 1}})
    assert again.pk == incident.pk
    incident_evidence_add(incident=incident, evidence={"log": "b"}, what="killed")
    assert incident_close(incident=incident, what="replaced", actor="t")
    assert not incident_close(incident=incident, what="again", actor="t")
    stored = Incident.objects.get()
    assert stored.evidence == {"log": "b", "metrics": {"running": 1}}
    assert [entry["what"] for entry in stored.timeline] == ["no tokens for 20 s", "killed", "replaced"]
    assert stored.deployment_name == replica.deployment.name
    assert incident_open(kind="hang", summary="once more", replica=replica).pk != incident.pk


def test_a_decision_outlives_its_deployment() -> None:
    served = factories.deployment()
    scaling_decision_record(deployment=served, before=1, after=3, reason="offered 240 MU/min", inputs={"mu": 240})
    from serving.models import ScalingDecision

    assert ScalingDecision.objects.get().deployment_name == served.name


def test_a_credential_is_write_only() -> None:
    with pytest.raises(ValidationError) as error:
        provider_credential_set(name="c", provider="openai", actor="t")
    assert list(error.value.message_dict) == ["secret"]
    made = provider_credential_set(name="c", provider="openai", secret="sk-1", actor="t")
    assert b"sk-1" not in bytes(made.secret)
    kept = provider_credential_set(name="c", provider="openai", base_url="https://x.example.org", actor="t")
    assert kept.pk == made.pk
    assert decrypt(kept.secret) == b"sk-1"
    with pytest.raises(ValidationError) as error:
        provider_credential_set(name="c", provider="openai", base_url="file:///etc/passwd", actor="t")
    assert list(error.value.message_dict) == ["base_url"]
    renamed = provider_credential_set(name="c", provider="other", actor="t")
    assert (renamed.provider, renamed.base_url) == ("other", "https://x.example.org")
    provider_credential_remove(credential=kept, actor="t")
    assert "sk-1" not in str(list(AuditEntry.objects.values()))


def test_a_change_of_a_credential_leaves_its_secret_to_who_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation of the field keys in the middle of a change of the address is not undone."""
    made = provider_credential_set(name="c", provider="openai", secret="sk-1", actor="t")
    clean = ProviderCredential.full_clean

    def rotate_then_clean(credential: ProviderCredential) -> None:
        ProviderCredential.objects.filter(pk=made.pk).update(secret=b"under the new key")
        clean(credential)

    monkeypatch.setattr(ProviderCredential, "full_clean", rotate_then_clean)
    provider_credential_set(name="c", base_url="https://x.example.org", provider="openai", actor="t")
    stored = ProviderCredential.objects.get()
    assert (bytes(stored.secret), stored.base_url) == (b"under the new key", "https://x.example.org")
