"""Limits of keys and members, prices in money, and reservations in a manifest, against the real API."""

from __future__ import annotations

from datetime import timedelta

import pytest
import yaml
from django.utils import timezone

from capacity.models import CostProfile, Pool, Reservation
from tenants.models import Limit, User
from tests import selling
from tests.penstock.test_remote import Shell, people, shell, sign_in

pytestmark = pytest.mark.django_db(transaction=True)
__all__ = ("people", "shell")

People = dict[str, tuple[User, str]]

LIMITS = """
tenants:
  - slug: acme
    keys: [{name: ci, scopes: [inference]}]
    limits:
      - {kind: mu_per_day, value: 900}
      - {kind: tokens_per_min, value: 5000, key: ci, model: chat}
      - {kind: money_per_month, value: 20, key: ci}
      - {kind: concurrency, value: 3, member: Owner@example.org}
"""


@pytest.fixture
def pool(transactional_db: None) -> Pool:
    """300 MU/min of it can be sold."""
    selling.host("node-1")
    made = selling.pool("Chat")
    selling.serve(made, name="chat")
    return made


def sold() -> list[Reservation]:
    return list(Reservation.objects.filter(state__in=("draft", "active")).order_by("starts_at"))


def test_limits_of_keys_and_members_go_round(shell: Shell, people: People) -> None:
    sign_in(shell, people, "operator")
    code, _, err = shell("apply", "-f", "-", stdin=LIMITS)
    assert code == 0, err
    found = {
        (one.kind, one.model, one.api_key and one.api_key.name, one.member and one.member.user.email, one.value)
        for one in Limit.objects.all()
    }
    assert found == {
        ("mu_per_day", "", None, None, 900),
        ("tokens_per_min", "chat", "ci", None, 5000),
        ("money_per_month", "", "ci", None, 20),
        ("concurrency", "", None, "owner@example.org", 3),
    }
    assert shell("apply", "-f", "-", stdin=LIMITS)[2].startswith("0 created, 0 changed, 6 as they were")
    out = shell("export", "tenants")[1]
    assert {"kind": "concurrency", "member": "owner@example.org", "set_by": "operator", "value": 3} in yaml.safe_load(
        out
    )["tenants"][0]["limits"]
    assert shell("apply", "-f", "-", stdin=out)[2].startswith("0 created, 0 changed")
    code, out, _ = shell("apply", "-f", "-", "--dry-run", stdin=LIMITS.replace("value: 3,", "value: 4,"))
    assert "~ limit acme/concurrency operator owner@example.org\n    value: 3 → 4" in out


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("{kind: concurrency, value: 1, key: gone}", "acme has no usable key that is called 'gone'"),
        ("{kind: concurrency, value: 1, member: x@y.example}", "x@y.example is no member of acme yet"),
        ("{kind: concurrency, value: 1, member: a@b.example, key: ci}", "of a key or of a member, not of both"),
    ],
)
def test_a_limit_of_nobody_is_refused(shell: Shell, people: People, limit: str, words: str) -> None:
    sign_in(shell, people, "operator")
    code, _, err = shell("apply", "-f", "-", stdin=f"tenants: [{{slug: acme, limits: [{limit}]}}]")
    assert (code, words in err) == (1, True), err
    assert not Limit.objects.exists()


def test_a_price_in_money_goes_round(shell: Shell, people: People, pool: Pool) -> None:
    sign_in(shell, people, "operator")
    wanted = "pools: [{slug: chat, price: {price_per_1000_mu: 2.5}}]"
    assert shell("apply", "-f", "-", stdin=wanted)[2].startswith("0 created, 1 changed")
    assert CostProfile.objects.filter(pool=pool).latest("version").price_per_1000_mu == 2.5
    out = shell("export", "pools")[1]
    assert yaml.safe_load(out)["pools"][0]["price"]["price_per_1000_mu"] == 2.5
    for same in (wanted, out):
        assert shell("apply", "-f", "-", stdin=same)[2].startswith("0 created, 0 changed")
    free = wanted.replace("2.5", "null")
    assert shell("apply", "-f", "-", stdin=free)[2].startswith("0 created, 1 changed")
    assert CostProfile.objects.filter(pool=pool).latest("version").price_per_1000_mu is None
    assert shell("apply", "-f", "-", stdin=free)[2].startswith("0 created, 0 changed")


