"""Settings that are not safe are refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.checks import run_checks

from penstock import checks
from penstock.checks import refuse_unsafe_settings
from penstock.databases import database_settings
from penstock.secrets import VARIABLES, ensure_secrets


class Settings(SimpleNamespace):
    """The settings that the checks look at."""

    def use(self, **changes: Any) -> None:
        self.DATABASES = {"default": {**database_settings("", self.DATA), **changes}}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    made = Settings(
        DATA=tmp_path,
        DEBUG=False,
        PENSTOCK_WEB_HOST="127.0.0.1",
        REDIS_URL="redis://control:plane@state.example.org/0",
        PENSTOCK_AGENT_REDIS_URL="",
    )
    made.use()
    monkeypatch.setattr(checks, "settings", made)
    return made


@pytest.fixture
def installed(empty: Settings) -> Settings:
    ensure_secrets(empty.DATA)
    return empty


def ids() -> set[str | None]:
    return {message.id for message in run_checks(tags=["penstock"], include_deployment_checks=True)}


def test_a_prepared_installation_passes(installed: Settings) -> None:
    assert ids() == set()
    refuse_unsafe_settings("web")


def test_placeholder_secrets_do_not_serve(empty: Settings) -> None:
    assert ids() == {"penstock.E003"}
    with pytest.raises(SystemExit, match=r"^web: .*`penstock setup`"):
        refuse_unsafe_settings("web")


def test_secrets_at_rest_are_not_kept_under_a_public_key(empty: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_SECRET_KEY", "from the environment")
    monkeypatch.setenv("PENSTOCK_KEY_PEPPERS", '{"1": "from the environment"}')
    with pytest.raises(SystemExit, match=r"no secrets yet: PENSTOCK_FIELD_KEYS\. .* PENSTOCK_FIELD_KEYS"):
        refuse_unsafe_settings("loops")
    monkeypatch.setenv("PENSTOCK_FIELD_KEYS", Fernet.generate_key().decode())
    refuse_unsafe_settings("loops")


def test_before_the_set_up_everything_else_can_run(empty: Settings) -> None:
    assert run_checks(tags=["penstock"]) == []


def test_sqlite_without_immediate_is_refused(installed: Settings) -> None:
    installed.use(OPTIONS={"timeout": 20})
    assert ids() == {"penstock.E001"}


def test_requests_inside_one_transaction_are_refused(installed: Settings) -> None:
    installed.use(ATOMIC_REQUESTS=True)
    assert ids() == {"penstock.E002"}


def test_postgresql_needs_no_immediate(installed: Settings) -> None:
    installed.DATABASES = {"default": database_settings("postgres://h/x", installed.DATA)}
    assert ids() == set()


def test_debug_stays_on_this_machine(installed: Settings) -> None:
    installed.DEBUG = True
    assert ids() == {"penstock.W001"}
    refuse_unsafe_settings("web")
    installed.PENSTOCK_WEB_HOST = "0.0.0.0"
    assert ids() == {"penstock.E004"}


def test_the_control_planes_own_login_is_not_for_agents(installed: Settings) -> None:
    installed.PENSTOCK_AGENT_REDIS_URL = "redis://agent:pw@state.example.org/0"
    assert ids() == set()
    installed.PENSTOCK_AGENT_REDIS_URL = installed.REDIS_URL
    assert ids() == {"penstock.W002"}
