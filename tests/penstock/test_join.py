"""``penstock join``: another machine comes in with a token, against the real API in a server of its own thread."""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import Any

import pytest
from pytest_django.live_server_helper import LiveServer

from capacity.models import EnrolmentToken, Host
from capacity.services import enrolment_token_create
from penstock.cli import main
from penstock.cli.join import told_of_machine
from tenants.crypto import decrypt
from worker.config import load_config

pytestmark = pytest.mark.django_db(transaction=True)
BROKER = "rediss://agent:pw@state.example.org:6380/0"
GIB = 1 << 30


@pytest.fixture
def reachable(settings: Any) -> None:
    settings.PENSTOCK_AGENT_REDIS_URL = BROKER
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}


def join(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str, token: str = "", stdin: str = ""
) -> tuple[int, str]:
    monkeypatch.setenv("PENSTOCK_ENROLMENT_TOKEN", token)
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    capsys.readouterr()
    code = main(["join", *words])
    return code, capsys.readouterr().err


def test_a_machine_joins_once_and_its_agent_can_read_what_it_got(
    live_server: LiveServer,
    reachable: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    token, text = enrolment_token_create(name="row 7", actor="a test", labels={"zone": "a"})
    words = (live_server.url, "--name", "Rack 1", "--data", str(tmp_path))
    code, said = join(monkeypatch, capsys, *words, token=text)
    assert code == 0, said
    assert text not in said
    host = Host.objects.get(name="rack-1")
    path = tmp_path / "agent" / "agent.json"
    config = load_config(path)
    assert (config.name, config.host_id, config.broker_url) == ("rack-1", str(host.pk), BROKER)
    assert config.secret == decrypt(host.secret)
    assert config.secret.hex() not in said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert host.labels == {"zone": "a"}
    token.refresh_from_db()
    assert token.uses_left == 0

    code, said = join(monkeypatch, capsys, *words, token=text)
    assert code == 1
    assert "is a host already" in said
    assert Host.objects.count() == 1


def test_a_used_token_and_a_wrong_address_are_told(
    live_server: LiveServer,
    reachable: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    token, text = enrolment_token_create(name="t", actor="a test")
    EnrolmentToken.objects.filter(pk=token.pk).update(uses_left=0)
    place = ("--data", str(tmp_path))
    code, said = join(monkeypatch, capsys, live_server.url, *place, stdin=f"{text}\n")
    assert code == 1
    assert "used up" in said
    code, said = join(monkeypatch, capsys, live_server.url, *place, token="pse_no_such")
    assert code == 3
    code, said = join(monkeypatch, capsys, "console", *place, token=text)
    assert code == 1
    assert "is not an address" in said
    code, said = join(monkeypatch, capsys, live_server.url, *place)
    assert code == 1
    assert "no token was given" in said
    assert not (tmp_path / "agent" / "agent.json").exists()
    code, said = join(monkeypatch, capsys, live_server.url, "--data", str(Path(__file__) / "no"), token=text)
    assert code == 1
    assert "cannot be written" in said
    assert not Host.objects.exists()


def test_where_no_host_can_reach_the_state_it_says_what_to_set(
    live_server: LiveServer,
    reachable: None,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    settings.PENSTOCK_AGENT_REDIS_URL = ""
    _, text = enrolment_token_create(name="t", actor="a test")
    code, said = join(monkeypatch, capsys, live_server.url, "--data", str(tmp_path), token=text)
    assert code == 1
    assert "PENSTOCK_AGENT_REDIS_URL" in said


def test_what_is_told_of_a_machine() -> None:
    cards = [("NVIDIA L4", 24 * GIB), ("NVIDIA L4", 24 * GIB)]
    assert told_of_machine("gpu_7.example.org", cpu_model="EPYC", memory_bytes=64 * GIB, cards=cards) == {
        "name": "gpu_7-example-org",
        "hardware": "NVIDIA L4",
        "memory_bytes": 24 * GIB,
        "is_cpu": False,
    }
    plain = told_of_machine("", cpu_model="", memory_bytes=GIB, cards=[])
    assert (plain["hardware"], plain["is_cpu"], plain["memory_bytes"]) == ("CPU", True, GIB)
    assert plain["name"]
