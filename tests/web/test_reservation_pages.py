"""The pages of reservations, of operators and of a tenant: what they show, and what is done there."""

from __future__ import annotations

import datetime
import html

import pytest
from django.test import Client
from django.utils import timezone

from capacity.models import Pool, Reservation
from capacity.policy.ledger import Piece
from capacity.services import reservation_sell
from penstock.web.sales_plot import horizon, sales_plot
from tenants.models import AuditEntry, Tenant
from tests import factories, selling
from tests.web.seed import Seeded

DAY = datetime.timedelta(days=1)


def text(answer) -> str:
    return html.unescape(answer.content.decode())


@pytest.fixture
def pool(db: None) -> Pool:
    """300 MU/min of it can be sold."""
    selling.host("node-1")
    made = selling.pool("Chat")
    selling.serve(made, name="chat")
    return made


@pytest.fixture
def acme(db: None) -> Tenant:
    return factories.tenant(name="Acme")


@pytest.fixture
def operator(client: Client, db: None) -> Client:
    client.force_login(factories.user(is_operator=True))
    return client


@pytest.fixture
def admin(acme: Tenant) -> Client:
    from tenants.models import Membership
    from tenants.services import membership_add

    person = factories.user(email="admin@acme.example")
    membership_add(tenant=acme, user=person, role=Membership.Role.ADMIN, actor="t")
    found = Client()
    found.force_login(person)
    return found


def post_sale(operator: Client, **fields: str):
    return operator.post("/console/reservations/sell", {"pool": "chat", "tenant": "acme", **fields}, follow=True)


# ----- the list and one
def test_the_list_shows_what_is_sold_and_asked_for(platform: Seeded, as_operator: Client) -> None:
    page = text(as_operator.get("/console/reservations/"))
    assert "2 reservations run, 1 starts later, 1 waits for a decision." in page
    assert "Wait for a decision" in page
    assert "The new branch app goes live in all offices" in page
    assert "overcommitted" in page
    assert '<polygon class="sold"' in page
    refused = text(as_operator.get("/console/reservations/?state=refused"))
    assert refused.count('class="t"') == 2  # the one that waits, and the one that fits the filter
    assert "No reservation fits these filters." in text(as_operator.get("/console/reservations/?q=nothing"))


def test_an_empty_list_says_what_to_do(operator: Client) -> None:
    page = text(operator.get("/console/reservations/"))
    assert "Nothing is sold: every request is served best-effort" in page
    assert "Nothing is sold yet" in page
    assert "deploy a model, which makes one" in text(operator.get("/console/reservations/sell"))


def test_one_shows_its_terms_and_what_was_done(platform: Seeded, as_operator: Client) -> None:
    for row in Reservation.objects.all():
        page = text(as_operator.get(f"/console/reservations/{row.pk}/"))
        assert row.tenant.name in page
        assert ("Approve…" in page) == (row.state == "requested")
        assert ("Cancel…" in page) == (row.state in ("draft", "active"))
    draft = Reservation.objects.get(state="draft")
    assert "Two more accelerators are ordered" in text(as_operator.get(f"/console/reservations/{draft.pk}/"))
    wish = Reservation.objects.get(state="requested")
    assert "MU/min" in text(as_operator.get(f"/console/reservations/{wish.pk}/"))


# ----- selling
def test_the_answer_follows_what_is_typed(operator: Client, pool: Pool, acme: Tenant) -> None:
    def asked(**fields: str) -> str:
        query = {"pool": "chat", "tenant": "", **fields}
        return text(operator.get("/console/reservations/sell", query, headers={"HX-Request": "true"}))

    assert "<html" not in asked(mu_per_min="100")
    assert "It fits." in asked(mu_per_min="100")
    assert "It fits only without N−1." in asked(mu_per_min="350")
    short = asked(mu_per_min="500")
    assert "It does not fit." in short
    assert "Short by 200 MU/min from" in short
    assert "300 MU/min would fit over the whole time." in short
    shaped = asked(input_tokens="1000", output_tokens="200", requests_per_min="10")
    assert "Kept warm" in shaped
    assert "a minute" in shaped
    assert "Units: Write name=number" in asked(units="pictures")
    assert "no price for parsec" in asked(units="parsec=1", requests_per_min="1")
    assert "It must end after it starts" in asked(mu_per_min="1", ends_at="2020-01-01")
    assert "Pool: Select a valid choice" in asked(pool="none")
    assert "Fill in what is asked for" in asked(pool="")
    assert not Reservation.objects.exists()


