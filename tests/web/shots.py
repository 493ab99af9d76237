"""What ``screens`` photographs: pages by who opens them, and what is done on some of them first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Page

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "screenshots" / "console.png"


class Shot(NamedTuple):
    """``path`` may name things of the seeded platform (``screens.things_of``); ``act`` comes before the picture."""

    name: str
    who: str | None
    path: str
    act: Callable[[Page], None] | None = None


def join_command(page: Page) -> None:
    page.get_by_role("button", name="Make a join command").click()
    page.locator("#token").wait_for()


def new_key(page: Page) -> None:
    page.get_by_label("Name", exact=True).fill("billing service")
    page.get_by_role("button", name="Make the key").click()
    page.wait_for_load_state("load")


def new_token(page: Page) -> None:
    page.get_by_label("Name", exact=True).fill("laptop")
    page.get_by_role("button", name="Make a token").click()
    page.wait_for_load_state("load")


def ask_to_revoke(page: Page) -> None:
    page.get_by_role("button", name="Revoke", exact=True).click()


def ask_to_rotate(page: Page) -> None:
    page.get_by_role("button", name="Rotate", exact=True).click()


def switch_place(page: Page) -> None:
    page.locator("summary.switch").click()


def wrong_password(page: Page) -> None:
    page.get_by_label("E-mail address").fill("operator@penstock.example")
    page.get_by_label("Password").fill("not this one")
    page.get_by_role("button", name="Sign in").click()
    page.locator("#why").wait_for()


def without_feed(page: Page) -> None:
    page.route("**/console/live*", lambda route: route.abort())
    page.locator("[data-stale]").wait_for(timeout=20_000)


def unfolded(page: Page) -> None:
    for one in page.locator("details.more > summary").all():
        one.click()


def ask_with_picture(page: Page) -> None:
    page.locator("[data-file]").set_input_files(PICTURE)
    page.get_by_label("Message").fill("How many replicas are ready in this picture?")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("what the pool could have").wait_for()
    # The receipt is complete when the books have the request.
    page.locator("[data-request][href]").wait_for(timeout=10_000)


def be_refused(page: Page) -> None:
    ask_with_picture(page)
    page.get_by_label("Message").fill("And again, in one word?")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("It may be tried again").wait_for()


SHOTS = (
    Shot("sign-in", None, "/sign-in/"),
    Shot("sign-in-wrong", None, "/sign-in/", wrong_password),
    Shot("sign-in-link", None, "/sign-in/link/{link}"),
    Shot("invitation", None, "/invitations/{invitation}"),
    Shot("console", "operator", "/console/?range=1h"),
    Shot("console-pool", "operator", "/console/?range=24h&pool=chat-32b"),
    Shot("console-month", "operator", "/console/?range=30d&pool=chat-32b", unfolded),
    Shot("console-place", "operator", "/console/?range=1h", switch_place),
    Shot("console-stale", "operator", "/console/?range=1h", without_feed),
    Shot("tenants", "operator", "/tenants/"),
    Shot("tenant", "owner", "/t/northwind/?range=24h"),
    Shot("hosts", "operator", "/console/hosts/"),
    Shot("host", "operator", "/console/hosts/gpu-02/"),
    Shot("host-add", "operator", "/console/hosts/new"),
    Shot("host-add-token", "operator", "/console/hosts/new", join_command),
    Shot("host-drain", "operator", "/console/hosts/gpu-02/drain"),
    Shot("host-remove", "operator", "/console/hosts/gpu-02/remove"),
    Shot("host-secret", "operator", "/console/hosts/gpu-02/secret"),
    Shot("pools", "operator", "/console/pools/"),
    Shot("pool", "operator", "/console/pools/chat-32b/"),
    Shot("pool-remove", "operator", "/console/pools/chat-32b/remove"),
    Shot("deployments", "operator", "/console/deployments/"),
    Shot("deployments-none", "operator", "/console/deployments/?q=nothing"),
    Shot("deployment", "operator", "/console/deployments/{chat}/?ended=1"),
    Shot("deployment-events", "operator", "/console/deployments/{chat}/?tab=events"),
    Shot("deployment-revisions", "operator", "/console/deployments/{chat}/?tab=revisions"),
    Shot("deployment-logs", "operator", "/console/deployments/{chat}/?tab=logs"),
    Shot("deployment-settings", "operator", "/console/deployments/{chat}/?tab=settings"),
    Shot("deployment-audit", "operator", "/console/deployments/{chat}/?tab=audit"),
    Shot("deployment-new", "operator", "/console/deployments/new?model=Qwen/Qwen3-8B"),
    Shot("deployment-stop", "operator", "/console/deployments/{chat}/stop"),
    Shot("deployment-remove", "operator", "/console/deployments/{chat}/remove"),
    Shot("deployment-calibration", "operator", "/console/deployments/{chat}/?tab=calibration"),
    Shot("deployment-calibrate", "operator", "/console/deployments/{chat}/calibrate"),
    Shot("calibrations", "operator", "/console/calibrations/"),
    Shot("calibrations-none", "operator", "/console/calibrations/?q=nothing"),
    Shot("calibration", "operator", "/console/calibrations/{calibration_fitted}/"),
    Shot("calibration-adopted", "operator", "/console/calibrations/{calibration_adopted}/"),
    Shot("calibration-measuring", "operator", "/console/calibrations/{calibration_measuring}/"),
    Shot("calibration-failed", "operator", "/console/calibrations/{calibration_failed}/"),
    Shot("calibration-adopt", "operator", "/console/calibrations/{calibration_fitted}/adopt"),
    Shot("calibration-cancel", "operator", "/console/calibrations/{calibration_measuring}/cancel"),
    Shot("reservations", "operator", "/console/reservations/"),
    Shot("reservations-none", "operator", "/console/reservations/?q=nothing"),
    Shot("reservation", "operator", "/console/reservations/{reservation_active}/"),
    Shot("reservation-requested", "operator", "/console/reservations/{reservation_requested}/"),
    Shot("reservation-overcommitted", "operator", "/console/reservations/{reservation_draft}/"),
    Shot("reservation-approve", "operator", "/console/reservations/{reservation_requested}/approve"),
    Shot("reservation-change", "operator", "/console/reservations/{reservation_active}/change"),
    Shot("reservation-cancel", "operator", "/console/reservations/{reservation_active}/cancel"),
    Shot("reservation-renew", "operator", "/console/reservations/{reservation_active}/renew"),
    Shot("sell", "operator", "/console/reservations/sell"),
    Shot("sell-short", "operator", "/console/reservations/sell?pool=chat-32b&mu_per_min=900"),
    Shot(
        "sell-fits",
        "operator",
        "/console/reservations/sell?pool=chat-32b&input_tokens=1200&output_tokens=250&requests_per_min=60",
    ),
    Shot("replica", "operator", "/console/replicas/{failed}/"),
    Shot("guarantees", "operator", "/console/guarantees/"),
    Shot("guarantee", "operator", "/console/guarantees/{reservation}/"),
    Shot("invoices", "operator", "/console/invoices/"),
    Shot("invoice", "operator", "/console/invoices/{invoice}/"),
    Shot("invoice-issue", "operator", "/console/invoices/issue?tenant=northwind"),
    Shot("operator-tenants", "operator", "/console/tenants/"),
    Shot("operator-tenant", "operator", "/console/tenants/northwind/"),
    Shot("operator-tenant-suspend", "operator", "/console/tenants/northwind/suspend"),
    Shot("audit", "operator", "/console/audit/"),
    Shot("tokens", "operator", "/tokens"),
    Shot("tokens-made", "operator", "/tokens", new_token),
    Shot("style-guide", "operator", "/console/style-guide/"),
    Shot("not-found", None, "/nothing-here"),
    Shot("forbidden", "owner", "/console/"),
    Shot("quick-start", "owner", "/t/northwind/quick-start"),
    Shot("playground", "owner", "/t/northwind/playground/"),
    Shot("playground-answer", "owner", "/t/northwind/playground/", ask_with_picture),
    Shot("playground-refused", "owner", "/t/northwind/playground/", be_refused),
    Shot("keys", "owner", "/t/northwind/keys/"),
    Shot("key", "owner", "/t/northwind/keys/{key}/"),
    Shot("key-of-viewer", "viewer", "/t/northwind/keys/{key}/"),
    Shot("key-revoke", "owner", "/t/northwind/keys/{key}/", ask_to_revoke),
    Shot("key-rotate", "owner", "/t/northwind/keys/{key}/", ask_to_rotate),
    Shot("key-new", "owner", "/t/northwind/keys/new"),
    Shot("key-made", "owner", "/t/northwind/keys/new", new_key),
    Shot("usage", "owner", "/t/northwind/usage/?range=24h"),
    Shot("tenant-unreserved", "owner", "/t/northwind/?range=24h&pool=demo-sim"),
    Shot("usage-tokens", "owner", "/t/northwind/usage/?range=24h&metric=tokens"),
    Shot("usage-requests", "owner", "/t/northwind/usage/?range=24h&metric=requests"),
    Shot("usage-request", "owner", "/t/northwind/usage/{request}"),
    Shot("usage-lost", "owner", "/t/northwind/usage/{lost}"),
    Shot("members", "owner", "/t/northwind/members/"),
    Shot("tenant-reservations", "owner", "/t/northwind/reservations/"),
    Shot(
        "tenant-reservation-new",
        "owner",
        "/t/northwind/reservations/new?pool=chat-32b&input_tokens=1200&requests_per_min=60",
    ),
    Shot("limits", "owner", "/t/northwind/limits/"),
    Shot("tenant-guarantees", "owner", "/t/northwind/guarantees/"),
    Shot("tenant-guarantee", "owner", "/t/northwind/guarantees/{reservation}/"),
    Shot("tenant-invoices", "owner", "/t/northwind/invoices/"),
    Shot("tenant-invoice", "owner", "/t/northwind/invoices/{invoice}/"),
    Shot("tenant-month-preview", "owner", "/t/northwind/invoices/preview"),
    Shot("tenant-audit", "owner", "/t/northwind/audit/"),
    Shot("tenant-of-operator", "operator", "/t/northwind/keys/"),
)
EMPTY_SHOTS = (
    Shot("console-empty", "operator", "/console/"),
    Shot("hosts-empty", "operator", "/console/hosts/"),
    Shot("deployments-empty", "operator", "/console/deployments/"),
    Shot("pools-empty", "operator", "/console/pools/"),
    Shot("calibrations-empty", "operator", "/console/calibrations/"),
    Shot("reservations-empty", "operator", "/console/reservations/"),
    Shot("sell-empty", "operator", "/console/reservations/sell"),
    Shot("tenant-reservations-empty", "owner", "/t/fresh/reservations/"),
    Shot("deployment-new-empty", "operator", "/console/deployments/new"),
    Shot("guarantees-empty", "operator", "/console/guarantees/"),
    Shot("tenant-guarantees-empty", "owner", "/t/fresh/guarantees/"),
    Shot("invoices-empty", "operator", "/console/invoices/"),
    Shot("tenant-invoices-empty", "owner", "/t/fresh/invoices/"),
    Shot("tenant-month-preview-empty", "owner", "/t/fresh/invoices/preview"),
    Shot("operator-tenants-empty", "operator", "/console/tenants/"),
    Shot("operator-tenant-empty", "operator", "/console/tenants/fresh/"),
    Shot("operator-tenant-new", "operator", "/console/tenants/new"),
    Shot("audit-empty", "operator", "/console/audit/"),
    Shot("tenant-empty", "owner", "/t/fresh/"),
    Shot("tenants-empty", "lonely", "/tenants/"),
    Shot("tokens-empty", "owner", "/tokens"),
    Shot("quick-start-empty", "owner", "/t/fresh/quick-start"),
    Shot("playground-empty", "owner", "/t/fresh/playground/"),
    Shot("keys-empty", "owner", "/t/fresh/keys/"),
    Shot("usage-empty", "owner", "/t/fresh/usage/"),
    Shot("members-empty", "owner", "/t/fresh/members/"),
    Shot("limits-empty", "owner", "/t/fresh/limits/"),
    Shot("tenant-audit-empty", "owner", "/t/fresh/audit/"),
)
DOCUMENTED = (
    (Shot("console", "operator", "/console/?range=24h&pool=chat-32b"), "light", 1000),
    (Shot("deployments", "operator", "/console/deployments/"), "light", 560),
    (Shot("deployment", "operator", "/console/deployments/{chat}/"), "dark", 640),
    (Shot("hosts", "operator", "/console/hosts/"), "light", 560),
    (Shot("tenant", "owner", "/t/northwind/?range=24h"), "dark", 1000),
    (Shot("usage", "owner", "/t/northwind/usage/?range=24h"), "light", 1000),
    (Shot("playground", "owner", "/t/northwind/playground/", ask_with_picture), "light", 740),
)
"""The pictures of ``docs/screenshots``, each in one of the themes, and how high it is in pixels."""
