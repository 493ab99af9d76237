"""The operators' main paths in a real browser: a host joins, a model is deployed and stopped, a tenant comes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.web.browser import PASSWORD, Site, sign_in
from tests.web.screens import CHROMIUM, FLAGS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(CHROMIUM), reason=f"{CHROMIUM} is not installed"),
]
COMES_IN = """
import sys, django
django.setup()
from django.utils import timezone
from capacity.services import enrolment_token_find, enrolment_token_redeem
host, _ = enrolment_token_redeem(token=enrolment_token_find(sys.argv[1]), name="rack-1", hardware="NVIDIA L4",
                                 memory_bytes=24 << 30)
type(host).objects.filter(pk=host.pk).update(last_report_at=timezone.now(), report={"cores": 8})
"""


def in_the_site(code: str, *arguments: str) -> None:
    """Run ``code`` on the site's database: the fixture has set the environment."""
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, check=True, timeout=60)


def test_a_join_command_is_made_and_the_page_tells_who_came(page: Page, site: Site) -> None:
    sign_in(page, site, "operator")
    page.get_by_role("link", name="Hosts", exact=True).click()
    expect(page.locator(".head p")).to_contain_text("3 hosts with 4 accelerators")
    page.get_by_role("link", name="Add a host").click()
    page.get_by_role("button", name="Make a join command").click()
    assert page.locator("#command").inner_text() == f"./penstock join {site.url}"
    token = page.locator("#token").inner_text()
    assert re.fullmatch(r"pse_\w+", token)
    expect(page.get_by_text("Waiting for the machine to join")).to_be_visible()
    in_the_site(COMES_IN, token)
    expect(page.get_by_text("rack-1 has joined and reports.")).to_be_visible(timeout=15_000)
    page.get_by_role("link", name="Open", exact=True).click()
    expect(page).to_have_url(f"{site.url}/console/hosts/rack-1/")
    page.get_by_role("button", name="Cordon").click()
    expect(page.get_by_role("status").filter(has_text="rack-1 is cordoned")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("rack-1 takes replicas again.")).to_be_visible()


def test_a_model_is_deployed_scaled_and_stopped(page: Page, site: Site) -> None:
    sign_in(page, site, "operator")
    page.goto(f"{site.url}/console/deployments/")
    page.get_by_role("link", name="New deployment").click()
    page.evaluate("window.unreloaded = true")
    page.get_by_label("Model", exact=True).fill("Qwen/Qwen3-8B")
    page.get_by_label("Model", exact=True).press("Tab")
    expect(page.locator("#plan")).to_contain_text("8 B parameters, read from its name")
    assert page.evaluate("window.unreloaded") is True
    page.get_by_text("Change what was chosen").click()
    page.get_by_label("Name that clients send").fill("chat-8b")
    page.get_by_role("button", name="Deploy").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("chat-8b")
    expect(page.get_by_text("chat-8b is made.")).to_be_visible()
    page.get_by_role("link", name="Settings").click()
    page.get_by_label("At most").fill("4")
    page.get_by_label("At least").fill("2")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("chat-8b now wants 2 replicas.")).to_be_visible()
    page.get_by_role("link", name="Stop…").click()
    expect(page.get_by_role("heading", name="Stop chat-8b?")).to_be_visible()
    page.get_by_role("button", name="Stop chat-8b").click()
    expect(page.get_by_text("It is stopped: no replica runs")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("0 of 2 wanted replicas are ready")).to_be_visible()
    page.get_by_role("link", name="Audit", exact=True).last.click()
    expect(page.locator("tbody")).to_contain_text("deployment.disable")


def test_a_tenant_comes_is_suspended_and_resumed(page: Page, site: Site) -> None:
    sign_in(page, site, "operator")
    page.get_by_role("link", name="Tenants", exact=True).click()
    page.get_by_role("link", name="New tenant").click()
    page.get_by_label("Name", exact=True).fill("Borealis Air")
    page.get_by_label("E-mail address of its owner").fill("mira@borealis.example")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#link")).to_contain_text("/invitations/")
    page.get_by_role("link", name="Suspend…").click()
    page.get_by_role("button", name="Suspend Borealis Air").click()
    expect(page.get_by_text("It is suspended")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Borealis Air is active: its keys work.")).to_be_visible()
    expect(page.locator("#link")).to_have_count(0)


def test_the_page_of_a_deployment_moves(page: Page, site: Site) -> None:
    sign_in(page, site, "operator")
    page.goto(f"{site.url}/console/deployments/{site.chat}/")
    expect(page.locator("[data-live-word]")).to_have_text("Live")
    page.evaluate("window.unreloaded = true")
    in_the_site(
        "import sys, django; django.setup()\nfrom serving.models import Replica\n"
        "Replica.objects.filter(deployment=sys.argv[1], state='starting').update(progress={'step': 'weights', "
        "'share': 0.91, 'detail': '59 of 65 GB'})",
        site.chat,
    )
    expect(page.get_by_text("59 of 65 GB")).to_be_visible(timeout=15_000)
    assert page.evaluate("window.unreloaded") is True


def test_without_scripts_all_of_it_works(site: Site) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_context(java_script_enabled=False).new_page()
        page.goto(f"{site.url}/sign-in/")
        page.get_by_label("E-mail address").fill("operator@penstock.example")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.goto(f"{site.url}/console/deployments/new")
        page.get_by_label("Model", exact=True).fill("tiny")
        page.get_by_role("button", name="Look").click()
        expect(page.locator("#plan")).to_contain_text("built on each host from nothing")
        page.get_by_role("button", name="Deploy").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("tiny-model")
        page.goto(f"{site.url}/console/audit/")
        page.get_by_label("Act").fill("deployment.create")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator("tbody")).to_contain_text("tiny-model")
        browser.close()


def test_a_phone_shows_all_of_each_page(page: Page, site: Site) -> None:
    sign_in(page, site, "operator")
    page.set_viewport_size({"width": 390, "height": 844})
    deployment = f"/console/deployments/{site.chat}/"
    for path in (
        "/console/hosts/",
        "/console/hosts/new",
        "/console/hosts/gpu-01/",
        "/console/deployments/",
        "/console/deployments/new?model=Qwen/Qwen3-8B",
        *(f"{deployment}?tab={tab}" for tab in ("replicas", "events", "revisions", "logs", "settings", "audit")),
        f"{deployment}stop",
        "/console/tenants/",
        "/console/tenants/northwind/",
        "/console/audit/",
    ):
        page.goto(site.url + path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
