"""Screenshots of every page from a seeded platform: ``python -m tests.web.screens FOLDER``.

Makes a database and a state of its own in a temporary folder, serves the pages as production does (uvicorn), and
photographs them at 1440, 1024 and 390 px, light and dark, with figures and empty (``shots`` says which). Needs
Chromium. ``--docs`` takes the pictures of ``docs/screenshots`` instead.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.request import urlopen

import redis
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from penstock.cli.test import chromium
from tests.web.shots import DOCUMENTED, EMPTY_SHOTS, SHOTS, Shot

if TYPE_CHECKING:
    from tests.web.seed import Seeded

CHROMIUM = chromium() or "/usr/bin/chromium"
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
WIDTHS = (1440, 1024, 390)
Shots = tuple[Shot, ...]


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
        process.wait(60)


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
        process.wait(60)


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


CHARTS_DRAWN = (
    "[...document.querySelectorAll('.plot-note')].every(note => note.hidden || note.textContent !== 'Loading')"
)


def wait_for_charts(page: Page) -> None:
    """Until every chart has its lines or says why not, for 20 s at most. The pages' policy lets no waiting be put into
    them.
    """
    until = time.monotonic() + 20
    while not page.evaluate(CHARTS_DRAWN) and time.monotonic() < until:
        page.wait_for_timeout(100)


def context_of(browser: Browser, base: str, session: str | None, width: int, height: int) -> BrowserContext:
    context = browser.new_context(
        viewport={"width": width, "height": height}, locale="en-GB", timezone_id="Europe/Berlin"
    )
    if session:
        context.add_cookies([{"name": "sessionid", "value": session, "url": base}])
    return context


def for_the_docs(base: str, sessions: dict[str, str], shots: Shots, folder: Path) -> None:
    """The pictures of ``docs/screenshots``: what a screen of 1440 px by the height of each holds."""
    looks = {shot.name: (scheme, height) for shot, scheme, height in DOCUMENTED}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for shot in shots:
            scheme, height = looks[shot.name]
            context = context_of(browser, base, sessions[shot.who or ""], WIDTHS[0], height)
            page = context.new_page()
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            page.goto(base + shot.path)
            if shot.act:
                shot.act(page)
                page.evaluate("window.scrollTo(0, 0)")
            wait_for_charts(page)
            page.wait_for_timeout(900)
            page.screenshot(path=str(folder / f"{shot.name}.png"))
            context.close()
        browser.close()


def photograph(base: str, sessions: dict[str, str], shots: Shots, folder: Path) -> None:
    """Each of ``shots`` at each width and in each theme; what is done on the page is done once."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for shot in shots:
            context = context_of(browser, base, sessions[shot.who] if shot.who else None, WIDTHS[0], 900)
            page = context.new_page()
            page.on("console", lambda message, name=shot.name: print(name, "console:", message.text))
            page.goto(base + shot.path)
            page.wait_for_load_state("load")
            wait_for_charts(page)
            if shot.act:
                shot.act(page)
                # The bar sticks to where the page is looked at.
                page.evaluate("window.scrollTo(0, 0)")
            page.wait_for_timeout(400)
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                for scheme in ("light", "dark"):
                    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
                    page.wait_for_timeout(250)
                    page.screenshot(path=str(folder / f"{shot.name}-{width}-{scheme}.png"), full_page=True)
            context.close()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Screenshots of every page from a seeded platform.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", metavar="REGEX", help="names of the pictures to take (all)")
    parser.add_argument("--docs", action="store_true", help="the pictures of docs/screenshots")
    arguments = parser.parse_args()
    folder, only = arguments.folder.resolve(), re.compile(arguments.only)
    folder.mkdir(parents=True, exist_ok=True)

    def chosen(shots: Shots, places: dict[str, str]) -> Shots:
        return tuple(shot._replace(path=shot.path.format(**places)) for shot in shots if only.search(shot.name))

    with tempfile.TemporaryDirectory(prefix="ps") as name:
        data = Path(name)
        # A platform whose settings are in this shell is not what is photographed, or written to.
        for setting in ("DATABASE_URL", "DATABASE_URL_FILE", "REDIS_URL", "REDIS_URL_FILE"):
            os.environ.pop(setting, None)
        os.environ |= {
            "PENSTOCK_DATA": str(data),
            "PENSTOCK_SECRET_KEY": "only-for-pictures",
            "DJANGO_SETTINGS_MODULE": "penstock.settings",
            "PENSTOCK_API_URL": "https://llm.penstock.example/v1",
            "PENSTOCK_AGENT_REDIS_URL": "rediss://agents@state.penstock.example:6380/0",
        }
        import django

        django.setup()
        from django.core.management import call_command

        from tests.web.answering import answering

        call_command("migrate", verbosity=0)
        with answering() as gateway, state_of(data) as url:
            os.environ["PENSTOCK_GATEWAY_URL"] = gateway
            with served(data) as base:
                if not arguments.docs:
                    of_nothing(base, chosen(EMPTY_SHOTS, {}), folder)
                of_a_day(base, url, chosen, folder, for_docs=arguments.docs)


