"""A person's first minutes in a real browser: a key, the quick start's own lines, and answers in the playground.

Every role is a process of its own; answers come from the simulated engine through the real gateway.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from penstock.testing import CANARY
from tests.e2e.stack import Stack, wait_for
from tests.web.screens import CHROMIUM, FLAGS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which(CHROMIUM), reason=f"{CHROMIUM} is not installed"),
]
EMAIL = "dev@demo.example"
EXPECTED = ("WebSocket connection to", "net::ERR_CONNECTION_REFUSED")
"""What a browser says while the console is away, as one test makes it."""
PERSON = f"""
from tenants.models import Membership, Tenant
from tenants.services import membership_add, sign_in_link_create, user_create
tenant = Tenant.objects.order_by("created_at").first()
user = user_create(email="{EMAIL}", actor="a test")
membership_add(tenant=tenant, user=user, role="developer", actor="a test")
import json
print(json.dumps({{"slug": tenant.slug, "user": user.pk.hex, "link": sign_in_link_create(user=user, actor=user)}}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("playground") / "data", engine="simulated", gateways=1)
    try:
        yield running.start()
        assert running.stop() == 0
    except BaseException:
        print(running.tail(120))
        running.kill_all()
        raise


@pytest.fixture
def page() -> Iterator[Page]:
    """A fresh browser that fails the test for any console error (a policy violation is one) or page error."""
    faults: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in EXPECTED):
            faults.append(message.text)

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_context(viewport={"width": 1440, "height": 1000}, locale="en-GB").new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: faults.append(str(error)))
        yield page
        browser.close()
    assert faults == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def test_from_a_key_to_a_metered_answer(page: Page, site: Stack) -> None:
    person = json.loads(site.manage(PERSON).splitlines()[-1])
    page.goto(f"{site.console_url}/sign-in/link/{person['link']}")
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{site.console_url}/t/{person['slug']}/")

    # A key, whose secret is shown once.
    page.get_by_role("link", name="Keys", exact=True).click()
    page.get_by_role("link", name="New key").first.click()
    page.get_by_label("Name", exact=True).fill("first-steps")
    page.get_by_role("button", name="Make the key").click()
    secret = page.locator("#secret").inner_text().strip()
    assert re.fullmatch(r"mu_[A-Za-z0-9]{12}_[A-Za-z0-9]{43}", secret)

    # The quick start's own line works as it is pasted.
    page.get_by_role("link", name="Quick start").last.click()
    expect(page).to_have_url(re.compile("/quick-start$"))
    page.goto(f"{page.url}?model=demo-sim")
    code = page.locator("#pre-curl").inner_text()
    done = subprocess.run(
        ["sh", "-c", code],
        env={**os.environ, "PENSTOCK_API_KEY": secret},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "data: [DONE]" in done.stdout, done.stdout + done.stderr

    # The playground answers without any key.
    page.get_by_role("link", name="Playground", exact=True).first.click()
    page.get_by_label("Model", exact=True).select_option("demo-sim")
    expect(page.locator("[data-live-word]")).to_have_text("Connected")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Max output").fill("40")
    ask(page, f"Hello {CANARY}")
    answer = page.locator("article.msg").nth(1)
    expect(answer.locator("[data-actual]")).to_have_text(re.compile(r"^[\d.]+$"), timeout=30_000)
    assert answer.locator(".answer").inner_text().strip()
    for name in ("ttft", "speed", "input", "output", "estimated"):
        assert float(answer.locator(f"[data-{name}]").inner_text().replace(",", "")) > 0, name
    expect(answer.locator("[data-class]")).to_have_text("best-effort")

    # It is booked on the person and the tenant, with the very tokens and MU that stand beside the answer.
    (row,) = site.usage("key_id = ?", person["user"])
    assert row["replica_id"].endswith(answer.locator("[data-replica]").inner_text())
    assert f"{row['output_tokens']}" == answer.locator("[data-output]").inner_text()
    assert float(answer.locator("[data-actual]").inner_text()) == pytest.approx(row["actual_mu"], rel=0.01)

    # A second question carries the first; Stop ends the engine's work, and the books say so.
    page.get_by_label("Max output").fill("4000")
    # The simulated engine answers equal prompts alike: this one with 369 tokens, in three seconds.
    ask(page, "Tell me a story of gates.")
    second = page.locator("article.msg").nth(3)
    expect(second.locator(".answer")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(second.locator("[data-state]")).to_have_text("stopped")
    stopped = wait_for(
        "a record of the stopped answer",
        lambda: site.usage("key_id = ? and outcome = 'client_closed'", person["user"]),
        seconds=20,
    )
    assert 0 < stopped[0]["output_tokens"] < 4000
    assert stopped[0]["input_tokens"] > row["input_tokens"]

    # Retry asks the same again, in the place of what was stopped.
    page.get_by_label("Max output").fill("8")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("article.msg")).to_have_count(4)
    expect(page.locator("article.msg").nth(3).locator("[data-actual]")).to_have_text(
        re.compile(r"^[\d.]+$"), timeout=30_000
    )

    # From an answer to its receipt, and to all that the person used.
    page.locator("article.msg").nth(3).locator("[data-request]").click()
    expect(page.locator("main")).to_contain_text(f"{EMAIL}, in the playground")
    page.get_by_role("link", name="Usage", exact=True).first.click()
    expect(page.locator("main")).to_contain_text(EMAIL)
    logged = site.log.read_text(errors="replace")
    assert CANARY not in logged
    assert "psm_" not in logged


def test_the_page_comes_back_when_the_console_does(page: Page, site: Stack) -> None:
    link = site.manage(
        f"""
from tenants.models import User
from tenants.services import sign_in_link_create
user = User.objects.get(email="{EMAIL}")
print(user.memberships.get().tenant.slug, sign_in_link_create(user=user, actor=user))
"""
    ).splitlines()[-1]
    slug, token = link.split()
    page.goto(f"{site.console_url}/sign-in/link/{token}")
    page.get_by_role("button", name="Sign in").click()
    page.goto(f"{site.console_url}/t/{slug}/playground/?model=demo-sim")
    expect(page.locator("[data-live-word]")).to_have_text("Connected")
    page.evaluate("window.unreloaded = true")
    (web,) = site.role("penstock.asgi")
    web.terminate()
    expect(page.locator("[data-live-word]")).to_have_text("Not connected", timeout=20_000)
    expect(page.locator("[data-lost]")).to_be_visible()
    expect(page.locator("[data-live-word]")).to_have_text("Connected", timeout=60_000)
    expect(page.locator("[data-lost]")).to_be_hidden()
    page.get_by_label("Max output").fill("8")
    ask(page, "Still there?")
    expect(page.locator("article.msg .answer")).not_to_be_empty()
    assert page.evaluate("window.unreloaded") is True
