"""The OpenAPI document: it is the committed one, what it says is true, and no operation in it lacks its wall."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from penstock.testing import ONLY_DATABASE
from tenants.api.base import ApiViewSet
from tests.api.conftest import ROLES, Api, World
from tests.api.operations import PREFIX, Operation, document, filled, furnish, operations

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        ignored_auth,
        response_schema_conformance,
        status_code_conformance,
    )

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.yaml"
RENEW = ".venv/bin/python manage.py spectacular --file docs/openapi.yaml"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    ignored_auth,
]
EXAMPLES = 4 if os.environ.get(ONLY_DATABASE) else 10

# ------------------------------------------------------------------------------------------------ who may do what
OPERATORS = {
    "accelerators",
    "audit",
    "calibrations",
    "decisions",
    "deployments",
    "enrolment-tokens",
    "guarantees",
    "hardware-types",
    "hosts",
    "incidents",
    "invoices",
    "models",
    "pools",
    "provider-credentials",
    "replicas",
    "reservations",
    "usage",
    "users",
}
"""First parts of addresses that are for operators alone."""
ANYBODY = {Operation("/tenants", "get")}
"""Everybody who has signed in: each is told of their own."""
PEOPLE = {"me"}
"""First parts of addresses at which everybody finds themselves."""
HOSTS = {"enrol"}
"""First parts of addresses with a door of their own: no caller of the others comes in."""
OPERATORS_TOO = {Operation("/tenants", "post")}
"""Operations of operators at addresses that are not for them alone."""


def is_of_operators(operation: Operation) -> bool:
    return operation.path.split("/")[1] in OPERATORS or operation in OPERATORS_TOO


def is_known(operation: Operation) -> bool:
    kinds = (
        is_of_operators(operation),
        operation.is_of_a_tenant,
        operation in ANYBODY,
        operation.path.split("/")[1] in PEOPLE | HOSTS,
    )
    return sum(kinds) == 1 or (operation.is_of_a_tenant and operation in OPERATORS_TOO)


@pytest.fixture
def furnished(world: World, settings: Any) -> World:
    settings.PENSTOCK_API_RATE = "1000000/min"
    furnish(world)
    return world


def undone(call: Callable[[], Any]) -> Any:
    """What ``call`` gives; what it changed is as before."""
    with transaction.atomic():
        try:
            return call()
        finally:
            transaction.set_rollback(True)


# ------------------------------------------------------------------------------------------------ the document
def loaded(text: bytes) -> Any:
    """By libyaml, which takes a tenth of the time that Python takes for so long a document."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def test_the_committed_document_is_the_served_one(db: None) -> None:
    served = APIClient().get("/api/schema")
    assert served.status_code == 200
    same = loaded(served.content) == loaded(COMMITTED.read_bytes())
    assert same, f"The API has changed: renew the document with '{RENEW}'."
    assert loaded(served.content) == document()


def test_the_document_is_openapi_3_1_and_clean(tmp_path: Path) -> None:
    call_command("spectacular", "--fail-on-warn", "--validate", file=str(tmp_path / "openapi.yaml"))
    assert document()["openapi"].startswith("3.1.")


def test_every_operation_is_described_in_words_of_its_own() -> None:
    made = document()
    of_classes = {inspect.getdoc(view) for view in views_below(ApiViewSet)}
    for operation in operations(made):
        text = made["paths"][PREFIX + operation.path][operation.method].get("description", "")
        assert text, f"{operation} has no description: give its method a docstring."
        assert text not in of_classes, f"{operation} shows the docstring of its class: give its method one."


def views_below(view: type[Any]) -> Iterator[type[Any]]:
    yield view
    for derived in view.__subclasses__():
        yield from views_below(derived)


# ------------------------------------------------------------------------------------------------ the walls
def test_every_operation_is_in_a_list() -> None:
    unknown = [str(operation) for operation in operations(document()) if not is_known(operation)]
    assert not unknown, "Say in this file who may use them, then test it."


