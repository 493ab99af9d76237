"""The playground in a real browser: what it counts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.web import shots
from tests.web.answering import answering
from tests.web.browser import Site, seeded_site, sign_in
from tests.web.screens import CHROMIUM

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(CHROMIUM), reason=f"{CHROMIUM} is not installed"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With a gateway that answers the playground."""
    with (
        answering() as gateway,
        seeded_site(tmp_path_factory.mktemp("pw"), PENSTOCK_GATEWAY_URL=gateway) as made,
    ):
        yield made


def test_a_refusal_is_no_answer(page: Page, site: Site) -> None:
    sign_in(page, site, "owner")
    page.goto(f"{site.url}/t/northwind/playground/")
    answers = page.locator("[data-sum-answers]")
    expect(answers).to_have_text("0")
    shots.ask_with_picture(page)
    expect(answers).to_have_text("1")
    page.get_by_label("Message").fill("And again, in one word?")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("It may be tried again").wait_for()
    expect(answers).to_have_text("1")
    expect(page.locator("[data-sum-output]")).to_have_text("96")
    page.get_by_role("button", name="Clear").click()
    expect(answers).to_have_text("0")