def of_nothing(base: str, shots: Shots, folder: Path) -> None:
    """Pictures before anything is there."""
    from tenants.models import Membership, Tenant, User

    operator, fresh, _ = (
        User.objects.create_user(f"{who}@penstock.example", is_operator=who == "operator")
        for who in ("operator", "owner", "lonely")
    )
    tenant = Tenant.objects.create(slug="fresh", name="Fresh Start")
    Membership.objects.create(tenant=tenant, user=fresh, role="owner")
    sessions = {who: session_for(f"{who}@penstock.example") for who in ("operator", "owner", "lonely")}
    photograph(base, sessions, shots, folder)
    tenant.delete()
    operator.delete()


def of_a_day(
    base: str, url: str, chosen: Callable[[Shots, dict[str, str]], Shots], folder: Path, *, for_docs: bool
) -> None:
    """Pictures of the seeded platform."""
    from tests.web.seed import seed

    with redis.Redis.from_url(url) as client:
        seeded = seed(client)
    people = {"operator": seeded.operator, "owner": seeded.owner, "viewer": seeded.viewer}
    sessions = {who: session_for(user.email) for who, user in people.items()}
    acted(seeded)
    places = things_of(seeded)
    with going_on(url, seeded):
        if for_docs:
            for_the_docs(base, sessions, chosen(tuple(shot for shot, *_ in DOCUMENTED), places), folder)
        else:
            photograph(base, sessions, chosen(SHOTS, places), folder)


def budgets(seeded: Seeded) -> None:
    """Budgets of a tenant, a member, a key and a model, in MU and money, for the page of limits."""
    from django.utils import timezone

    from capacity.models import BooksState
    from tenants.models import ApiKey
    from tenants.services import limit_set

    tenant = seeded.northwind
    BooksState.objects.update(final_until=timezone.now().replace(second=0, microsecond=0))
    key, member = ApiKey.objects.get(name="support-assist"), tenant.memberships.get(user=seeded.viewer)
    for kind, value, whose in (
        ("mu_per_day", 250_000, {"set_by": "operator"}),
        ("mu_per_month", 6_000_000, {"set_by": "tenant"}),
        ("money_per_month", 14_000, {"set_by": "operator"}),
        ("mu_per_day", 90_000, {"set_by": "tenant", "model": "chat-32b"}),
        ("tokens_per_min", 120_000, {"set_by": "tenant", "model": "demo-sim"}),
        ("mu_per_day", 70_000, {"set_by": "tenant", "api_key": key}),
        ("money_per_day", 40, {"set_by": "tenant", "member": member}),
    ):
        limit_set(tenant=tenant, kind=kind, value=value, actor=seeded.owner, **whose)


def acted(seeded: Seeded) -> None:
    """A few acts of the operator, for the audit log to show."""
    from capacity.models import Host
    from capacity.services import host_cordon, host_labels_set, host_uncordon
    from serving.services import deployment_update, revision_create
    from tenants.services import invitation_create, limit_set

    operator, host = seeded.operator, Host.objects.get(name="gpu-02")
    invitation_create(tenant=seeded.northwind, email="carla@northwind.example", actor=operator)
    limit_set(tenant=seeded.northwind, kind="requests_per_min", value=6000, set_by="operator", actor=operator)
    limit_set(tenant=seeded.northwind, kind="requests_per_min", value=9000, set_by="operator", actor=operator)
    budgets(seeded)
    host_cordon(host=host, actor=operator)
    host_uncordon(host=host, actor=operator)
    host_labels_set(host=host, labels={"zone": "b", "rack": "r12"}, actor=operator)
    deployment_update(deployment=seeded.chat, max_replicas=6, min_replicas=2, cold_start_s=94.0, actor=operator)
    current = seeded.chat.revisions.get()
    options = {"max_model_len": 16384, "host_labels": {"zone": "b"}}
    revision_create(deployment=seeded.chat, runtime=current.runtime, options=options, actor=operator)


def things_of(seeded: Seeded) -> dict[str, str]:
    """What stands for itself in the paths of pictures."""
    from capacity.models import Reservation, UsageRecord
    from serving.models import Calibration
    from tenants.models import ApiKey
    from tenants.services import invitation_create
    from tenants.services.links import sign_in_link_create
    from tests.web.answering import book

    key = ApiKey.objects.get(tenant=seeded.northwind, name="sandbox")
    records = UsageRecord.objects.filter(tenant_id=seeded.northwind.pk)
    record, lost = records.filter(outcome="completed").first(), records.filter(outcome="engine_lost").first()
    assert record is not None
    _, invitation = invitation_create(tenant=seeded.northwind, email="dan@northwind.example", actor=seeded.owner)
    book(seeded)
    return {
        "chat": str(seeded.chat.pk),
        "reservation": str(seeded.northwind.reservations.get(state="active").pk),
        "invoice": str(seeded.northwind.invoices.get(kind="invoice").pk),
        "failed": str(seeded.failed.pk),
        **{f"calibration_{state}": str(pk) for state, pk in Calibration.objects.values_list("state", "pk")},
        **{f"reservation_{state}": str(pk) for state, pk in Reservation.objects.values_list("state", "pk")},
        "key": str(key.pk),
        "request": str(record.pk),
        "lost": str(lost.pk if lost else record.pk),
        "link": sign_in_link_create(user=seeded.viewer, actor=seeded.operator),
        "invitation": invitation,
    }


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
