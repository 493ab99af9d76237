"""What pages say of what is lent: of a reservation to its owner, and of a pool to operators."""

from __future__ import annotations

from django.test import Client

from capacity.models import Pool
from tenants.models import Tenant
from tests.web.acting import text
from tests.web.seed import Seeded


def test_an_owner_reads_how_fast_what_was_lent_comes_back(client: Client, platform: Seeded) -> None:
    client.force_login(platform.viewer)
    page = text(client.get(f"/t/{platform.northwind.slug}/limits/"))
    assert "What you do not use is lent, and back within" in page
    assert "What exceeds it is refused." not in page
    Tenant.objects.update(best_effort=False)
    assert "What exceeds it is refused." in text(client.get(f"/t/{platform.northwind.slug}/limits/"))
    Pool.objects.update(best_effort=False)
    page = text(client.get(f"/t/{platform.northwind.slug}/limits/"))
    assert "What you do not use is kept for you." in page
    assert "What exceeds it is refused." in page


def test_another_tenant_reads_nothing_of_it(client: Client, platform: Seeded) -> None:
    client.force_login(platform.stranger)
    assert client.get(f"/t/{platform.northwind.slug}/limits/").status_code in (403, 404)


def test_operators_read_it_beside_what_is_sold(as_operator: Client, platform: Seeded) -> None:
    address = f"/console/deployments/{platform.chat.pk}/"
    assert ", back within" in text(as_operator.get(address))
    Pool.objects.update(best_effort=False)
    assert ", not lent" in text(as_operator.get(address))
