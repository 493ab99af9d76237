"""The operators' pages by keyboard, by screen reader, empty, and with the state down."""

from __future__ import annotations

import re

import pytest
import redis
from django.test import Client

from tenants.models import User
from tests.web.acting import text
from tests.web.seed import Seeded


@pytest.mark.parametrize(
    "path",
    [
        "/console/hosts/",
        "/console/hosts/gpu-01/",
        "/console/hosts/new",
        "/console/deployments/",
        "/console/deployments/{chat}/",
        "/console/deployments/{chat}/?tab=settings",
        "/console/deployments/{chat}/?tab=events",
        "/console/deployments/new?model=tiny",
        "/console/tenants/northwind/",
        "/console/audit/",
    ],
)
def test_pages_can_be_used_by_keyboard_and_screen_reader(as_operator: Client, platform: Seeded, path: str) -> None:
    body = text(as_operator.get(path.format(chat=platform.chat.pk)))
    assert body.count("<h1") == 1
    assert 'aria-current="page"' in body
    identifiers = re.findall(r'\sid="([^"]+)"', body)
    assert len(identifiers) == len(set(identifiers))
    for name in re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', body):
        assert set(name.split()) <= set(identifiers), name
    for button in re.findall(r"<button[^>]*>.*?</button>", body, re.S):
        assert "aria-label=" in button or re.sub(r"<[^>]+>", "", button).strip(), button
    labels = set(re.findall(r'<label[^>]* for="([^"]+)"', body))
    for inside in re.findall(r"<(?:input|select|textarea)[^>]*>", body):
        if 'type="hidden"' in inside:
            continue
        found = re.search(r'\sid="([^"]+)"', inside)
        assert found is not None, inside
        assert found[1] in labels, inside


def test_empty_lists_say_what_comes_next(client: Client, state: redis.Redis, db: None) -> None:
    client.force_login(User.objects.create_user("op@penstock.example", is_operator=True))
    for path, words, way in (
        ("/console/hosts/", "No host yet", "/console/hosts/new"),
        ("/console/deployments/", "Nothing is deployed yet", "/console/deployments/new"),
        ("/console/tenants/", "No tenant yet", "/console/tenants/new"),
        ("/console/audit/", "Nothing was done yet", "/console/"),
    ):
        page = text(client.get(path))
        assert words in page
        assert way in page


def test_the_pages_are_useful_with_the_state_down(as_operator: Client, platform: Seeded, no_state: None) -> None:
    for path in ("/console/deployments/", f"/console/deployments/{platform.chat.pk}/"):
        answer = as_operator.get(path)
        assert answer.status_code == 200
        assert "The shared state does not answer" in text(answer)
    assert as_operator.get("/console/hosts/gpu-01/").status_code == 200
    assert "The shared state does not answer" in text(as_operator.get(f"/console/replicas/{platform.failed.pk}/"))
