"""``penstock usage verify`` against the real API: what holds, what does not, and files that are kept."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from capacity.models import CostProfile
from capacity.usage.chain import anchors_take
from capacity.usage.lines import Usage
from capacity.usage.writer import write_batch
from tenants.models import Tenant, User
from tests import factories
from tests.factories import Traffic, batch
from tests.penstock.test_remote import Shell, people, shell, sign_in

__all__ = ["people", "shell"]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def booked(people: dict[str, tuple[User, str]]) -> Traffic:
    """Three requests of acme, priced by hand: base and so much an output token."""
    pool = factories.pool(slug="chat")
    price = CostProfile.objects.get(pool=pool)
    traffic = Traffic(tenant=str(Tenant.objects.get(slug="acme").pk), pool=str(pool.pk))
    mu = price.base + 10 * price.beta + price.gamma * 10 * 5
    usage = Usage(output_tokens=10)
    write_batch(batch(*(traffic.pair(time.time() - 60 + second, mu=mu, usage=usage) for second in range(3))))
    anchors_take(now=timezone.now())
    return traffic


def test_it_holds_and_says_what_was_billed(shell: Shell, people: dict[str, tuple[User, str]], booked: Traffic) -> None:
    sign_in(shell, people)
    code, out, err = shell("usage", "verify")
    assert (code, err) == (0, "")
    assert "3 records of acme up to 3" in out
    assert "1 anchors" in out
    assert "all of it holds" in out
    assert any(line.split()[:4] == ["chat", "1", "best_effort", "3"] for line in out.splitlines())
    told = shell.json("usage", "verify")
    assert (told["holds"], told["records"], told["billed"][0]["output_tokens"]) == (True, 3, 30)


def test_a_file_that_was_kept_is_checked_without_the_installation(
    shell: Shell, people: dict[str, tuple[User, str]], booked: Traffic, tmp_path: Path
) -> None:
    sign_in(shell, people)
    kept, anchors = tmp_path / "usage.ndjson", tmp_path / "anchors.json"
    assert shell("usage", "verify", "--keep", str(kept))[0] == 0
    anchors.write_text(shell("anchors", "list", "--json")[1])
    shell("logout")
    code, out, _ = shell("usage", "verify", str(kept), "--anchors", str(anchors))
    assert (code, "2 anchors" in out) == (0, True)
    kept.write_bytes(kept.read_bytes().replace(b'"output_tokens":10', b'"output_tokens":11', 1))
    code, out, err = shell("usage", "verify", str(kept))
    assert code == 1
    assert "chain at 1: request " in out
    assert "price at 1: request " in out
    assert "2 things do not hold" in err


def test_books_that_were_changed_do_not_hold(
    shell: Shell, people: dict[str, tuple[User, str]], booked: Traffic
) -> None:
    sign_in(shell, people)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE capacity_usagerecord SET actual_mu = actual_mu / 2 WHERE chain_sequence = 2")
    code, out, _ = shell("usage", "verify", "--json")
    assert code == 1
    told = json.loads(out)
    assert [(row["what"], row["where"]) for row in told["findings"]] == [("chain", "2"), ("price", "2")]


def test_what_cannot_be_checked_is_said_in_one_line(
    shell: Shell, people: dict[str, tuple[User, str]], tmp_path: Path
) -> None:
    (tmp_path / "poem").write_text("roses are red\n")
    for words, said in (
        ((str(tmp_path / "poem"),), "this is no usage file"),
        ((str(tmp_path / "nowhere"),), "cannot be read"),
        ((str(tmp_path / "poem"), "--since", "2026-11-20"), "is checked as it is"),
        (("--anchors", str(tmp_path / "poem")), "holds no anchors"),
    ):
        code, _, err = shell("usage", "verify", *words)
        assert code == 1
        assert said in err
        assert "Traceback" not in err
    sign_in(shell, people)
    assert "date" in shell("usage", "verify", "--since", "soon")[2].lower()
