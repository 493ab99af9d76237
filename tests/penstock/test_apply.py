"""``penstock apply`` and ``export`` against the real API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from capacity.models import CostProfile, Host, Model, Pool
from serving.models import Deployment, Revision
from tenants.models import ApiKey, Invitation, Limit, Membership, Tenant, User
from tenants.services import membership_add
from tests import factories
from tests.penstock.test_remote import Shell, people, shell, sign_in

__all__ = ["people", "shell"]
pytestmark = pytest.mark.django_db(transaction=True)

People = dict[str, tuple[User, str]]
MANIFEST = """
tenants:
  - slug: acme
    name: Acme Health
    members:
      - {email: owner@example.org, role: owner}
      - {email: new@example.org, role: viewer}
    keys:
      - {name: ci, scopes: [inference], models_allowed: [chat]}
    limits:
      - {kind: tokens_per_min, value: 100000}
      - {kind: concurrency, model: chat, value: 8}
  - slug: fresh
    name: Fresh
    is_active: false
hosts:
  - {name: rack-1, labels: {zone: a}, is_cordoned: true}
models:
  - {slug: tiny, name: Tiny, artifact_kind: tiny, context_tokens: 512}
pools:
  - slug: tiny
    model: tiny
    hardware_type: HARDWARE
    tenants: [acme]
    slo_share: 0.9
    credit_tiers: [[0.99, 0.2], [0.9, 1]]
    price: {alpha: 0.001, beta: 0.004, replica_mu_per_min: 250}
deployments:
  - {name: chat, pool: tiny, min_replicas: 0, max_replicas: 2, target_concurrency: 4, is_enabled: false}
"""


@pytest.fixture
def host(people: People) -> Host:
    return factories.host(name="rack-1")


@pytest.fixture
def manifest(host: Host) -> str:
    return MANIFEST.replace("HARDWARE", host.hardware_type.slug)


def test_a_manifest_makes_everything_and_then_changes_nothing(shell: Shell, people: People, manifest: str) -> None:
    sign_in(shell, people, "operator")
    code, out, err = shell("apply", "-f", "-", "--dry-run", stdin=manifest)
    assert code == 0, err
    assert "+ deployment chat" in out
    assert "~ tenant acme\n    name: Acme → Acme Health" in out
    assert "~ host rack-1" in out
    assert "8 to create, 2 to change, 1 as they are" in err
    assert not Model.objects.exists(), "a dry run changes nothing"
    code, out, err = shell("apply", "-f", "-", stdin=manifest)
    assert code == 0, err
    assert "8 created, 2 changed, 1 as they were" in err
    acme = Tenant.objects.get(slug="acme")
    assert acme.name == "Acme Health"
    assert not Tenant.objects.get(slug="fresh").is_active
    assert Invitation.objects.get(tenant=acme).email == "new@example.org"
    key = ApiKey.objects.get(tenant=acme)
    assert key.models_allowed == ["chat"]
    assert f"mu_{key.public_id}_" in out
    assert "/invitations/" in out
    assert {(one.kind, one.model, one.value) for one in Limit.objects.filter(tenant=acme)} == {
        ("tokens_per_min", "", 100_000),
        ("concurrency", "chat", 8),
    }
    rack = Host.objects.get()
    assert (rack.labels, rack.state) == ({"zone": "a"}, Host.State.CORDONED)
    pool = Pool.objects.get()
    assert [one.slug for one in pool.tenants.all()] == ["acme"]
    price = CostProfile.objects.filter(pool=pool).latest("version")
    assert (price.alpha, price.beta, price.replica_mu_per_min) == (0.001, 0.004, 250)
    deployment = Deployment.objects.get()
    assert (deployment.is_enabled, deployment.max_replicas) == (False, 2)
    assert Revision.objects.get(deployment=deployment).target_concurrency == 4
    code, out, err = shell("apply", "-f", "-", stdin=manifest)
    assert (code, out) == (0, "")
    assert "0 created, 0 changed, 11 as they were" in err


def test_changes_reach_what_is_there(shell: Shell, people: People, manifest: str) -> None:
    sign_in(shell, people, "operator")
    assert shell("apply", "-f", "-", stdin=manifest)[0] == 0
    changed = """