def asked(client: Api, operation: Operation, path: str) -> int:
    status: int = undone(lambda: getattr(client, operation.method)(path, {}, format="json").status_code)
    return status


def test_nobody_gets_anywhere(furnished: World) -> None:
    operator = furnished.by("operator")
    for operation in operations(document()):
        assert asked(furnished.by("nobody"), operation, filled(operator, operation.path)) == 401, operation


def test_nobody_comes_in_where_hosts_do(furnished: World) -> None:
    for operation in operations(document()):
        if operation.path.split("/")[1] in HOSTS:
            for client in (furnished.by("operator"), furnished.by("owner"), furnished.by_key("manage")):
                assert asked(client, operation, operation.path) == 401, operation


def test_what_is_a_tenants_does_not_exist_for_others(furnished: World) -> None:
    operator = furnished.by("operator")
    of_tenants = [operation for operation in operations(document()) if operation.is_of_a_tenant]
    assert len(of_tenants) > 10
    for operation in of_tenants:
        path = filled(operator, operation.path)
        assert asked(furnished.by("outsider"), operation, path) == 404, operation
        foreign = filled(operator, operation.path, "other")
        through = path.replace("/tenants/acme", "/tenants/other")
        # Nor is it reached through a tenant of one's own, unless that has it, too.
        if through != foreign:
            assert asked(furnished.by("outsider"), operation, through) in (400, 403, 404), through
        for client in (furnished.by_key("manage"), furnished.by_key("usage")):
            assert asked(client, operation, foreign) == 404, operation


def test_what_is_the_operators_is_not_for_members_and_keys(furnished: World) -> None:
    operator = furnished.by("operator")
    others = [*(furnished.by(role) for role in ROLES), *(furnished.by_key(scope) for scope in furnished.keys)]
    for operation in operations(document()):
        if is_of_operators(operation):
            path = filled(operator, operation.path)
            for client in (*others, furnished.by("outsider")):
                assert asked(client, operation, path) in (403, 404), operation


# ------------------------------------------------------------------------------------------------ what it says is true
def tried(schema: Any, operation: Operation, path: str, token: str) -> Iterator[str]:
    """Failures of requests that are made up from the document, right ones and wrong ones."""
    of = schema[PREFIX + operation.path][operation.method.upper()]
    modes = st.sampled_from(list(schemathesis.GenerationMode))
    cases = modes.flatmap(lambda mode: of.as_strategy(generation_mode=mode))
    names = operation.path.split("/")
    known = {name[1:-1]: value for name, value in zip(names, path.split("/"), strict=True) if name.startswith("{")}

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, is_there=st.booleans())
    def ask(case: Any, is_there: bool) -> None:
        if is_there:
            case.path_parameters = {**case.path_parameters, **known}
        headers = {"Authorization": f"Bearer {token}"}
        undone(lambda: case.call_and_validate(headers=headers, checks=CHECKS))

    try:
        ask()
    except BaseExceptionGroup as group:
        yield f"{operation}: {[str(error) for error in group.exceptions]}"
    except Exception as error:
        yield f"{operation}: {error}"


@contextmanager
def connection_kept() -> Iterator[None]:
    """A request that comes over WSGI closes the database's connection, and with it the test's transaction.

    Django's test client does the same for each of its own requests: there must be none of them meanwhile.
    """
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("methods", [("get",), ("post",), ("put", "patch", "delete")], ids="-".join)
def test_answers_are_what_the_document_says(furnished: World, methods: tuple[str, ...]) -> None:
    operator, token = furnished.by("operator"), furnished.tokens["operator"]
    chosen = [operation for operation in operations(document()) if operation.method in methods]
    paths = {operation: filled(operator, operation.path) for operation in chosen}
    schema = schemathesis.openapi.from_dict(document())
    schema.app = get_wsgi_application()
    with connection_kept():
        failures = [failure for operation, path in paths.items() for failure in tried(schema, operation, path, token)]
    assert not failures, "\n\n".join(failures)
