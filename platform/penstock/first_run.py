"""What ``penstock setup`` does to the database: migrate, enrol this host, and on request seed the demo."""

import datetime
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.checks import Error, run_checks
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.urls import reverse

from penstock import demo
from penstock.status import deployment_states
from tenants.models import User
from tenants.services import sign_in_link_create, user_create

ACTOR = "setup"
OPERATOR = "operator@penstock.local"
LINK_VALID = datetime.timedelta(hours=24)


class SetupError(RuntimeError):
    """The installation cannot be prepared; the message says why and what to do."""


def prepare(*, demo_engine: demo.Engine | None, model: str | None, is_host: bool = True) -> dict[str, Any]:
    """Bring the database and this host's enrolment up to date. Safe to repeat.

    ``demo_engine`` (``vllm`` or ``simulated``) seeds the demo on an empty database; None never does. ``is_host``: an
    agent of this machine runs engines. Returns the number of ``migrations`` applied, the ``host``, whether there
    ``is_demo`` data, a fresh ``sign_in_url`` for an operator who has no password yet (else empty), the ``tenants`` made
    now with their keys, and the state of all ``models``. Raises SetupError.
    """
    messages = run_checks(tags=["penstock"], include_deployment_checks=True)
    errors = [f"{message.msg} {message.hint}" for message in messages if isinstance(message, Error)]
    if errors:
        raise SetupError("; ".join(errors))
    try:
        applied = _migrate()
        tenants = _seed(demo_engine, model)
        host = demo.local_host_enrol(settings.DATA).name if is_host else ""
        return {
            "migrations": applied,
            "host": host,
            "is_demo": User.objects.filter(email=demo.OPERATOR).exists(),
            "sign_in_url": _sign_in_url(),
            "tenants": tenants,
            "models": [asdict(state) for state in deployment_states()],
        }
    except DatabaseError as error:
        raise SetupError(f"the database refused: {str(error).strip()}") from error
    except ValidationError as error:
        raise SetupError("; ".join(error.messages)) from error


def _migrate() -> int:
    executor = MigrationExecutor(connection)
    waiting = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    if waiting:
        call_command("migrate", interactive=False, verbosity=0)
    return waiting


def _seed(engine: demo.Engine | None, model: str | None) -> list[dict[str, str]]:
    if engine is not None:
        result = demo.seed_demo(engine=engine, model=model or "")
        return [{"slug": t.slug, "name": t.name, "api_key": t.api_key} for t in result.tenants]
    if not User.objects.exists():
        user_create(email=OPERATOR, name="Operator", is_operator=True, actor=ACTOR)
    return []


def _sign_in_url() -> str:
    """A fresh one-time link for the first operator, as long as they have not set a password."""
    operator = User.objects.filter(is_operator=True, is_active=True).order_by("created_at").first()
    if operator is None or operator.has_usable_password():
        return ""
    token = sign_in_link_create(user=operator, actor=ACTOR, valid_for=LINK_VALID)
    return f"{settings.PENSTOCK_CONSOLE_URL}{reverse('sign-in-link', args=[token])}"
