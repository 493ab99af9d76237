"""Operators' pages of deployments: what they do there, and what they are told."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from capacity.models import Host, Model, Pool
from serving.models import Deployment, Replica, Revision
from tenants.models import AuditEntry, Tenant, User
from tests import factories
from tests.web.acting import acts, text, undo
from tests.web.seed import Seeded


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["chat-32b", "demo-sim"]),
        ("q=Qwen", ["chat-32b"]),
        ("pool=demo-sim", ["demo-sim"]),
        ("state=failed", ["chat-32b"]),
        ("state=ready&sort=-name", ["demo-sim", "chat-32b"]),
        ("state=waiting", []),
        ("state=disabled", []),
    ],
)
def test_deployments_are_filtered(as_operator: Client, query: str, names: list[str]) -> None:
    rows = as_operator.get(f"/console/deployments/?{query}").context["rows"]
    assert [row.deployment.name for row in rows] == names


def test_the_lists_ask_the_database_as_often_for_many_as_for_few(as_operator: Client, platform: Seeded) -> None:
    for path in ("/console/deployments/", "/console/hosts/", "/console/tenants/", "/console/audit/"):
        with CaptureQueriesContext(connection) as few:
            as_operator.get(path)
        assert len(few) <= 22, path
    counts = {}
    for path in ("/console/deployments/", "/console/hosts/", "/console/tenants/"):
        with CaptureQueriesContext(connection) as few:
            as_operator.get(path)
        counts[path] = len(few)
    kind = factories.hardware()
    for index in range(8):
        deployment = Deployment.objects.create(pool=platform.chat.pool, name=f"more-{index}")
        revision = deployment.revisions.create(number=1, runtime="simulated")
        host = Host.objects.create(name=f"more-{index}", hardware_type=kind, secret=b"x")
        Replica.objects.create(deployment=deployment, revision=revision, host=host, state_since=timezone.now())
        Tenant.objects.create(slug=f"tenant-{index}", name=f"Tenant {index}")
    for path, count in counts.items():
        with CaptureQueriesContext(connection) as many:
            as_operator.get(path)
        assert len(many) == count, path


def test_a_deployment_tells_what_is_wanted_and_what_is_there(as_operator: Client, platform: Seeded) -> None:
    page = text(as_operator.get(f"/console/deployments/{platform.chat.pk}/"))
    assert "3 of 4 wanted replicas are ready (the scale loop decides). 1 failed." in page
    assert "not enough memory for a KV cache" in page
    assert "Retry failed" in page


def test_scale_applies_and_is_taken_back(as_operator: Client, platform: Seeded) -> None:
    path = f"/console/deployments/{platform.chat.pk}/scale"
    given = {"min_replicas": "1", "max_replicas": "8", "pinned_replicas": "3"}
    page = text(as_operator.post(path, given, follow=True))
    platform.chat.refresh_from_db()
    assert (platform.chat.min_replicas, platform.chat.max_replicas, platform.chat.pinned_replicas) == (1, 8, 3)
    assert "chat-32b now wants 3 replicas." in page
    undo(as_operator, page)
    platform.chat.refresh_from_db()
    assert (platform.chat.min_replicas, platform.chat.max_replicas, platform.chat.pinned_replicas) == (2, 6, None)
    wrong = as_operator.post(path, {"min_replicas": "9", "max_replicas": "3"})
    assert wrong.status_code == 400
    field = re.search(r'id="scaleform-max_replicas_error">([^<]+)<', text(wrong))
    assert field is not None
    assert "at least the minimum" in field[1]
    assert 'value="9"' in text(wrong)


def test_stop_asks_and_start_takes_it_back(as_operator: Client, platform: Seeded) -> None:
    path = f"/console/deployments/{platform.chat.pk}/stop"
    question = text(as_operator.get(path))
    assert "Its 3 ready replicas finish what is in flight" in question
    assert "Clients that ask for chat-32b get 503" in question
    platform.chat.refresh_from_db()
    assert platform.chat.is_enabled
    page = text(as_operator.post(path, follow=True))
    platform.chat.refresh_from_db()
    assert not platform.chat.is_enabled
    assert "It is stopped" in page
    undo(as_operator, page)
    platform.chat.refresh_from_db()
    assert platform.chat.is_enabled
    assert acts("deployment.disable", "deployment.enable") == ["deployment.disable", "deployment.enable"]


def test_a_new_revision_is_current_and_one_can_go_back(as_operator: Client, platform: Seeded) -> None:
    path = f"/console/deployments/{platform.chat.pk}/revisions"
    given = {"runtime": "vllm", "target_concurrency": "24", "options": '{"max_model_len": 8192}'}
    page = text(as_operator.post(path, given, follow=True))
    current = Revision.objects.get(deployment=platform.chat, is_current=True)
    assert (current.number, current.target_concurrency, current.options) == (2, 24, {"max_model_len": 8192})
    assert "Revision 2 is current" in page
    page = text(undo(as_operator, page))
    current = Revision.objects.get(deployment=platform.chat, is_current=True)
    assert (current.number, current.target_concurrency, current.options) == (3, 16, {})
    for wrong, why in (("{", "This is not JSON"), ("[1]", "Write a JSON object"), ('{"a": NaN}', "no number in JSON")):
        answer = as_operator.post(path, {**given, "options": wrong})
        assert answer.status_code == 400
        assert why in text(answer)
    assert Revision.objects.filter(deployment=platform.chat).count() == 3
    again = as_operator.post(f"{path}/{current.pk}/restore", follow=True)
    assert "is the current one" in text(again)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("[" * 100_000, "at most 100 levels deep"),
        ('{"a":' * 100_000, "at most 100 levels deep"),
        ('{"a":' * 150 + "1" + "}" * 150, "at most 100 levels deep"),
        ('{"a": 1e400}', "infinite numbers"),
        (r'{"a": "\u0000"}', "NUL characters"),
        (r'{"a": "\ud800"}', "surrogate pair"),
        (r'{"\udc00": 1}', "surrogate pair"),
        ('{"a": Infinity}', "no number in JSON"),
    ],
)
def test_options_that_no_database_takes_stand_at_their_field(
    as_operator: Client, platform: Seeded, options: str, why: str
) -> None:
    path = f"/console/deployments/{platform.chat.pk}/revisions"
    answer = as_operator.post(path, {"runtime": "vllm", "target_concurrency": "24", "options": options})
    assert answer.status_code == 400
    assert why in text(answer)
    assert Revision.objects.filter(deployment=platform.chat).count() == 1


def test_a_backslash_before_u0000_is_text(as_operator: Client, platform: Seeded) -> None:
    path = f"/console/deployments/{platform.chat.pk}/revisions"
    given = {"runtime": "simulated", "target_concurrency": "24", "options": r'{"labelled": "\\u0000"}'}
    assert "Leave out NUL" not in text(as_operator.post(path, given, follow=True))


def test_a_revision_of_another_deployment_is_none_of_it(as_operator: Client, platform: Seeded) -> None:
    other = platform.sim.revisions.get()
    path = f"/console/deployments/{platform.chat.pk}/revisions/{other.pk}/restore"
    assert as_operator.post(path).status_code == 404


def test_retry_goes_back_to_where_its_button_was(as_operator: Client, platform: Seeded) -> None:
    path = f"/console/deployments/{platform.chat.pk}/retry"
    assert as_operator.post(path)["Location"] == "/console/"
    assert as_operator.post(path, {"back": "deployment"})["Location"] == f"/console/deployments/{platform.chat.pk}/"


def test_events_are_decisions_and_incidents_in_pages(as_operator: Client, platform: Seeded) -> None:
    path = f"/console/deployments/{platform.chat.pk}/?tab=events"
    page = text(as_operator.get(path))
    assert "A replica of chat-32b did not start on gpu-02" in page
    assert "offered_mu_per_min" in page
    assert "3 → 4 replicas" in page
    assert "Hold at" not in page
    path += "&looks=all"
    first = as_operator.get(path)
    assert "Hold at 3 replicas" in text(first)
    assert len(first.context["events"]) == 40
    second = as_operator.get(f"{path}&before={first.context['older']}")
    ids = {row.event.id for row in first.context["events"]} & {row.event.id for row in second.context["events"]}
    assert not ids
    assert as_operator.get(f"{path}&before=nonsense").status_code == 200


def test_a_log_is_what_the_incident_kept_until_the_agent_sends_it(
    as_operator: Client, platform: Seeded, state: redis.Redis
) -> None:
    from serving.services import incident_open

    incident_open(
        kind="start_failed", summary="no", replica=platform.failed, evidence={"log_tail": "one\ntwo <b>bold</b>"}
    )
    page = text(as_operator.get(f"/console/deployments/{platform.chat.pk}/?tab=logs&replica={platform.failed.pk}"))
    assert "one\ntwo &lt;b&gt;bold&lt;/b&gt;" in page
    assert state.exists(f"agent:follow:{platform.failed.host_id}")
    page = text(as_operator.get(f"/console/replicas/{platform.failed.pk}/"))
    assert "two &lt;b&gt;" in page
    assert "not enough memory for a KV cache" in page


def test_the_files_choose_the_runtime_in_view(as_operator: Client, platform: Seeded, tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n  sklearn: {}\n"
    )
    plan = text(as_operator.get("/console/deployments/new", {"model": str(tmp_path)}))
    assert "MLflow" in plan
    assert "describes a model of sklearn" in plan
    assert "for 100 rows in 4 KiB" in plan
    as_operator.post("/console/deployments/new", {"model": str(tmp_path)})
    made = Deployment.objects.get(pool__model__artifact_value=str(tmp_path))
    assert (made.revisions.get().runtime, made.pool.profiles.get().alpha) == ("mlflow", 0.0)
    page = text(as_operator.get(f"/console/deployments/{made.pk}/?tab=revisions"))
    assert "describes a model of sklearn" in page


def test_files_of_no_known_kind_ask_for_a_command(as_operator: Client, platform: Seeded, tmp_path: Path) -> None:
    plan = text(as_operator.get("/console/deployments/new", {"model": str(tmp_path)}))
    assert "Give the runtime command with argv" in plan
    answer = as_operator.post("/console/deployments/new", {"model": str(tmp_path)})
    assert "Give the runtime command with argv" in text(answer)
    assert not Model.objects.filter(artifact_value=str(tmp_path)).exists(), "all of it, or nothing"


def test_the_model_alone_makes_model_pool_and_deployment(as_operator: Client, platform: Seeded) -> None:
    plan = text(as_operator.get("/console/deployments/new", {"model": "Qwen/Qwen3-8B"}))
    assert "8 B parameters, read from its name" in plan
    assert "NVIDIA H200, 1 accelerator per replica" in plan
    answer = as_operator.post("/console/deployments/new", {"model": "Qwen/Qwen3-8B"}, follow=True)
    made = Deployment.objects.get(name="qwen3-8b")
    assert answer.redirect_chain[-1][0] == f"/console/deployments/{made.pk}/"
    model = made.pool.model
    assert (model.artifact_kind, model.artifact_value, model.parameters) == ("hub", "Qwen/Qwen3-8B", 8 * 10**9)
    assert made.pool.is_public
    assert made.pool.profiles.get().hardware_type.slug == "h200"
    assert (made.min_replicas, made.max_replicas) == (1, 1)
    assert made.revisions.get().runtime == "vllm"
    wanted = ["model.create", "pool.create", "cost_profile.add", "deployment.create", "revision.create"]
    assert acts(*wanted) == wanted
    assert set(AuditEntry.objects.values_list("actor", flat=True)) == {platform.operator.email}
    # The same model again: neither another model nor another pool.
    as_operator.post("/console/deployments/new", {"model": "Qwen/Qwen3-8B"})
    assert Deployment.objects.get(name="qwen3-8b-2").pool == made.pool
    assert Model.objects.filter(artifact_value="Qwen/Qwen3-8B").count() == 1


def test_large_models_get_tensor_parallelism(as_operator: Client) -> None:
    as_operator.post("/console/deployments/new", {"model": "meta-llama/Llama-3.1-70B"})
    # 70 B parameters at 2 bytes and a fifth more are 168 GB: two of 141 GB.
    assert Deployment.objects.get(name="llama-3.1-70b").revisions.get().options == {"tensor_parallel_size": 2}
    as_operator.post("/console/deployments/new", {"model": "meta-llama/Llama-3.1-70B", "hardware_type": "cpu"})
    assert Deployment.objects.get(name="llama-3.1-70b-2").revisions.get().options == {}


def test_with_all_hosts_silent_the_plan_says_so_and_counts_right(as_operator: Client) -> None:
    Host.objects.update(last_report_at=timezone.now() - timedelta(minutes=5))
    plan = text(as_operator.get("/console/deployments/new", {"model": "meta-llama/Llama-3.1-70B"}))
    assert "NVIDIA H200, 2 accelerators per replica" in plan
    assert "no host takes replicas yet" in plan


def test_what_was_chosen_can_be_changed(as_operator: Client, platform: Seeded) -> None:
    given = {
        "model": "qwen3-32b",
        "name": "chat-eu",
        "min_replicas": "0",
        "max_replicas": "3",
        "target_concurrency": "8",
        "options": '{"host_labels": {"zone": "eu"}}',
    }
    as_operator.post("/console/deployments/new", given)
    made = Deployment.objects.get(name="chat-eu")
    assert made.pool == platform.chat.pool
    assert (made.min_replicas, made.max_replicas) == (0, 3)
    revision = made.revisions.get()
    assert (revision.target_concurrency, revision.options["host_labels"]) == (8, {"zone": "eu"})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"model": ""}, "This field is required"),
        ({"model": "zzz"}, "is no model that is known here"),
        ({"model": "tiny", "name": "chat-32b"}, "already exists"),
        ({"model": "tiny", "options": "no"}, "This is not JSON"),
        ({"model": "tiny", "min_replicas": "3", "max_replicas": "1"}, "at least the minimum"),
    ],
)
def test_what_cannot_be_is_told_at_its_field_and_makes_nothing(
    as_operator: Client, given: dict[str, str], why: str
) -> None:
    before = (Model.objects.count(), Pool.objects.count(), Deployment.objects.count(), AuditEntry.objects.count())
    answer = as_operator.post("/console/deployments/new", given)
    assert answer.status_code == 400
    assert why in text(answer)
    after = (Model.objects.count(), Pool.objects.count(), Deployment.objects.count(), AuditEntry.objects.count())
    assert after == before


def test_without_any_hardware_a_deployment_says_what_comes_first(client: Client, state: redis.Redis, db: None) -> None:
    client.force_login(User.objects.create_user("op@penstock.example", is_operator=True))
    answer = client.post("/console/deployments/new", {"model": "Qwen/Qwen3-8B"})
    assert answer.status_code == 400
    assert "No host has joined yet" in text(answer)
    assert not Model.objects.exists()
