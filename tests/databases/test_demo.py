"""The demo on an empty database, and this host's enrolment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from capacity.models import Host, Reservation
from penstock import demo
from penstock.demo import OPERATOR, artifact_of, is_seeded, local_host_enrol, operator_link, seed_demo
from serving.agents.envelopes import host_secret
from serving.models import Deployment
from tenants.keys import key_digest
from tenants.models import ApiKey, Limit, Membership, User
from tenants.services import sign_in_link_redeem, user_set_password
from worker.config import load_config
from worker.spec import AcceleratorReport

pytestmark = pytest.mark.django_db


def test_the_demo_is_whole(settings: Any) -> None:
    assert not is_seeded()
    result = seed_demo(engine="vllm")
    assert result.is_new
    assert [tenant.name for tenant in result.tenants] == ["Northwind Bank", "Alder Health"]
    for tenant in result.tenants:
        _, public_id, secret = tenant.api_key.split("_")
        key = ApiKey.objects.get(public_id=public_id)
        assert key.tenant.slug == tenant.slug
        assert key.digest == key_digest(secret, settings.PENSTOCK_KEY_PEPPERS[key.pepper])
        assert Membership.objects.filter(tenant__slug=tenant.slug).count() == 2
    assert set(Limit.objects.values_list("api_key__tenant__slug", flat=True)) == {"alder-health"}
    assert sign_in_link_redeem(result.sign_in_token).email == OPERATOR
    asked = Reservation.objects.get()
    assert (asked.tenant.slug, asked.pool.slug, asked.state) == ("alder-health", "demo-sim", "requested")
    runtimes = {row.name: row.revisions.get().runtime for row in Deployment.objects.all()}
    assert runtimes == {"demo-sim": "simulated", "demo-tiny": "vllm"}
    simulated = Deployment.objects.get(name="demo-sim")
    assert (simulated.min_replicas, simulated.max_replicas) == (1, 4)
    assert not any(row.pool.profiles.get().calibrated for row in Deployment.objects.select_related("pool"))


def test_a_second_seed_changes_nothing() -> None:
    seed_demo(engine="simulated")
    assert set(Deployment.objects.values_list("revisions__runtime", flat=True)) == {"simulated"}
    again = seed_demo(engine="vllm")
    assert (again.is_new, again.tenants, again.sign_in_token) == (False, (), "")
    assert User.objects.count() == 5


def test_the_simulated_engine_takes_the_demos_options() -> None:
    import msgspec

    from worker.simulated.profile import load_profile

    seed_demo(engine="simulated")
    for served in Deployment.objects.all():
        load_profile(msgspec.json.encode(served.revisions.get().options).decode())


@pytest.mark.parametrize(
    ("model", "kind", "name"),
    [
        ("", "tiny", "demo-tiny"),
        ("Qwen/Qwen3-0.6B", "hub", "qwen3-0.6b"),
        ("/srv/weights/My Model/", "path", "my-model"),
        ("./weights", "path", "weights"),
    ],
)
def test_a_model_is_named_after_its_source(model: str, kind: str, name: str) -> None:
    artifact = artifact_of(model)
    assert (artifact.kind, artifact.name) == (kind, name)
    assert kind != "path" or Path(artifact.value).is_absolute()


def test_this_host_is_enrolled_once(tmp_path: Path, settings: Any) -> None:
    settings.REDIS_URL = f"unix://{tmp_path}/state/valkey.sock"
    host = local_host_enrol(tmp_path)
    path = tmp_path / "agent" / "agent.json"
    assert path.stat().st_mode & 0o777 == 0o600
    config = load_config(path)
    assert (config.host_id, config.secret) == (str(host.pk), host_secret(host))
    password = (tmp_path / "state" / "agent.password").read_text().strip()
    assert config.broker_url == f"redis+socket://agent:{password}@{tmp_path}/state/valkey.sock"
    assert config.state_url == f"unix://agent:{password}@{tmp_path}/state/valkey.sock"
    Host.objects.filter(pk=host.pk).update(name="renamed-by-an-operator")
    assert local_host_enrol(tmp_path).pk == host.pk
    assert load_config(path).secret == config.secret
    path.unlink()
    Host.objects.filter(pk=host.pk).update(name=host.name)
    assert local_host_enrol(tmp_path).pk == host.pk
    assert Host.objects.count() == 1


def test_a_host_with_accelerators_is_of_their_kind_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = AcceleratorReport(index=0, name="NVIDIA H100 80GB HBM3", uuid="GPU-5f0c1e7a", memory_bytes=85_520_809_984)
    monkeypatch.setattr(demo, "accelerators_here", lambda: ((one,), ()))
    kind = local_host_enrol(tmp_path).hardware_type
    assert (kind.slug, kind.name) == ("nvidia-h100-80gb-hbm3", "NVIDIA H100 80GB HBM3")
    assert (kind.is_cpu, kind.memory_bytes) == (False, 85_520_809_984)


def test_a_given_redis_is_used_as_it_is(tmp_path: Path, settings: Any) -> None:
    settings.REDIS_URL = "redis://redis.example.org:6379/3"
    local_host_enrol(tmp_path)
    content = json.loads((tmp_path / "agent" / "agent.json").read_text())
    assert content["broker_url"] == content["state_url"] == settings.REDIS_URL


def test_an_operator_with_a_password_gets_no_more_links() -> None:
    assert operator_link() == ""
    seed_demo(engine="simulated")
    assert sign_in_link_redeem(operator_link()).email == OPERATOR
    user_set_password(user=User.objects.get(email=OPERATOR), password="a fine long one", actor="t")
    assert operator_link() == ""


def test_the_command_prints_json(tmp_path: Path, settings: Any, capsys: pytest.CaptureFixture[str]) -> None:
    settings.DATA = tmp_path
    settings.REDIS_URL = "redis://redis.example.org:6379/0"
    call_command("seed_demo", "--json", "--engine", "simulated")
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["is_new"]
    assert outcome["deployments"] == ["demo-sim", "demo-tiny"]
    assert Host.objects.get().name == outcome["host"]
