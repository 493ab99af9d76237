"""Selling and asking from the command line, against the real API."""

from __future__ import annotations

import pytest

from capacity.models import Pool, Reservation
from tenants.models import User
from tests import selling
from tests.penstock.test_remote import Shell, people, shell, sign_in

pytestmark = pytest.mark.django_db(transaction=True)
__all__ = ("people", "shell")


@pytest.fixture
def pool(transactional_db: None) -> Pool:
    """300 MU/min of it can be sold."""
    selling.host("node-1")
    made = selling.pool("Chat")
    selling.serve(made, name="chat")
    return made


def test_sell_asks_first_and_then_promises(shell: Shell, people: dict[str, tuple[User, str]], pool: Pool) -> None:
    sign_in(shell, people, "operator")
    code, out, _ = shell("sell", "acme", "chat", "--mu-per-min", "100", "--dry-run")
    assert (code, out.startswith("100 MU/min fit:")) == (0, True)
    code, out, _ = shell("sell", "acme", "chat", "--mu-per-min", "500", "--dry-run")
    assert (code, out.startswith("Short by 200 MU/min")) == (1, True)
    assert not Reservation.objects.exists()
    made = shell.json("sell", "acme", "chat", "--mu-per-min", "100", "--price", "0.5", "--currency", "EUR")
    assert (made["state"], made["price"], made["tenant"]) == ("active", "0.500000", "acme")
    code, _, err = shell("sell", "acme", "chat", "--mu-per-min", "500")
    assert code == 1
    assert "Short by 300 MU/min" in err
    assert "override_reason" in err
    forced = shell.json("sell", "acme", "chat", "--mu-per-min", "500", "--override-reason", "a rack comes")
    assert forced["is_overcommitted"] is True


def test_requests_become_mu(shell: Shell, people: dict[str, tuple[User, str]], pool: Pool) -> None:
    sign_in(shell, people, "operator")
    shape = ("--input-tokens", "100", "--output-tokens", "10")
    found = shell.json("calculate", "chat", *shape, "--requests-per-min", "0.1")
    back = shell.json("calculate", "chat", *shape, "--mu-per-min", str(found["mu_per_min"]))
    assert back["requests_per_min"] == pytest.approx(0.1)
    assert "replicas" in found
    made = shell.json("sell", "acme", "chat", *shape, "--requests-per-min", "0.1")
    assert made["mu_per_min"] == pytest.approx(found["mu_per_min"])
    assert "say how much" in shell("sell", "acme", "chat")[2]
    assert "give a request" in shell("calculate", "chat")[2]
    sign_in(shell, people, "owner")
    assert "replicas" not in shell.json("calculate", "chat", *shape, "--mu-per-min", "1")


def test_a_request_from_the_wish_to_the_end(shell: Shell, people: dict[str, tuple[User, str]], pool: Pool) -> None:
    sign_in(shell, people, "owner")
    assert "nothing is sold or asked for" in shell("reservations", "list")[2]
    wish = shell.json("reservations", "request", "chat", "50", "--note", "For the shop")
    assert (wish["state"], wish["note"]) == ("requested", "For the shop")
    assert [row["id"] for row in shell.json("reservations", "list")] == [wish["id"]]
    other = shell.json("reservations", "request", "chat", "1")
    assert shell.json("reservations", "cancel", other["id"])["state"] == "cancelled"
    sign_in(shell, people, "operator")
    assert {row["tenant"] for row in shell.json("reservations", "list")} == {"acme"}
    assert shell.json("reservations", "approve", wish["id"])["state"] == "active"
    new = shell.json("reservations", "change", wish["id"], "--mu-per-min", "80")
    assert (new["mu_per_min"], new["renews"]) == (80.0, wish["id"])
    assert shell.json("reservations", "conversion", new["id"])["factor"] == 1.0
    assert shell.json("reservations", "cancel", new["id"], "--reason", "moved")["reason"] == "moved"
    assert shell.json("reservations", "restore", new["id"], "--ends-at", "")["state"] == "active"
    assert shell.json("reservations", "show", new["id"])["mu_per_min"] == 80.0
    assert len(shell.json("reservations", "list", "--state", "active", "--tenant", "acme")) == 1