def test_a_sale_is_made_by_mu_or_by_the_calculator(operator: Client, pool: Pool, acme: Tenant) -> None:
    ends = (timezone.now() + 30 * DAY).date().isoformat()
    page = text(post_sale(operator, mu_per_min="120", ends_at=ends, price="0.5", currency="eur", note="Shop"))
    assert "120 MU/min of Chat are sold to Acme." in page
    row = Reservation.objects.get()
    assert (row.mu_per_min, row.currency, row.note, row.state) == (120.0, "EUR", "Shop", "active")
    assert row.ends_at == datetime.datetime.fromisoformat(f"{ends}T00:00:00+00:00")
    post_sale(operator, input_tokens="500", output_tokens="100", requests_per_min="0.01")
    assert Reservation.objects.count() == 2
    assert "Give the MU/min, or a request" in text(post_sale(operator))


def test_what_does_not_fit_is_sold_only_with_a_reason(operator: Client, pool: Pool, acme: Tenant) -> None:
    refused = post_sale(operator, mu_per_min="500")
    assert refused.status_code == 400
    assert "Short by 200 MU/min" in text(refused)
    assert not Reservation.objects.exists()
    page = text(post_sale(operator, mu_per_min="500", override_reason="A rack arrives"))
    assert "It was sold although it does not fit." in page
    assert Reservation.objects.get().is_overcommitted


# ----- decided upon, changed and ended
def test_a_request_is_approved_refused_and_restored(operator: Client, admin: Client, pool: Pool, acme: Tenant) -> None:
    asked = admin.post("/t/acme/reservations/new", {"pool": "chat", "mu_per_min": "90", "note": "Please"}, follow=True)
    assert "90 MU/min of Chat are asked for." in text(asked)
    row = Reservation.objects.get()
    path = f"/console/reservations/{row.pk}"
    question = text(operator.get(f"{path}/approve"))
    assert "Acme gets 90 MU/min of Chat guaranteed, from now until it is cancelled." in question
    assert "90 MU/min fit:" in question
    refused = text(operator.post(f"{path}/refuse", {"reason": "Not now"}, follow=True))
    assert "Undo" in refused
    assert "Not now" in text(admin.get("/t/acme/reservations/"))
    operator.post(f"{path}/restore", follow=True)
    approved = text(operator.post(f"{path}/approve", {}, follow=True))
    assert "is promised." in approved
    mine = text(admin.get("/t/acme/reservations/"))
    assert "1 reservation runs" in mine
    assert "of 90" in mine


def test_a_request_beyond_is_approved_only_with_a_reason(operator: Client, admin: Client, pool: Pool) -> None:
    admin.post("/t/acme/reservations/new", {"pool": "chat", "mu_per_min": "900"})
    path = f"/console/reservations/{Reservation.objects.get().pk}"
    answer = operator.post(f"{path}/approve", {})
    assert answer.status_code == 400
    assert "Short by 600 MU/min" in text(answer)
    operator.post(f"{path}/approve", {"override_reason": "They pay for a rack"})
    assert Reservation.objects.get().verdict == "short"


def test_change_renew_cancel_and_undo(operator: Client, pool: Pool, acme: Tenant) -> None:
    ends = timezone.now() + 10 * DAY
    row = reservation_sell(tenant=acme, pool=pool, mu_per_min=100.0, ends_at=ends, actor="t")
    path = f"/console/reservations/{row.pk}"
    day = ends.date().isoformat()
    same = {"mu_per_min": "100", "burst_mu": str(row.burst_mu), "ends_at": day, "note": "n"}
    assert "is changed." in text(operator.post(f"{path}/change", same, follow=True))
    row.refresh_from_db()
    assert (row.note, row.ends_at, row.state) == ("n", ends, "active")
    operator.post(f"{path}/change", {**same, "mu_per_min": "150"})
    new = Reservation.objects.get(renews=row)
    assert (new.mu_per_min, new.state, new.ends_at) == (150.0, "active", ends)
    path = f"/console/reservations/{new.pk}"
    assert "Short by" in text(operator.post(f"{path}/change", {**same, "mu_per_min": "950"}))
    assert "follows on" in text(operator.post(f"{path}/renew", {"accepted_factor": "1.0"}, follow=True))
    later = Reservation.objects.get(renews=new)
    assert (later.starts_at, later.ends_at, later.mu_per_min) == (ends, None, 150.0)
    page = operator.post(f"{path}/cancel", {"reason": "They moved"}, follow=True)
    assert "is cancelled." in text(page)
    undo = page.context["undo"]
    assert "is active again" in text(operator.post(undo["path"], dict(undo["fields"]), follow=True))
    new.refresh_from_db()
    assert (new.state, new.ends_at) == ("active", ends)
    assert AuditEntry.objects.filter(action__startswith="reservation.").count() >= 6