tenants:
  - slug: acme
    members: [{email: owner@example.org, role: admin}, {email: operator@example.org, role: owner}]
    keys: [{name: ci, scopes: [usage, inference]}]
    limits: [{kind: tokens_per_min, value: 5}]
hosts: [{name: rack-1, is_cordoned: false}]
models: [{slug: tiny, context_tokens: 1024}]
pools: [{slug: tiny, tenants: [acme, other], keep_spare: true, price: {beta: 0.008}}]
deployments: [{name: chat, target_concurrency: 9, max_replicas: 3, is_enabled: true}]
"""
    membership_add(
        tenant=Tenant.objects.get(slug="acme"), user=people["operator"][0], role=Membership.Role.ADMIN, actor="test"
    )
    rows = json.loads(shell("apply", "-f", "-", "--dry-run", "--json", stdin=changed)[1])
    by_kind = {row["kind"]: row for row in rows}
    assert by_kind["deployment"]["after"] == {"target_concurrency": 9, "max_replicas": 3, "is_enabled": True}
    assert by_kind["deployment"]["before"] == {"target_concurrency": 4, "max_replicas": 2, "is_enabled": False}
    assert by_kind["member"]["tenant"] == "acme"
    # An owner must be there before another steps down.
    code, _, err = shell("apply", "-f", "-", stdin=changed)
    assert code == 1
    assert "tenants[0].members[0]: member acme/owner@example.org is changed in part or not at all" in err
    assert "Apply it again" in err
    swapped = changed.replace(
        "{email: owner@example.org, role: admin}, {email: operator@example.org, role: owner}",
        "{email: operator@example.org, role: owner}, {email: owner@example.org, role: admin}",
    )
    code, _, err = shell("apply", "-f", "-", stdin=swapped)
    assert code == 0, err
    assert Membership.objects.get(user=people["owner"][0], tenant__slug="acme").role == "admin"
    assert sorted(ApiKey.objects.get().scopes) == ["inference", "usage"]
    assert Host.objects.get().state == Host.State.ACTIVE
    assert Model.objects.get().context_tokens == 1024
    pool = Pool.objects.get()
    assert sorted(one.slug for one in pool.tenants.all()) == ["acme", "other"]
    price = CostProfile.objects.filter(pool=pool).latest("version")
    assert (price.alpha, price.beta, price.replica_mu_per_min) == (0.001, 0.008, 250)
    deployment = Deployment.objects.get()
    assert (deployment.is_enabled, deployment.max_replicas) == (True, 3)
    assert Revision.objects.get(deployment=deployment, is_current=True).target_concurrency == 9
    assert shell("apply", "-f", "-", stdin=swapped)[1] == ""


def test_what_is_exported_is_what_is_there(shell: Shell, people: People, manifest: str, tmp_path: Path) -> None:
    sign_in(shell, people, "operator")
    assert shell("apply", "-f", "-", stdin=manifest)[0] == 0
    code, text, err = shell("export")
    assert code == 0, err
    assert ApiKey.objects.get().public_id not in text
    document = yaml.safe_load(text)
    assert [row["slug"] for row in document["tenants"]] == ["acme", "fresh", "other"]
    acme = document["tenants"][0]
    assert acme["keys"] == [{"name": "ci", "scopes": ["inference"], "models_allowed": ["chat"], "allowed_ips": []}]
    assert {row["email"]: row["role"] for row in acme["members"]} == {
        "owner@example.org": "owner",
        "new@example.org": "viewer",
    }
    assert document["pools"][0]["price"]["replica_mu_per_min"] == 250
    assert document["deployments"][0]["runtime"]
    file = tmp_path / "all.yaml"
    file.write_text(text)
    code, out, err = shell("apply", "-f", str(file), "--dry-run")
    assert (code, out) == (0, ""), err
    # And into an installation that has nothing of it.
    Deployment.objects.all().delete()
    Pool.objects.update(slug="old")
    Model.objects.update(slug="old")
    Limit.objects.all().delete()
    ApiKey.objects.all().delete()
    code, _, err = shell("apply", "-f", str(file))
    assert code == 0, err
    again = yaml.safe_load(shell("export")[1])
    for section in ("models", "pools"):
        again[section] = [row for row in again[section] if row["slug"] != "old"]
    assert again == document
    assert json.loads(shell("export", "hosts", "--json")[1]) == {"hosts": document["hosts"]}


def test_options_that_the_model_brings_stay_and_applying_again_changes_nothing(
    shell: Shell, people: People, host: Host
) -> None:
    sign_in(shell, people, "operator")
    manifest = f"""
