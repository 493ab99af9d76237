"""axe-core finds nothing on any page: WCAG 2.1 A and AA, wide and narrow, light and dark, as opened and in use.

The pages come from the URL table: a new one is looked at, or fails for want of a thing to be about. Scripts that
a browser's driver evaluates are no matter of the Content-Security-Policy, which stays as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page, expect, sync_playwright

from tests.web import shots
from tests.web.answering import answering
from tests.web.browser import Site, seeded_site, sign_in
from tests.web.everywhere import Address, addresses
from tests.web.screens import CHROMIUM, FLAGS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which(CHROMIUM), reason=f"{CHROMIUM} is not installed"),
]
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
CONTRAST = "color-contrast"
RUN = "options => axe.run(document, options).then(found => found.violations)"
FORM = """() => {
    const said = [], one = (selector) => document.querySelectorAll(selector).length;
    if (!/^[^·]{2,} · /.test(document.title)) said.push(`its title is ${document.title}`);
    if (one("h1") !== 1) said.push(`it has ${one("h1")} headings of the first level`);
    if (one("#nav") && one("#nav [aria-current]") !== 1) said.push("the navigation does not say where it is");
    for (const table of document.querySelectorAll("table.fold")) {
        const units = [...table.tHead.rows[0].cells].map((head) => head.querySelector(".u")?.textContent);
        for (const cell of table.tBodies[0].querySelectorAll("td[data-l]")) {
            const unit = units[cell.cellIndex], own = cell.dataset.l.split(", ")[1];
            if (unit && (!own || !unit.startsWith(own))) said.push(`${cell.dataset.l} has lost its unit, ${unit}`);
        }
    }
    return said;
}"""
"""What axe's rules for WCAG do not ask: where am I, in the window's title, the navigation and the heading; and does
a table that is folded to labels and values keep the units of its head?"""
SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
PREPARE = """() => {
    for (const one of document.querySelectorAll("details:not(.menu)")) one.open = true;
    for (const body of document.querySelectorAll("tbody")) for (const row of [...body.rows].slice(8)) row.remove();
}"""
"""What is folded away is looked at too; of the rows of a table, which are alike, the first ones."""
DEPLOYMENT = "/console/deployments/{deployment_id}/"
MORE = {
    "operator": (
        *(f"{DEPLOYMENT}?tab={tab}" for tab in ("events", "revisions", "logs", "settings", "audit")),
        "/console/deployments/new?model=Qwen/Qwen3-8B",
        "/console/deployments/?q=nothing",
        "/t/northwind/keys/",
    ),
    "owner": (
        "/console/",
        "/t/northwind/usage/?range=15m&outcome=not_found",
    ),
    None: ("/nothing-here",),
}
"""Further views, by who opens them: tabs, filters that nothing passes, error pages, a tenant seen by an operator."""
IN_USE: tuple[tuple[str, str | None, str, Callable[[Page], None]], ...] = (
    ("wrong password", None, "/sign-in/", shots.wrong_password),
    ("switching places", "operator", "/console/", shots.switch_place),
    ("a join command", "operator", "/console/hosts/new", shots.join_command),
    ("a new token", "owner", "/tokens", shots.new_token),
    ("a new key", "owner", "/t/northwind/keys/new", shots.new_key),
    ("revoking a key", "owner", "/t/northwind/keys/{key_id}/", shots.ask_to_revoke),
    ("rotating a key", "owner", "/t/northwind/keys/{key_id}/", shots.ask_to_rotate),
    ("answers of the playground", "owner", "/t/northwind/playground/", shots.be_refused),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With a gateway that answers the playground."""
    with (
        answering() as gateway,
        seeded_site(tmp_path_factory.mktemp("pw"), PENSTOCK_GATEWAY_URL=gateway) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def pages(site: Site) -> Iterator[dict[str | None, Page]]:
    """A page of an operator, of a tenant's owner, and of a visitor; each signs in once."""
    made: dict[str | None, Page] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for who in ("operator", "owner", None):
            made[who] = browser.new_context(locale="en-GB", timezone_id="Asia/Kolkata").new_page()
            if who:
                sign_in(made[who], site, who)
        yield made
        browser.close()


def found(page: Page, where: str, options: dict[str, Any]) -> list[str]:
    """A line for each element that breaks a rule."""
    return [
        f"{where}: {fault['id']}: {node['html'][:160]} {[check['message'] for check in node['any'] + node['all']]}"
        for fault in page.evaluate(RUN, options | {"resultTypes": ["violations"], "preload": False})
        for node in fault["nodes"]
    ]


def faults(page: Page, where: str) -> list[str]:
    """All rules in a wide window, then what another theme can change, then what another layout can."""
    every = {"runOnly": {"type": "tag", "values": TAGS}}
    page.evaluate(AXE_SCRIPT)
    page.evaluate(PREPARE)
    lines = [f"{where}: {fault}" for fault in page.evaluate(FORM)]
    lines += found(page, f"{where} (light, wide)", every)
    page.emulate_media(color_scheme="dark")
    lines += found(page, f"{where} (dark, wide)", {"runOnly": {"type": "rule", "values": [CONTRAST]}})
    page.set_viewport_size({"width": 390, "height": 844})
    lines += found(page, f"{where} (dark, narrow)", every | {"rules": {CONTRAST: {"enabled": False}}})
    return lines + [f"{where} (narrow): scrolls sideways"] * page.evaluate(SIDEWAYS)


def wide_and_light(page: Page) -> None:
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    page.set_viewport_size({"width": 1440, "height": 900})


def is_page(page: Page, address: Address, site: Site) -> bool:
    """Not what can only be posted, a part of a page, data, or a way to another page."""
    # Without a pool there are no series to answer with.
    url, pool = site.url + address.path(site.things), address.thing("pool", site.things)
    answer = page.request.get(url, params={"pool": pool}, max_redirects=0)
    assert answer.status in (200, 302, 405), (address, answer.status)
    return answer.status == 200 and answer.text().lstrip().startswith("<!doctype html>")


@pytest.mark.parametrize("who", ["operator", "owner", None])
def test_every_page(pages: dict[str | None, Page], site: Site, who: str | None) -> None:
    page = pages[who]
    own = [address for address in addresses() if address.who == who]
    paths = [address.path(site.things) for address in own if is_page(page, address, site)]
    assert len(paths) >= {"operator": 18, "owner": 11, None: 3}[who]
    lines = []
    for path in (*paths, *(more.format(**site.things) for more in MORE[who])):
        wide_and_light(page)
        page.goto(site.url + path)
        lines += faults(page, path)
    assert lines == []


def test_pages_in_use(pages: dict[str | None, Page], site: Site) -> None:
    lines = []
    for what, who, path, act in IN_USE:
        wide_and_light(pages[who])
        pages[who].goto(site.url + path.format(**site.things))
        act(pages[who])
        lines += faults(pages[who], what)
    assert lines == []


def test_the_menu_of_a_phone(pages: dict[str | None, Page], site: Site) -> None:
    page = pages["operator"]
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{site.url}/console/hosts/")
    page.get_by_role("button", name="Menu").click()
    expect(page.get_by_role("link", name="Capacity")).to_be_visible()
    page.evaluate(AXE_SCRIPT)
    assert found(page, "menu", {"runOnly": {"type": "tag", "values": TAGS}}) == []


def test_a_unit_that_is_lost_in_folding_is_found(pages: dict[str | None, Page], site: Site) -> None:
    page = pages["owner"]
    page.goto(f"{site.url}/t/northwind/usage/?range=24h")
    assert page.evaluate(FORM) == []
    page.evaluate("document.querySelector('td[data-l^=Output]').dataset.l = 'Output'")
    assert page.evaluate(FORM) == ["Output has lost its unit, tokens"]


def test_faults_are_found(pages: dict[str | None, Page], site: Site) -> None:
    """Else a page without any would prove nothing."""
    page = pages[None]
    wide_and_light(page)
    page.goto(f"{site.url}/sign-in/")
    page.evaluate("document.querySelector('label').remove(); document.querySelector('h1').style.color = '#ccc'")
    assert {line.split(": ")[1] for line in faults(page, "")} == {"label", CONTRAST}
