"""System checks: settings that would lose data or give secrets away are refused before anything is served."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from capacity.policy.enrolment import agent_url_fault
from penstock.roles import is_loopback
from penstock.secrets import load_secrets, missing


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
    unset = missing(load_secrets(settings.DATA))
    if not unset:
        return []
    return [
        Error(
            f"The installation in {settings.DATA} has no secrets yet: {', '.join(unset)}.",
            hint="Run `penstock setup` (or `penstock up`) once with the same PENSTOCK_DATA, or set each of "
            "PENSTOCK_SECRET_KEY, PENSTOCK_KEY_PEPPERS and PENSTOCK_FIELD_KEYS to what the other roles have.",
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


@register("penstock")
def check_agents_state(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """What hosts that enrol themselves are told of the shared state, where they are told anything."""
    url = settings.PENSTOCK_AGENT_REDIS_URL
    fault = agent_url_fault(url, own=settings.REDIS_URL) if url else None
    if fault is None:
        return []
    return [
        Warning(
            fault,
            hint="No host can enrol itself. Give it a user of its own that may see agent:* alone, at an address that "
            "other hosts reach, or leave it out: docs/settings.md.",
            id="penstock.W002",
        )
    ]


def refuse_unsafe_settings(role: str) -> None:
    """What a serving process calls at its start: SystemExit with every error and its hint, and no traceback."""
    messages = [*check_databases(None), *check_secrets(None), *check_debug(None)]
    errors = [f"{message.msg} {message.hint}" for message in messages if isinstance(message, Error)]
    if errors:
        raise SystemExit(f"{role}: {' '.join(errors)}")
