"""A real browser on the real web role. The fixtures ``site`` and ``page`` of ``conftest`` are made of these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from tests.migrated import NAME, migrated
from tests.web.screens import CHROMIUM, FLAGS, served, state_of

EMAILS = {"operator": "operator@penstock.example", "owner": "owner@northwind.example"}
EXPECTED = ("net::ERR_FAILED", "htmx:error: Failed to fetch")
"""What a browser says when the network is down, as one test makes it."""
PASSWORD = "a-long-enough-password"
SEED = """
import json, sys, django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
import redis
from tests.web.seed import seed
from tenants.services.links import sign_in_link_create
from tests.web.everywhere import things_of
with redis.Redis.from_url(sys.argv[1]) as client:
    seeded = seed(client, hours=2)
links = {name: sign_in_link_create(user=user, actor=user) for name, user in
         (("operator", seeded.operator), ("owner", seeded.owner))}
print(json.dumps({"links": links, "chat": str(seeded.chat.pk), "things": things_of(seeded)}))
"""


@dataclass
class Site:
    url: str
    state: str
    links: dict[str, str]
    chat: str
    things: dict[str, str]
    """What stands for each parameter of the pages' addresses."""


@contextmanager
def seeded_site(data: Path, **more: str) -> Iterator[Site]:
    """A web role of its own, with database and state of its own, in the folder ``data``; ``more`` environment."""
    environment = {
        "PENSTOCK_DATA": str(data),
        "PENSTOCK_SECRET_KEY": "x" * 50,
        "DJANGO_SETTINGS_MODULE": "penstock.settings",
    } | more
    migrated(data / NAME)
    with pytest.MonkeyPatch.context() as patch, state_of(data) as state:
        for name, value in environment.items():
            patch.setenv(name, value)
        root = Path(__file__).resolve().parents[2]
        made = subprocess.run(
            [sys.executable, "-c", SEED, state], cwd=root, env=os.environ, capture_output=True, text=True, timeout=90
        )
        assert made.returncode == 0, made.stderr
        facts = json.loads(made.stdout.splitlines()[-1])
        with served(data) as url:
            yield Site(url=url, state=state, **facts)


@contextmanager
def strict_browser() -> Iterator[Page]:
    """A fresh browser that fails the test for any console error (a policy violation is one) or page error."""
    faults: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in EXPECTED):
            faults.append(message.text)

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        context = browser.new_context(
            viewport={"width": 1440, "height": 900}, locale="en-GB", timezone_id="Asia/Kolkata"
        )
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: faults.append(str(error)))
        yield page
        browser.close()
    assert faults == []


def sign_in(page: Page, site: Site, who: str) -> None:
    """By password: a link works once, and several tests sign in."""
    page.goto(f"{site.url}/sign-in/")
    page.get_by_label("E-mail address").fill(EMAILS[who])
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
