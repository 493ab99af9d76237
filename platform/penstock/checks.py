"""System checks: settings that would lose data or give secrets away are refused before anything is served."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured

from penstock.roles import is_loopback
from penstock.secrets import is_placeholder, load_secrets


@register("penstock")
def check_databases(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """SQLite must take its write lock first, and views must not run inside one long transaction."""
    found: list[CheckMessage] = []
    for alias, database in settings.DATABASES.items():
        if database.get("ATOMIC_REQUESTS"):
            found.append(
                Error(
                    f"The database {alias!r} has ATOMIC_REQUESTS on.",
                    hint="Each page would hold a transaction; services open their own. Remove the setting.",
                    id="penstock.E002",
                )
            )
        if not str(database["ENGINE"]).endswith("sqlite3"):
            continue
        options = database.get("OPTIONS", {})
        if str(options.get("transaction_mode", "")).upper() != "IMMEDIATE":
            found.append(
                Error(
                    f"The SQLite database {alias!r} does not open transactions with IMMEDIATE.",
                    hint="Without it a transaction that reads and then writes fails with 'database is locked'. "
                    "Use penstock.databases.SQLITE_OPTIONS, or PostgreSQL by DATABASE_URL.",
                    id="penstock.E001",
                )
            )
    return found


@register("penstock", deploy=True)
def check_secrets(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Before the first ``penstock up`` there are placeholders, which must not sign anything."""
    if not is_placeholder(load_secrets(settings.DATA)):
        return []
    return [
        Error(
            f"The installation in {settings.DATA} has no secrets yet.",
            hint="Run `penstock setup` (or `penstock up`) once with the same PENSTOCK_DATA, or set PENSTOCK_SECRET_KEY "
            "and PENSTOCK_KEY_PEPPERS.",
            id="penstock.E003",
        )
    ]


@register("penstock", deploy=True)
def check_debug(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Debug pages show settings and source: never beyond this machine."""
    if not settings.DEBUG:
        return []
    if is_loopback(settings.PENSTOCK_WEB_HOST):
        return [Warning("PENSTOCK_DEBUG is on.", hint="Turn it off for anything but development.", id="penstock.W001")]
    return [
        Error(
            f"PENSTOCK_DEBUG is on while the web role listens on {settings.PENSTOCK_WEB_HOST}.",
            hint="Turn PENSTOCK_DEBUG off, or listen on 127.0.0.1.",
            id="penstock.E004",
        )
    ]


def refuse_unsafe_settings() -> None:
    """What a serving process calls at its start. Raises ImproperlyConfigured with every error and its hint."""
    messages = [*check_databases(None), *check_secrets(None), *check_debug(None)]
    errors = [f"{message.msg} {message.hint}" for message in messages if isinstance(message, Error)]
    if errors:
        raise ImproperlyConfigured(" ".join(errors))
