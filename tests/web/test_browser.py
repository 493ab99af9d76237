"""A real browser on the real web role: sign in by link, watch the console move, and see it say so when it stops."""

from __future__ import annotations

import json
import re
import shutil
import time

import pytest
import redis
from playwright.sync_api import Page, expect

from tests.web.browser import Site, sign_in
from tests.web.screens import CHROMIUM

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(CHROMIUM), reason=f"{CHROMIUM} is not installed"),
]


def test_sign_in_by_link_and_see_the_console(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/sign-in/link/{site.links['operator']}")
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{site.url}/console/")
    expect(page.locator(".head p")).to_contain_text("We have 5 replica-equivalents")
    expect(page.locator("#chart canvas")).to_be_visible()
    expect(page.locator("#chart .plot")).to_have_attribute("aria-label", re.compile("have 5"))


def test_the_console_moves_without_reloading_or_jumping(page: Page, site: Site) -> None:
    sign_in(page, site, "operator")
    row = page.locator(f"#d-{site.chat}")
    in_flight = row.locator('td[data-l="In flight, requests"]')
    expect(in_flight).to_have_text("34")
    page.evaluate("window.unreloaded = true")
    canvas = page.locator("#chart canvas").element_handle()
    before = row.bounding_box()
    with redis.Redis.from_url(site.state) as client:
        key = f"penstock:ring:deployment:{site.chat}"
        newest = json.loads(client.lindex(key, 0))
        client.lpush(key, json.dumps({**newest, "at": newest["at"] + 1, "in_flight": 51}))
    expect(in_flight).to_have_text("51", timeout=10_000)
    assert page.evaluate("window.unreloaded") is True
    assert canvas is not None
    assert canvas.evaluate("element => element.isConnected")
    # What stands beside the chart is not asked for every two seconds, and stays.
    expect(page.locator("[data-figure='have now']").first).to_have_text("5")
    after = row.bounding_box()
    assert before is not None
    assert after is not None
    # A callout (the seeded samples grow old) may push the row down; nothing may change its size.
    assert (before["width"], before["height"]) == (after["width"], after["height"])


def test_times_are_in_the_viewers_zone(page: Page, site: Site) -> None:
    sign_in(page, site, "operator")
    expect(page.locator("#chart .at")).to_contain_text("GMT+5:30")
    first = page.locator(".feed time").first
    shown, stamp = first.inner_text(), first.get_attribute("datetime")
    expected = page.evaluate(
        "stamp => new Intl.DateTimeFormat('en-GB', {hour: '2-digit', minute: '2-digit'}).format(new Date(stamp))", stamp
    )
    assert shown == expected
    page.wait_for_timeout(2600)
    assert first.inner_text() == expected


def test_a_day_of_another_year_has_its_year(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/sign-in/")
    shown = """year => {
        const time = document.createElement("time");
        [time.dateTime, time.dataset.local] = [`${year}-04-06T08:00:00Z`, "day"];
        document.body.append(time);
        penstock.localTimes();
        return time.textContent;
    }"""
    year = page.evaluate("new Date().getFullYear()")
    assert page.evaluate(shown, year) == "06 Apr 13:30"
    assert page.evaluate(shown, year + 1) == f"06 Apr {year + 1} 13:30"


def test_the_log_is_filtered_in_the_viewers_zone(page: Page, site: Site) -> None:
    """The address stays in UTC: it means the same to whoever gets it."""
    sign_in(page, site, "operator")
    page.goto(f"{site.url}/console/audit/?since=2026-05-31T08:00")
    since = page.get_by_label("Since GMT+5:30")
    expect(since).to_have_value("2026-05-31T13:30")
    since.fill("2026-05-31T00:10")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(re.compile("since=2026-05-30T18%3A40"))
    expect(since).to_have_value("2026-05-31T00:10")
    expect(page.get_by_label("Until GMT+5:30")).to_have_value("")


def test_a_page_whose_feed_is_down_says_so_and_recovers(page: Page, site: Site) -> None:
    sign_in(page, site, "operator")
    expect(page.locator("[data-live-word]")).to_have_text("Live")
    page.route("**/console/live*", lambda route: route.abort())
    note = page.locator("[data-stale]")
    expect(note).to_be_visible(timeout=20_000)
    expect(note).to_contain_text("its data is")
    expect(page.locator("[data-live-word]")).to_have_text("Not live")
    expect(page.locator(f"#d-{site.chat}")).to_be_visible()
    page.unroute("**/console/live*")
    expect(note).to_be_hidden(timeout=20_000)


def test_the_theme_is_remembered_without_a_flash(page: Page, site: Site) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(f"{site.url}/sign-in/")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Light or dark").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.goto(f"{site.url}/sign-in/")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_the_chart_is_read_by_keyboard(page: Page, site: Site) -> None:
    sign_in(page, site, "operator")
    plot = page.locator("#chart .plot")
    expect(page.locator("#chart canvas")).to_be_visible()
    plot.focus()
    page.keyboard.press("Home")
    read = page.locator("#chart .legend b").nth(1)
    expect(read).to_have_text("5")
    page.keyboard.press("Escape")
    expect(read).to_have_text("")


def test_the_dashboard_and_its_snippets(page: Page, site: Site) -> None:
    sign_in(page, site, "owner")
    expect(page).to_have_url(f"{site.url}/t/northwind/")
    expect(page.locator(".chart canvas").first).to_be_visible()
    expect(page.locator("#gauge svg")).to_be_visible()
    page.get_by_role("tab", name="Python").click()
    expect(page.locator("#code-python")).to_be_visible()
    expect(page.locator("#code-curl")).to_be_hidden()
    page.get_by_role("tab", name="Python").press("ArrowRight")
    expect(page.locator("#code-javascript")).to_be_visible()


def test_a_phone_gets_a_menu_and_no_sideways_scrolling(page: Page, site: Site) -> None:
    sign_in(page, site, "operator")
    page.set_viewport_size({"width": 390, "height": 844})
    of_tenant = ("", "quick-start", "playground/", "keys/", "keys/new", "usage/", "members/", "limits/", "audit/")
    for path in ("/console/", "/tenants/", "/console/style-guide/", *(f"/t/northwind/{name}" for name in of_tenant)):
        page.goto(site.url + path)
        time.sleep(0.2)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    page.goto(f"{site.url}/console/")
    page.get_by_role("button", name="Menu").click()
    expect(page.get_by_role("link", name="Capacity")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Capacity")).to_be_hidden()
