"""Screenshots of every page from a seeded platform: ``python -m tests.web.screens FOLDER``.

Makes a database and a state of its own in a temporary folder, serves the pages as production does (uvicorn), and
photographs them at 1440 and 390 px, light and dark, with figures and empty. ``console.png`` and ``tenant.png`` are
those of ``docs/screenshots``. Needs Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.request import urlopen

import redis
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from tests.web.seed import Seeded

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SHOTS = (
    ("sign-in", None, "/sign-in/"),
    ("console", "operator", "/console/?range=1h"),
    ("console-pool", "operator", "/console/?range=24h&pool=chat-32b"),
    ("tenant", "owner", "/t/northwind/?range=24h"),
    ("tenants", "operator", "/tenants/"),
    ("tokens", "operator", "/tokens"),
    ("style-guide", "operator", "/console/style-guide/"),
    ("not-found", None, "/nothing-here"),
)
README_SHOTS = (
    ("console.png", "operator", "/console/?range=24h&pool=chat-32b", "light"),
    ("tenant.png", "owner", "/t/northwind/?range=24h", "dark"),
)
EMPTY_SHOTS = (
    ("console-empty", "operator", "/console/"),
    ("tenant-empty", "owner", "/t/fresh/"),
    ("tenants-empty", "lonely", "/tenants/"),
    ("tokens-empty", "owner", "/tokens"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(data: Path) -> Iterator[str]:
    """The web role on a free port; its base URL."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "django.core.asgi:get_asgi_application"]
    options = ["--lifespan", "off", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen([*command, *options], env={**os.environ, "PENSTOCK_DATA": str(data)})
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urlopen(f"{url}/sign-in/", timeout=2).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def state_of(data: Path) -> Iterator[str]:
    """A Valkey of its own, as production starts it; its URL."""
    from penstock import bundled_state

    process = subprocess.Popen(bundled_state.command(data), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"unix://{bundled_state.socket_path(data)}"
    try:
        bundled_state.wait_ready(url, 10)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def session_for(email: str) -> str:
    """A signed-in session's cookie value."""
    from django.contrib.auth import login
    from django.contrib.sessions.backends.db import SessionStore
    from django.http import HttpRequest

    from tenants.models import User

    request = HttpRequest()
    request.session = SessionStore()
    login(request, User.objects.get(email=email), backend="django.contrib.auth.backends.ModelBackend")
    request.session.save()
    return str(request.session.session_key)


def for_the_readme(base: str, sessions: dict[str, str], folder: Path) -> None:
    """The two pictures the README shows: what a screen of 1440 by 1000 px holds."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for name, who, path, scheme in README_SHOTS:
            context = browser.new_context(
                viewport={"width": 1440, "height": 1000},
                color_scheme=scheme,
                locale="en-GB",
                timezone_id="Europe/Berlin",
            )
            context.add_cookies([{"name": "sessionid", "value": sessions[who], "url": base}])
            page = context.new_page()
            page.goto(base + path)
            page.wait_for_selector("canvas")
            page.wait_for_timeout(500)
            page.screenshot(path=str(folder / name))
            context.close()
        browser.close()


def photograph(
    base: str, sessions: dict[str, str], shots: tuple[tuple[str, str | None, str], ...], folder: Path
) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for width in (1440, 390):
            for scheme in ("light", "dark"):
                for name, who, path in shots:
                    context = browser.new_context(
                        viewport={"width": width, "height": 900},
                        color_scheme=scheme,
                        locale="en-GB",
                        timezone_id="Europe/Berlin",
                    )
                    if who:
                        context.add_cookies([{"name": "sessionid", "value": sessions[who], "url": base}])
                    page = context.new_page()
                    page.on("console", lambda message, name=name: print(name, "console:", message.text))
                    page.goto(base + path)
                    page.wait_for_load_state("load")
                    page.wait_for_timeout(700)
                    page.screenshot(path=str(folder / f"{name}-{width}-{scheme}.png"), full_page=True)
                    context.close()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Screenshots of every page from a seeded platform.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ps") as name:
        data = Path(name)
        os.environ |= {
            "PENSTOCK_DATA": str(data),
            "PENSTOCK_SECRET_KEY": "only-for-pictures",
            "DJANGO_SETTINGS_MODULE": "penstock.settings",
            "PENSTOCK_API_URL": "https://llm.penstock.example/v1",
        }
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        with state_of(data) as url, served(data) as base:
            from tenants.models import Membership, Tenant, User
            from tests.web.seed import PASSWORD, seed

            operator = User.objects.create_user("empty@penstock.example", PASSWORD, is_operator=True)
            fresh = User.objects.create_user("fresh@penstock.example", PASSWORD)
            User.objects.create_user("lonely@penstock.example", PASSWORD)
            tenant = Tenant.objects.create(slug="fresh", name="Fresh Start")
            Membership.objects.create(tenant=tenant, user=fresh, role="owner")
            sessions = {who: session_for(f"{who}@penstock.example") for who in ("empty", "fresh", "lonely")}
            empty = {"operator": sessions["empty"], "owner": sessions["fresh"], "lonely": sessions["lonely"]}
            photograph(base, empty, EMPTY_SHOTS, folder)
            tenant.delete()
            operator.delete()
            with redis.Redis.from_url(url) as client:
                seeded = seed(client)
            full = {"operator": session_for(seeded.operator.email), "owner": session_for(seeded.owner.email)}
            with going_on(url, seeded):
                photograph(base, full, SHOTS, folder)
                for_the_readme(base, full, folder)


@contextmanager
def going_on(url: str, seeded: Seeded) -> Iterator[None]:
    """Samples and host reports each second, as loops and agents would leave them, while pictures are taken."""
    from django.db import connection
    from django.utils import timezone

    from capacity.models import Host
    from tests.web.seed import MEAN_MU, offered, settle

    over = threading.Event()

    def tick() -> None:
        with redis.Redis.from_url(url) as client:
            while not over.wait(1.0):
                now = timezone.now()
                Host.objects.update(last_report_at=now)
                for deployment in (seeded.chat, seeded.sim):
                    key = f"penstock:ring:deployment:{deployment.pk}"
                    newest = json.loads(cast(bytes, client.lindex(key, 0)))
                    mu = offered(deployment.name, now) / 60
                    passed_s = now.timestamp() - newest["at"]
                    sample = {"at": now.timestamp(), "offered_mu": mu * passed_s, "refused": 0}
                    sample["offered_requests"] = sample["offered_mu"] / MEAN_MU[deployment.name]
                    client.lpush(key, json.dumps({**newest, **sample}))
                settle(now)
        connection.close()

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
