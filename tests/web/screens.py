"""Screenshots of every page from a seeded platform: ``python -m tests.web.screens FOLDER``.

Makes a database and a state of its own in a temporary folder, serves the pages as production does (uvicorn), and
photographs them at 1440 and 390 px, light and dark, with figures and empty. ``console.png`` and ``tenant.png`` are
those of ``docs/screenshots``. Needs Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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
    ("hosts", "operator", "/console/hosts/"),
    ("host", "operator", "/console/hosts/gpu-02/"),
    ("host-add", "operator", "/console/hosts/new"),
    ("host-secret", "operator", "/console/hosts/gpu-02/secret"),
    ("deployments", "operator", "/console/deployments/"),
    ("deployment", "operator", "/console/deployments/{chat}/?ended=1"),
    ("deployment-events", "operator", "/console/deployments/{chat}/?tab=events"),
    ("deployment-revisions", "operator", "/console/deployments/{chat}/?tab=revisions"),
    ("deployment-logs", "operator", "/console/deployments/{chat}/?tab=logs"),
    ("deployment-settings", "operator", "/console/deployments/{chat}/?tab=settings"),
    ("deployment-new", "operator", "/console/deployments/new?model=Qwen/Qwen3-8B"),
    ("deployment-stop", "operator", "/console/deployments/{chat}/stop"),
    ("replica", "operator", "/console/replicas/{failed}/"),
    ("operator-tenants", "operator", "/console/tenants/"),
    ("operator-tenant", "operator", "/console/tenants/northwind/"),
    ("audit", "operator", "/console/audit/"),
    ("tokens", "operator", "/tokens"),
    ("style-guide", "operator", "/console/style-guide/"),
    ("not-found", None, "/nothing-here"),
)
README_SHOTS = (
    ("console.png", "operator", "/console/?range=24h&pool=chat-32b", "light"),
    ("tenant.png", "owner", "/t/northwind/?range=24h", "dark"),
)
TENANT_SHOTS = (
    ("quick-start", "owner", "/t/northwind/quick-start"),
    ("playground", "owner", "/t/northwind/playground/"),
    ("keys", "owner", "/t/northwind/keys/"),
    ("key", "owner", "/t/northwind/keys/{key}/"),
    ("key-of-viewer", "viewer", "/t/northwind/keys/{key}/"),
    ("key-new", "owner", "/t/northwind/keys/new"),
    ("usage", "owner", "/t/northwind/usage/?range=24h"),
    ("usage-tokens", "owner", "/t/northwind/usage/?range=24h&metric=tokens"),
    ("usage-requests", "owner", "/t/northwind/usage/?range=24h&metric=requests"),
    ("usage-request", "owner", "/t/northwind/usage/{request}"),
    ("members", "owner", "/t/northwind/members/"),
    ("limits", "owner", "/t/northwind/limits/"),
    ("tenant-audit", "owner", "/t/northwind/audit/"),
)
EMPTY_TENANT_SHOTS = tuple(
    (f"{name}-empty", "owner", f"/t/fresh/{path}")
    for name, path in (
        ("quick-start", "quick-start"),
        ("playground", "playground/"),
        ("keys", "keys/"),
        ("usage", "usage/"),
        ("members", "members/"),
        ("limits", "limits/"),
    )
)
EMPTY_SHOTS = (
    ("console-empty", "operator", "/console/"),
    ("hosts-empty", "operator", "/console/hosts/"),
    ("deployments-empty", "operator", "/console/deployments/"),
    ("deployment-new-empty", "operator", "/console/deployments/new"),
    ("operator-tenant-empty", "operator", "/console/tenants/fresh/"),
    ("operator-tenant-new", "operator", "/console/tenants/new"),
    ("audit-empty", "operator", "/console/audit/"),
    ("tenant-empty", "owner", "/t/fresh/"),
    ("tenants-empty", "lonely", "/tenants/"),
    ("tokens-empty", "owner", "/tokens"),
)

Shots = tuple[tuple[str, str | None, str], ...]
"""Name, who is signed in, and path of each picture."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(data: Path) -> Iterator[str]:
    """The web role on a free port; its base URL."""
    from penstock.secrets import ensure_secrets

    ensure_secrets(data)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "penstock.asgi:application"]
    options = ["--lifespan", "on", "--port", str(port), "--log-level", "warning"]
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


def photograph(base: str, sessions: dict[str, str], shots: Shots, folder: Path) -> None:
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
    parser.add_argument("--only", default="", metavar="REGEX", help="pictures to take (all); readme: docs/screenshots")
    arguments = parser.parse_args()
    folder, only = arguments.folder.resolve(), re.compile(arguments.only)
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
            shots: Shots = tuple(shot for shot in (*EMPTY_SHOTS, *EMPTY_TENANT_SHOTS) if only.search(shot[0]))
            photograph(base, empty, shots, folder)
            tenant.delete()
            operator.delete()
            with redis.Redis.from_url(url) as client:
                seeded = seed(client)
            people = {"operator": seeded.operator, "owner": seeded.owner, "viewer": seeded.viewer}
            full = {who: session_for(user.email) for who, user in people.items()}
            acted(seeded)
            with going_on(url, seeded):
                places = {"chat": seeded.chat.pk, "failed": seeded.failed.pk, **things_of(seeded)}
                shots = tuple(shot for shot in (*SHOTS, *TENANT_SHOTS) if only.search(shot[0]))
                photograph(base, full, tuple((n, who, path.format(**places)) for n, who, path in shots), folder)
                if only.search("readme"):
                    for_the_readme(base, full, folder)


def acted(seeded: Seeded) -> None:
    """A few acts of the operator, for the audit log to show."""
    from capacity.models import Host
    from capacity.services import host_cordon, host_labels_set, host_uncordon
    from serving.services import deployment_update, revision_create
    from tenants.services import invitation_create, limit_set

    operator, host = seeded.operator, Host.objects.get(name="gpu-02")
    invitation_create(tenant=seeded.northwind, email="carla@northwind.example", actor=operator)
    limit_set(tenant=seeded.northwind, kind="requests_per_min", value=6000, actor=operator)
    limit_set(tenant=seeded.northwind, kind="requests_per_min", value=9000, actor=operator)
    host_cordon(host=host, actor=operator)
    host_uncordon(host=host, actor=operator)
    host_labels_set(host=host, labels={"zone": "b", "rack": "r12"}, actor=operator)
    deployment_update(deployment=seeded.chat, max_replicas=6, min_replicas=2, cold_start_s=94.0, actor=operator)
    current = seeded.chat.revisions.get()
    options = {"max_model_len": 16384, "host_labels": {"zone": "b"}}
    revision_create(deployment=seeded.chat, runtime=current.runtime, options=options, actor=operator)


def things_of(seeded: Seeded) -> dict[str, str]:
    """What stands for itself in the paths of pictures."""
    from capacity.models import UsageRecord
    from tenants.models import ApiKey

    key = ApiKey.objects.get(tenant=seeded.northwind, name="sandbox")
    record = UsageRecord.objects.filter(tenant_id=seeded.northwind.pk, outcome="completed").first()
    assert record is not None
    return {"key": str(key.pk), "request": str(record.pk)}


@contextmanager
def going_on(url: str, seeded: Seeded) -> Iterator[None]:
    """Samples and host reports each second, as loops and agents would leave them, while pictures are taken."""
    from django.db import connection
    from django.utils import timezone

    from capacity.models import Host
    from tests.web.traffic import MEAN_MU, offered, settle

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
