"""``penstock invoices`` against the real API: previews, issuing, what was issued, and whether it holds."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from django.db.models import QuerySet
from django.utils import timezone

from capacity.models import BooksState, CostProfile
from capacity.usage.billing import begins, month_in
from capacity.usage.books import finalise_minutes
from capacity.usage.lines import Usage
from capacity.usage.writer import write_batch
from tenants.models import Tenant, User
from tests import factories
from tests.factories import Traffic, batch
from tests.penstock.test_remote import Shell, people, shell, sign_in

__all__ = ["people", "shell"]

pytestmark = pytest.mark.django_db(transaction=True)
MONTH = month_in(begins(month_in(timezone.now())) - datetime.timedelta(days=1))
NAME = f"{MONTH:%Y-%m}"


def test_a_month_from_its_preview_to_its_check(
    shell: Shell, people: dict[str, tuple[User, str]], tmp_path: Path
) -> None:
    pool = factories.pool(slug="chat")
    QuerySet(CostProfile).filter(pool=pool).update(price_per_1000_mu=4.0)
    price = CostProfile.objects.get(pool=pool)
    usage = Usage(output_tokens=5000)
    mu = price.base + price.beta * 5000 + price.gamma * 5000 * 2500
    of = Traffic(tenant=str(Tenant.objects.get(slug="acme").pk), pool=str(pool.pk))
    write_batch(batch(of.pair(begins(MONTH).timestamp() + 9, usage=usage, mu=mu), closed=True))
    finalise_minutes(timezone.now())
    BooksState.objects.update(guaranteed_until=BooksState.objects.get().final_until)

    sign_in(shell, people)
    assert "nothing was issued yet" in shell("invoices", "list")[2]
    assert "nothing was used or reserved in" in shell("invoice", "preview")[2]
    code, out, _ = shell("invoice", "preview", "--month", NAME)
    assert code == 0
    assert f"preview of {NAME}: no invoice, it can be issued" in out
    assert shell("invoice", "issue", "acme", NAME, "--yes")[0] == 1

    sign_in(shell, people, "operator")
    code, _, err = shell("invoice", "issue", "acme", NAME)
    assert (code, "Say --yes to do it without being asked" in err) == (1, True)
    made = shell.json("invoice", "issue", "acme", NAME, "--yes")
    assert made["name"] == "INV-000001"
    total = made["totals"]["USD"]
    assert any(line.split()[:2] == ["INV-000001", "acme"] for line in shell("invoices", "list")[1].splitlines())
    assert "nothing to invoice" in shell("invoices", "issue", "acme", "2020-01", "--yes")[2]
    # Operators who name no tenant see the requests of all, and find any by its id.
    (row,) = shell.json("usage", "list")
    assert shell.json("usage", "show", row["id"])["tenant_id"] == str(Tenant.objects.get(slug="acme").pk)
    assert shell.json("usage", "list", "--tenant", "acme")[0]["id"] == row["id"]

    sign_in(shell, people)
    code, out, _ = shell("invoices", "show", "INV-000001")
    assert f"total {total} USD" in out
    assert made["hash"] in out
    assert shell.json("invoices", "show", made["id"])["content"] == made["content"]
    kept = tmp_path / "usage.ndjson"
    code, out, err = shell("invoices", "verify", "--keep", str(kept))
    assert (code, err) == (0, "")
    assert any(line.split() == ["INV-000001", "invoice", NAME, total, "USD", "equal"] for line in out.splitlines())
    assert "1 of 1 invoices: all of it holds" in out
    told = total.encode()
    kept.write_bytes(kept.read_bytes().replace(b'"amount":"' + told, b'"amount":"1' + told, 1))
    code, out, _ = shell("usage", "verify", str(kept))
    assert code == 1
    assert "invoice at INV-000001: its hash is not of what it says" in out
    assert "off what the records come to" in out
