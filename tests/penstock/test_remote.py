"""The commands that speak to an installation: against the real API, in a server of its own thread."""

from __future__ import annotations

import datetime
import io
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from pytest_django.live_server_helper import LiveServer

from capacity.models import Pool
from capacity.policy.cost import CostProfile
from capacity.services import profile_add
from penstock.cli import main
from penstock.cli.remote import profile
from penstock.cli.remote.arguments import RESOURCES
from tenants.models import ApiKey, Membership, Tenant, User
from tenants.policy.limits import KINDS
from tenants.services import access_token_create, membership_add, tenant_create, user_create
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)
PRICE = CostProfile(version=1, base=0.0, alpha=0.01, beta=0.05, gamma=0.0, epsilon=0.0, cached_factor=0.1)


class Shell:
    """Runs commands as a person at a terminal would, with a home of their own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        self.capsys, self.monkeypatch, self.url = capsys, monkeypatch, url

    def __call__(self, *words: str, stdin: str = "") -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        self.capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as left:
            code = int(left.code or 0)
        told = self.capsys.readouterr()
        return code, told.out, told.err

    def json(self, *words: str) -> Any:
        code, out, err = self(*words, "--json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def people(transactional_db: None) -> dict[str, tuple[User, str]]:
    made = {}
    for name in ("operator", "owner", "outsider"):
        user = user_create(email=f"{name}@example.org", actor="test", is_operator=name == "operator")
        made[name] = (user, access_token_create(user=user, name="test", actor="test")[1])
    for slug, owner in (("acme", "owner"), ("other", "outsider")):
        tenant = tenant_create(name=slug.title(), actor="test")
        membership_add(tenant=tenant, user=made[owner][0], role=Membership.Role.OWNER, actor="test")
    return made


@pytest.fixture
def shell(
    live_server: LiveServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: Any,
) -> Shell:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("PENSTOCK_URL", "PENSTOCK_TOKEN", "PENSTOCK_TENANT"):
        monkeypatch.delenv(name, raising=False)
    return Shell(capsys, monkeypatch, live_server.url)


def sign_in(shell: Shell, people: dict[str, tuple[User, str]], who: str = "owner") -> None:
    code, _, err = shell("login", shell.url, stdin=people[who][1] + "\n")
    assert code == 0, err


def test_from_nothing_to_a_key(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    code, _, err = shell("keys", "list")
    assert code == 3
    assert "penstock login URL" in err
    sign_in(shell, people)
    assert stat.S_IMODE(profile.place().stat().st_mode) == 0o600
    assert "owner of acme" in shell("whoami")[1]
    code, out, err = shell("keys", "create", "ci", "--scopes", "usage,manage")
    assert code == 0
    assert out.startswith("mu_")
    assert "shown this once" in err
    key = ApiKey.objects.get(name="ci")
    assert key.scopes == ["usage", "manage"]
    code, out, _ = shell("keys", "list")
    assert out.splitlines()[0].split()[:2] == ["NAME", "PUBLIC"]
    assert "usage, manage" in out
    assert shell.json("keys", "show", "ci")["id"] == str(key.pk)
    assert shell("logout")[0] == 0
    assert shell("whoami")[0] == 3


def test_a_wrong_token_keeps_nothing(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    code, _, err = shell("login", shell.url, stdin="pst_no_such\n")
    assert code == 3
    assert "token is unknown" in err
    assert not profile.place().exists()
    assert shell("login", "nowhere", stdin="x\n")[0] == 1


def test_changes_rotation_and_an_end_that_asks_first(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    sign_in(shell, people)
    shell("keys", "create", "ci")
    assert shell.json("keys", "set", "ci", "--name", "build")["name"] == "build"
    assert "nothing to change" in shell("keys", "set", "build")[2]
    code, out, _ = shell("keys", "rotate", "build", "--overlap-s", "60")
    assert code == 0
    assert out.startswith("mu_")
    code, _, err = shell("keys", "revoke", "build")
    assert code == 1
    assert "are called 'build'" in err, "the old and the new one"
    newest = ApiKey.objects.order_by("-created_at").first()
    assert newest is not None
    code, _, err = shell("keys", "revoke", str(newest.pk))
    assert (code, "--yes" in err) == (1, True)
    assert shell("keys", "revoke", str(newest.pk), "--yes")[0] == 0
    newest.refresh_from_db()
    assert newest.revoked_at is not None


def test_errors_say_the_field_and_what_to_do(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    sign_in(shell, people)
    code, _, err = shell("keys", "create", "x", "--allowed-ips", "nowhere", "--expires-at", "tomorrow")
    assert code == 1
    assert "expires_at" in err
    assert "Correct the fields" in err
    code, _, err = shell("keys", "show", "missing")
    assert code == 1
    assert "penstock keys list" in err
    code, _, err = shell("tenants", "create", "Mine")
    assert code == 1
    assert "operator" in err


def test_the_tenant_is_asked_for_where_there_are_several(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    sign_in(shell, people, "operator")
    code, _, err = shell("keys", "list")
    assert code == 1
    assert "--tenant" in err
    assert shell("keys", "create", "k", "--tenant", "other")[0] == 0
    shell.monkeypatch.setenv("PENSTOCK_TENANT", "other")
    assert [row["name"] for row in shell.json("keys", "list")] == ["k"]
    made = shell.json("tenants", "create", "New Co")
    assert shell.json("tenants", "set", "new-co", "--is-active", "no")["is_active"] is False
    assert Tenant.objects.get(pk=made["id"]).is_active is False
    assert len(shell.json("tenants", "list", "--limit", "2")) == 2


def test_anothers_tenant_does_not_exist(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    sign_in(shell, people)
    code, _, err = shell("keys", "list", "--tenant", "other")
    assert code == 1
    assert "no such tenant" in err


def test_an_installation_that_is_not_there(shell: Shell) -> None:
    shell.monkeypatch.setenv("PENSTOCK_URL", "http://127.0.0.1:9")
    shell.monkeypatch.setenv("PENSTOCK_TOKEN", "pst_a_b")
    code, _, err = shell("tenants", "list")
    assert code == 1
    assert "does not answer" in err
    assert "Traceback" not in err


def test_what_others_wrote_does_not_steer_the_terminal(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    tenant = Tenant.objects.get(slug="acme")
    Tenant.objects.filter(pk=tenant.pk).update(name="Evil\x1b[2J\u202e")
    sign_in(shell, people)
    _, out, _ = shell("tenants", "list")
    assert "\x1b" not in out
    assert "\u202e" not in out


def test_every_noun_lists_what_the_installation_has(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    sign_in(shell, people, "operator")
    deployment = factories.deployment()
    factories.replica(deployment, host=factories.host())
    shell.monkeypatch.setenv("PENSTOCK_TENANT", "acme")
    for resource in RESOURCES:
        code, out, err = shell(resource.noun, "list")
        assert code == 0, (resource.noun, err)
        assert out or resource.nothing in err
        rows = shell.json(resource.noun, "list", "--limit", "3")
        for name in resource.columns if rows else ():
            part = name.partition(".")[0]
            assert part in rows[0], f"{resource.noun} has no field {part}"
        if rows and resource.has_rows:
            assert shell.json(resource.noun, "show", rows[0]["id"])["id"] == rows[0]["id"]


def test_limits_are_set_again_and_removed(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    sign_in(shell, people)
    for value in ("100", "200"):
        assert shell("limits", "set", "tokens_per_min", value)[0] == 0
    assert shell("limits", "set", "concurrency", "4", "--model", "m")[0] == 0
    assert {(row["kind"], row["value"]) for row in shell.json("limits", "list")} == {
        ("tokens_per_min", 200),
        ("concurrency", 4),
    }
    assert shell("limits", "remove", "concurrency")[0] == 1, "that of all models together is not set"
    assert shell("limits", "remove", "concurrency", "--model", "m")[0] == 0
    assert shell("limits", "remove", "tokens_per_min")[0] == 0
    assert shell.json("limits", "list") == []


def test_every_kind_of_limit_is_set_for_a_key_and_a_member(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    sign_in(shell, people)
    shell.json("keys", "create", "ci")
    for place in (("--key", "ci"), ("--member", "owner@example.org"), ()):
        for number, kind in enumerate(KINDS, start=1):
            assert shell("limits", "set", kind, str(number), *place)[0] == 0
            assert shell("limits", "set", kind, str(10 + number), "--model", "m", *place)[0] == 0
        rows = {(row["kind"], row["model"]): row["value"] for row in shell.json("limits", "list", *place)}
        assert rows == {
            (kind, model): number + (10 if model else 0)
            for number, kind in enumerate(KINDS, start=1)
            for model in ("", "m")
        }
        assert shell("limits", "remove", KINDS[0], *place)[0] == 0
        budget = next(row for row in shell.json("limits", "list", *place) if row["kind"] == "money_per_day")["budget"]
        assert budget["parts"][0]["remaining"] == 7.0
    assert "no keys called 'x'" in shell("limits", "set", "concurrency", "1", "--key", "x")[2]
    assert shell("limits", "list", "--key", "ci", "--member", "owner@example.org")[0] == 2


def test_the_operators_limit_is_seen_and_not_changed_by_the_tenant(
    shell: Shell, people: dict[str, tuple[User, str]]
) -> None:
    sign_in(shell, people, "operator")
    assert shell("limits", "set", "concurrency", "10", "--tenant", "acme")[0] == 0
    sign_in(shell, people, "owner")
    code, out, _ = shell("limits", "set", "concurrency", "50")
    assert code == 0
    assert re.search(r"is in force +no\n", out)
    assert re.search(r"value in force +10\n", out), "what holds is said"
    table = shell("limits", "list")[1].splitlines()
    assert table[0].split()[:7] == ["KIND", "MODEL", "VALUE", "SET", "BY", "IS", "IN"]
    assert [row.split()[1:4] for row in table[1:]] == [["10", "operator", "yes"], ["50", "tenant", "no"]]
    code, _, err = shell("limits", "remove", "concurrency", "--set-by", "operator")
    assert code == 1
    assert "set by the operator" in err
    assert "Ask an operator of the platform" in err
    assert shell("limits", "remove", "concurrency")[0] == 0
    assert [row["set_by"] for row in shell.json("limits", "list", "--set-by", "operator")] == ["operator"]
    assert shell("limits", "remove", "concurrency")[0] == 1


def test_an_operator_removes_the_tenants_limit_as_the_command_line_is_told(
    shell: Shell, people: dict[str, tuple[User, str]]
) -> None:
    sign_in(shell, people, "owner")
    assert shell("limits", "set", "tokens_per_min", "50")[0] == 0
    sign_in(shell, people, "operator")
    code, _, err = shell("limits", "remove", "tokens_per_min", "--tenant", "acme")
    assert code == 1
    assert "Only the tenant's limit is set." in err
    words = re.search(r"(--set-by \w+) on the command line", err)
    assert words is not None, err
    assert shell("limits", "remove", "tokens_per_min", "--tenant", "acme", *words[1].split())[0] == 0


def test_people_are_invited_and_let_in_by_links(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    sign_in(shell, people, "operator")
    _, link, _ = shell("invitations", "create", "new@example.org", "--role", "viewer", "--tenant", "acme")
    assert link.startswith(shell.url)
    assert shell("invitations", "revoke", "new@example.org", "--tenant", "acme", "--yes")[0] == 0
    assert shell("users", "create", "person@example.org", "--name", "A Person")[0] == 0
    _, link, _ = shell("users", "sign-in-link", "person@example.org")
    assert "/sign-in/link/" in link
    assert shell.json("users", "deactivate", "person@example.org")["is_active"] is False


def test_from_a_model_to_a_deployment(shell: Shell, people: dict[str, tuple[User, str]]) -> None:
    sign_in(shell, people, "operator")
    hardware = factories.hardware()
    shell("models", "create", "Tiny", "--artifact-kind", "tiny")
    assert shell("pools", "create", "tiny", "--hardware-type", hardware.slug, "--is-public", "yes")[0] == 0
    soon = timezone.now() + datetime.timedelta(days=1)
    profile_add(
        pool=Pool.objects.get(slug="tiny"), hardware_type=hardware, profile=PRICE, effective_from=soon, actor="a test"
    )
    assert shell("pools", "withdraw-price", "tiny", "--version", "2")[0] == 0
    prices = shell.json("pools", "prices", "tiny")
    assert [(row["version"], row["withdrawn_at"] is None) for row in prices] == [(2, False), (1, True)]
    assert shell.json("pools", "restore-price", "tiny", "--version", "2")["withdrawn_at"] is None
    code, _, err = shell("pools", "withdraw-price", "tiny", "--version", "1")
    assert code == 1
    assert "Version 1 is in force since" in err
    code, _, err = shell("deployments", "create", "chat", "--pool", "tiny", "--runtime", "simulated")
    assert code == 0, err
    changed = shell.json("deployments", "set", "chat", "--max-replicas", "3", "--pinned-replicas", "2")
    assert (changed["max_replicas"], changed["pinned_replicas"], changed["desired_replicas"]) == (3, 2, 2)
    assert shell.json("deployments", "set", "chat", "--pinned-replicas", "none")["pinned_replicas"] is None
    assert shell.json("deployments", "revise", "chat", "--target-concurrency", "8")["number"] == 2
    assert shell.json("deployments", "disable", "chat")["is_enabled"] is False