def test_reservations_are_planned_sold_once_and_changed(shell: Shell, people: People, pool: Pool) -> None:
    sign_in(shell, people, "operator")
    ends = (timezone.now() + timedelta(days=30)).isoformat()
    soon = (timezone.now() + timedelta(days=2)).isoformat()
    text = f"""
reservations:
  - {{tenant: acme, pool: chat, mu_per_min: 100, ends_at: '{ends}', price: 0.5, currency: EUR, note: shop}}
  - {{tenant: acme, pool: chat, mu_per_min: 50, starts_at: '{soon}', note: nightly}}
"""
    code, out, err = shell("apply", "-f", "-", "--dry-run", stdin=text)
    assert (code, "100 MU/min fit:" in out, "2 to create" in err) == (0, True, True), out
    assert not Reservation.objects.exists()
    assert shell("apply", "-f", "-", stdin=text)[2].startswith("2 created")
    shop, nightly = sold()
    assert (shop.mu_per_min, str(shop.price), shop.state) == (100.0, "0.500000", "active")
    assert (nightly.mu_per_min, nightly.state) == (50.0, "draft")
    assert shell("apply", "-f", "-", stdin=text)[2].startswith("0 created, 0 changed, 2 as they were")
    exported = shell("export", "reservations")[1]
    assert [row["note"] for row in yaml.safe_load(exported)["reservations"]] == ["nightly", "shop"]
    assert shell("apply", "-f", "-", stdin=exported)[2].startswith("0 created, 0 changed, 2 as they were")
    more = text.replace("mu_per_min: 100", "mu_per_min: 150")
    assert shell("apply", "-f", "-", stdin=more)[2].startswith("0 created, 1 changed")
    assert sorted(one.mu_per_min for one in sold()) == [50.0, 150.0], "what ran has ended, and another follows it"
    assert shell("apply", "-f", "-", stdin=more)[2].startswith("0 created, 0 changed")
    assert sum(one.mu_per_min for one in sold()) == 200.0


def test_what_does_not_fit_is_refused_with_how_much_is_missing(shell: Shell, people: People, pool: Pool) -> None:
    sign_in(shell, people, "operator")
    text = "reservations: [{tenant: acme, pool: chat, mu_per_min: 500, note: big}]"
    code, out, _ = shell("apply", "-f", "-", "--dry-run", stdin=text)
    assert (code, "Short by 200 MU/min" in out) == (1, True), out
    code, _, err = shell("apply", "-f", "-", stdin=text)
    assert (code, "Short by 200 MU/min" in err) == (1, True), err
    assert not sold()
    forced = text.replace("note: big", "note: big, override_reason: a rack comes")
    assert shell("apply", "-f", "-", "--dry-run", stdin=forced)[0] == 0
    assert shell("apply", "-f", "-", stdin=forced)[0] == 0
    assert [one.is_overcommitted for one in sold()] == [True]
    assert shell("apply", "-f", "-", stdin=forced)[2].startswith("0 created, 0 changed")


def test_a_tenants_file_asks_and_an_operators_approves(shell: Shell, people: People, pool: Pool) -> None:
    text = "reservations: [{tenant: acme, pool: chat, mu_per_min: 40, note: shop}]"
    sign_in(shell, people, "owner")
    assert shell("apply", "-f", "-", stdin=text)[2].startswith("1 created")
    assert Reservation.objects.get().state == "requested"
    assert shell("apply", "-f", "-", stdin=text)[2].startswith("0 created, 0 changed")
    code, _, err = shell("apply", "-f", "-", stdin=text.replace("40", "60"))
    assert (code, "take that back" in err) == (1, True), err
    priced = text.replace("note: shop", "note: other, price: 1")
    assert "an operator says it when it is sold" in shell("apply", "-f", "-", stdin=priced)[2]
    sign_in(shell, people, "operator")
    assert shell("apply", "-f", "-", stdin=text)[2].startswith("0 created, 1 changed")
    assert Reservation.objects.get().state == "active"
    sign_in(shell, people, "owner")
    exported = shell("export")[1]
    assert yaml.safe_load(exported)["reservations"][0]["state"] == "sold"
    for same in (text, exported):
        assert shell("apply", "-f", "-", stdin=same)[2].startswith("0 created, 0 changed"), same
    sign_in(shell, people, "outsider")
    assert "reservations" not in yaml.safe_load(shell("export")[1])
    assert "no tenant is called 'acme'" in shell("apply", "-f", "-", stdin=text)[2]


def test_two_that_are_called_alike_are_told_apart_first(shell: Shell, people: People, pool: Pool) -> None:
    sign_in(shell, people, "operator")
    for _ in range(2):
        shell.json("sell", "acme", "chat", "--mu-per-min", "10")
    text = "reservations: [{tenant: acme, pool: chat, mu_per_min: 10}]"
    code, _, err = shell("apply", "-f", "-", stdin=text)
    assert (code, "give each a note of its own" in err) == (1, True), err
    assert "left out: give each a note" in shell("export", "reservations")[2]
    over = f"reservations: [{{tenant: acme, pool: chat, mu_per_min: 9, note: x, ends_at: '{timezone.now()}'}}]"
    assert shell("apply", "-f", "-", stdin=over)[2].startswith("0 created, 0 changed"), "it is over"
    assert "ISO time with its zone" in shell("apply", "-f", "-", stdin=over.replace("+00:00", ""))[2]
