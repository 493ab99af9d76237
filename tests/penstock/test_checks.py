"""Settings that are not safe are refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured

from penstock import checks
from penstock.checks import refuse_unsafe_settings
from penstock.databases import database_settings
from penstock.secrets import ensure_secrets


class Settings(SimpleNamespace):
    """The settings that the checks look at."""

    def use(self, **changes: Any) -> None:
        self.DATABASES = {"default": {**database_settings("", self.DATA), **changes}}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("PENSTOCK_SECRET_KEY", "PENSTOCK_KEY_PEPPERS"):
        monkeypatch.delenv(name, raising=False)
    made = Settings(DATA=tmp_path, DEBUG=False, PENSTOCK_WEB_HOST="127.0.0.1")
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
    refuse_unsafe_settings()


def test_placeholder_secrets_do_not_serve(empty: Settings) -> None:
    assert ids() == {"penstock.E003"}
    with pytest.raises(ImproperlyConfigured, match="penstock setup"):
        refuse_unsafe_settings()


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
    refuse_unsafe_settings()
    installed.PENSTOCK_WEB_HOST = "0.0.0.0"
    assert ids() == {"penstock.E004"}
