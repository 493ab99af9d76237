"""Whether the console can serve, as load balancers and container runtimes ask it."""

from __future__ import annotations

import pytest
import redis
from django.test import AsyncClient, Client


def test_health_is_good_when_database_and_state_answer(client: Client, state: redis.Redis, db: None) -> None:
    answer = client.get("/healthz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "database": "ok", "state": "ok"}


def test_health_is_told_by_whatever_name_a_probe_asks(client: Client, state: redis.Redis, db: None) -> None:
    for name in ("10.0.0.7:8000", "web", "[fd00::7]"):
        assert client.get("/healthz", headers={"host": name}).status_code == 200
        assert client.get("/sign-in/", headers={"host": name}).status_code == 400, "pages are not"
    assert client.post("/healthz").status_code == 405


@pytest.mark.django_db(transaction=True)
async def test_a_server_of_many_requests_at_once_tells_it_too(async_client: AsyncClient, state: redis.Redis) -> None:
    answer = await async_client.get("/healthz", headers={"host": "10.0.0.7:8000"})
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    assert answer.headers["X-Request-ID"]
    assert (await async_client.get("/sign-in/", headers={"host": "10.0.0.7:8000"})).status_code == 400


def test_health_names_what_does_not_answer(client: Client, no_state: None, db: None) -> None:
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["state"] == "does not answer"
    assert answer.json()["database"] == "ok"
