"""The guarantee pages, of operators and of a tenant: months, days, breach minutes, and where there is nothing yet."""

from __future__ import annotations

import datetime
import re

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from capacity.models import GuaranteeDay, GuaranteeMinute, Reservation
from tests.web.acting import text
from tests.web.seed import Seeded

Pages = tuple[str, str]


@pytest.fixture(params=["operator", "owner"])
def pages(request: pytest.FixtureRequest, client: Client, platform: Seeded) -> Pages:
    """The addresses of the list and of Northwind's reservation, for who is signed in."""
    row = platform.northwind.reservations.get(state="active")
    if request.param == "operator":
        client.force_login(platform.operator)
        return reverse("operators:guarantees"), reverse("operators:guarantee", args=[row.pk])
    client.force_login(platform.owner)
    return reverse("tenant-guarantees", args=["northwind"]), reverse("tenant-guarantee", args=["northwind", row.pk])


def breach_day() -> datetime.date:
    return GuaranteeDay.objects.filter(breach_minutes__gt=0).values_list("day", flat=True)[0]


def test_a_month_tells_what_was_kept_and_links_to_the_days(client: Client, platform: Seeded, pages: Pages) -> None:
    day = breach_day()
    page = text(client.get(pages[0], {"month": f"{day:%Y-%m}"}))
    assert ">9<span" in page
    assert f'href="{pages[1]}?month={day:%Y-%m}"' in page
    assert ("Alder Health" in page) == pages[0].startswith("/console/")


def test_days_have_their_breaches_drawn_and_listed(client: Client, platform: Seeded, pages: Pages) -> None:
    day = breach_day()
    page = text(client.get(pages[1], {"month": f"{day:%Y-%m}"}))
    assert '<rect class="breach" x="1152" width="9" height="10"/>' in page
    assert "9 breach minutes of 1440" in page
    assert "10 % of the month&#x27;s price below 99.9 % of minutes kept, 25 % below 99 %" in page
    assert page.count("throttled of 140 requests (tolerated: 0.01)") == 9
    assert re.search(r'href="/api/v1/[^"]*/minutes/export"', page)


def test_breach_minutes_come_in_pages(client: Client, platform: Seeded, pages: Pages) -> None:
    row = platform.northwind.reservations.get(state="active")
    noon = datetime.datetime.combine(breach_day(), datetime.time(3), datetime.UTC)
    moments = [noon + datetime.timedelta(minutes=number) for number in range(90)]
    GuaranteeMinute.objects.bulk_create(
        GuaranteeMinute(reservation=row, starts_at=at, is_breach=True, reason="slow") for at in moments
    )
    month = f"{noon:%Y-%m}"
    first = text(client.get(pages[1], {"month": month}))
    older = re.search(r'rel="next" href="\?([^"]*before=[^"]*)"', first)
    assert older
    second = text(client.get(f"{pages[1]}?{older[1].replace('&amp;', '&')}"))
    assert first.count("<code>") == second.count("<code>") == 0
    assert [page.count('class="full mid small"') for page in (first, second)] == [50, 49]
    assert "Newest" in second


@pytest.mark.parametrize("before", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "x", "2026-02-30"])
def test_a_place_in_the_list_that_is_none_is_its_begin(
    client: Client, platform: Seeded, pages: Pages, before: str
) -> None:
    assert client.get(pages[1], {"before": before}).status_code == 200


@pytest.mark.parametrize("month", ["2026-13", "x", "9999-12", "0001-01", ""])
def test_a_month_that_is_none_is_this_month(client: Client, platform: Seeded, pages: Pages, month: str) -> None:
    answer = client.get(pages[0], {"month": month})
    assert answer.status_code == 200
    if month != "0001-01":
        assert f'aria-current="true">{timezone.now():%Y-%m}<' in text(answer)


def test_before_anything_was_promised_the_page_says_so(client: Client, platform: Seeded, pages: Pages) -> None:
    GuaranteeMinute.objects.all().delete()
    GuaranteeDay.objects.all().delete()
    assert "Nothing to keep yet" in text(client.get(pages[0]))
    assert "Nothing was promised in" in text(client.get(pages[1]))


def test_another_tenants_reservation_is_not_found(client: Client, platform: Seeded) -> None:
    client.force_login(platform.owner)
    foreign = Reservation.objects.get(tenant=platform.alder, state="active")
    assert client.get(reverse("tenant-guarantee", args=["northwind", foreign.pk])).status_code == 404