def test_conversion_shows_its_factor_and_takes_it(operator: Client, pool: Pool, acme: Tenant) -> None:
    from tests.capacity.test_reservations_changed import reprice

    row = reservation_sell(tenant=acme, pool=pool, mu_per_min=50.0, actor="t")
    reprice(pool, 2.0)
    path = f"/console/reservations/{row.pk}"
    page = text(operator.get(f"{path}/"))
    assert "Converted, it would be 100 MU/min." in page
    question = text(operator.get(f"{path}/convert"))
    assert "50 MU/min become 100 MU/min" in question
    refused = operator.post(f"{path}/convert", {"accepted_factor": "1.5"})
    assert "Accept the factor 2" in text(refused)
    assert refused.context["form"]["accepted_factor"].value() == pytest.approx(2.0)
    done = text(operator.post(f"{path}/convert", {"accepted_factor": "2.0"}, follow=True))
    assert "counts in version 2 from now on" in done
    assert Reservation.objects.get(renews=row).mu_per_min == pytest.approx(100.0)


# ----- the tenant's
def test_a_tenant_calculates_asks_and_takes_back(admin: Client, pool: Pool, acme: Tenant) -> None:
    assert "No reservation yet" in text(admin.get("/t/acme/reservations/"))
    part = text(
        admin.get(
            "/t/acme/reservations/new",
            {"pool": "chat", "input_tokens": "1000", "output_tokens": "100", "requests_per_min": "5"},
            headers={"HX-Request": "true"},
        )
    )
    assert "To reserve" in part
    assert "accelerator" not in part
    admin.post("/t/acme/reservations/new", {"pool": "chat", "input_tokens": "1000", "requests_per_min": "5"})
    row = Reservation.objects.get()
    assert (row.state, row.tenant) == ("requested", acme)
    assert "wait" in text(admin.get("/t/acme/reservations/"))
    assert "taken back" in text(admin.post(f"/t/acme/reservations/{row.pk}/withdraw", follow=True))
    again = text(admin.post(f"/t/acme/reservations/{row.pk}/withdraw", follow=True))
    assert "cannot be taken back" in again


def test_a_tenant_sees_no_pool_that_is_closed_to_it(admin: Client, pool: Pool) -> None:
    closed = selling.pool("Secret", is_public=False)
    assert "Secret" not in text(admin.get("/t/acme/reservations/new"))
    answer = admin.post("/t/acme/reservations/new", {"pool": closed.slug, "mu_per_min": "1"})
    assert answer.status_code == 400
    assert not Reservation.objects.exists()


# ----- the drawing
def piece(start: float, end: float | None, sold: float) -> Piece:
    return Piece(start, end, sold, 400.0, 300.0, 400.0, 4, 0, ())


def test_the_calendar_is_drawn_to_scale() -> None:
    day = 86_400.0
    plot = sales_plot(
        [piece(0, 10 * day, 100.0), piece(10 * day, None, 0.0)], since=0, until=40 * day, ask=(50.0, 0, None)
    )
    points = [tuple(map(float, point.split(","))) for point in plot.sold.split()]
    assert points[0][0] == points[1][0] == plot.left
    assert points[-1][0] == plot.right
    quarter = plot.left + (plot.right - plot.left) / 4
    assert points[2][0] == pytest.approx(quarter, abs=0.1)
    height = plot.bottom - plot.top
    assert points[1][1] == pytest.approx(plot.bottom - height * 100 / 400, abs=0.1)
    assert [tick.label for tick in plot.rates] == ["0", "100", "200", "300", "400"]
    assert plot.asked
    assert len(plot.rows) == 2
    assert horizon([None, 5 * day], now=0.0) == 30 * day
    assert horizon([1000 * day], now=0.0) == 400 * day