models: [{{slug: emb, name: Emb, artifact_kind: tiny, artifact_value: embed}}]
pools: [{{slug: emb, model: emb, hardware_type: {host.hardware_type.slug}}}]
deployments: [{{name: emb, pool: emb, options: {{max_model_len: 64}}, is_enabled: false}}]
"""
    assert shell("apply", "-f", "-", stdin=manifest)[0] == 0
    assert not Deployment.objects.get().is_enabled
    assert Revision.objects.get().options == {"task": "embed", "max_model_len": 64}
    assert shell("apply", "-f", "-", stdin=manifest)[1] == ""
    assert Revision.objects.count() == 1
    bad = manifest.replace("64}, is_enabled: false", "32}, min_replicas: 2, max_replicas: 1")
    code, _, err = shell("apply", "-f", "-", stdin=bad)
    assert code == 1
    assert "deployments[0]: deployment emb is changed in part or not at all" in err
    assert Revision.objects.count() == 1, "what is refused comes first"
    changed = manifest.replace("64}", "32, dtype: float32}")
    assert shell("apply", "-f", "-", stdin=changed)[0] == 0
    newest = Revision.objects.get(is_current=True)
    assert (newest.number, newest.options) == (2, {"task": "embed", "max_model_len": 32, "dtype": "float32"})
    code, _, err = shell("deploy", "emb", "--options", '{"max_model_len": 32}', "--no-wait")
    assert code == 0, err
    assert Revision.objects.count() == 2


def test_members_export_and_apply_what_is_theirs(shell: Shell, people: People) -> None:
    sign_in(shell, people, "owner")
    document = yaml.safe_load(shell("export")[1])
    assert [row["slug"] for row in document.pop("tenants")] == ["acme"]
    assert document == {}
    limits = "tenants: [{slug: acme, limits: [{kind: concurrency, value: 3}]}]"
    code, _, err = shell("apply", "-f", "-", stdin=limits)
    assert code == 0, err
    code, _, err = shell("apply", "-f", "-", stdin=limits.replace("acme", "other"))
    assert code == 1
    assert not Limit.objects.filter(tenant__slug="other").exists()
    code, _, err = shell("export", "models")
    assert code == 1


def test_limits_of_both_go_round_and_converge(shell: Shell, people: People) -> None:
    sign_in(shell, people, "operator")
    manifest = (
        "tenants: [{slug: acme, limits: [{kind: concurrency, value: 8}, {kind: concurrency, model: m, value: 2}]}]"
    )
    assert shell("apply", "-f", "-", stdin=manifest)[0] == 0
    sign_in(shell, people, "owner")
    assert shell("apply", "-f", "-", stdin=manifest.replace("8", "20"))[0] == 0, "the tenant's own"
    own = yaml.safe_load(shell("export")[1])
    assert own["tenants"][0]["limits"] == [
        {"kind": "concurrency", "set_by": "tenant", "value": 20},
        {"kind": "concurrency", "model": "m", "set_by": "tenant", "value": 2},
    ]
    assert shell("apply", "-f", "-", stdin=yaml.safe_dump(own))[1] == ""
    code, _, err = shell("apply", "-f", "-", stdin=manifest.replace("value: 8", "value: 9, set_by: operator"))
    assert code == 1
    assert "Ask an operator of the platform" in err
    sign_in(shell, people, "operator")
    everything = shell("export", "tenants")[1]
    acme = next(row for row in yaml.safe_load(everything)["tenants"] if row["slug"] == "acme")
    assert {(one.get("model", ""), one["set_by"], one["value"]) for one in acme["limits"]} == {
        ("", "operator", 8),
        ("m", "operator", 2),
        ("", "tenant", 20),
        ("m", "tenant", 2),
    }
    for text in (everything, manifest):
        code, out, err = shell("apply", "-f", "-", stdin=text)
        assert (code, out) == (0, ""), err
    kept = set(Limit.objects.values_list("model", "set_by", "value"))
    Limit.objects.all().delete()
    assert shell("apply", "-f", "-", stdin=everything)[0] == 0
    assert set(Limit.objects.values_list("model", "set_by", "value")) == kept
    twice = manifest.replace("model: m", "set_by: operator")
    code, _, err = shell("apply", "-f", "-", stdin=twice)
    assert (code, "stands at" in err) == (1, True), "said and not said are the same"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is neither YAML nor JSON"),
        ("tenant: []", "no such section"),
        ("tenants: [{slug: acme, members: [{email: x@example.org}]}]", "members[0].role: a new member needs it"),
        ("hosts: [{name: nowhere}]", "hosts enrol themselves"),
        ("deployments: [{name: chat, pool: gone}]", "no pool is called 'gone'"),
    ],
)
def test_a_bad_manifest_changes_nothing(shell: Shell, people: People, text: str, words: str) -> None:
    sign_in(shell, people, "operator")
    code, out, err = shell("apply", "-f", "-", stdin=text)
    assert (code, out) == (1, "")
    assert words in err
    assert "Traceback" not in err


def test_files_that_are_none(shell: Shell, people: People, tmp_path: Path) -> None:
    sign_in(shell, people, "operator")
    assert "cannot be read" in shell("apply", "-f", str(tmp_path))[2]
    assert "no such section" in shell("export", "people")[2]


def test_a_drained_host_is_not_undone_and_exported_as_closed(shell: Shell, people: People, host: Host) -> None:
    sign_in(shell, people, "operator")
    assert shell("hosts", "drain", "rack-1", "--reason", "a new fan")[0] == 0
    host.refresh_from_db()
    assert (host.state, host.state_reason) == ("draining", "a new fan")
    code, out, err = shell("export", "hosts")
    assert code == 0, err
    assert yaml.safe_load(out) == {"hosts": [{"name": "rack-1", "labels": {}, "is_cordoned": True}]}
    file = yaml.safe_dump({"hosts": [{"name": "rack-1", "is_cordoned": False, "labels": {"zone": "b"}}]})
    assert shell("apply", "-f", "-", stdin=file)[0] == 0
    host.refresh_from_db()
    assert (host.state, host.labels) == ("draining", {"zone": "b"})
    assert shell("hosts", "uncordon", "rack-1")[0] == 0
    assert shell("hosts", "remove", "rack-1")[0] == 1, "nobody could be asked"
    assert shell("hosts", "remove", "rack-1", "--yes")[0] == 0
    assert "no hosts called 'rack-1'" in shell("hosts", "show", "rack-1")[2]
    assert "hosts enrol themselves" in shell("apply", "-f", "-", stdin=file)[2]
    assert "rack-1" in shell("hosts", "list", "--removed", "yes")[1]
