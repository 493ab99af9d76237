"""What a tenant's member reads of a request in the console."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import httpx

from tests.e2e.stack import Stack, wait_for

MEMBER = """
import json
from tenants.models import Tenant
from tenants.services import membership_add, sign_in_link_create, user_create
tenant = Tenant.objects.get(pk="{tenant}")
user = user_create(email="reader-{tenant}@example.org", actor="a test")
membership_add(tenant=tenant, user=user, role="viewer", actor="a test")
print(json.dumps([tenant.slug, sign_in_link_create(user=user, actor=user)]))
"""


def usage_pages(stack: Stack, row: dict[str, Any]) -> tuple[str, float]:
    """The receipt of a stored request, whose model stands on the usage page, as its tenant's new viewer reads it.

    With the MU that it tells.
    """
    slug, link = json.loads(stack.manage(MEMBER.format(tenant=uuid.UUID(row["tenant_id"]))).splitlines()[-1])
    with httpx.Client(base_url=stack.console_url, follow_redirects=True, timeout=30) as browser:
        form = browser.get(f"/sign-in/link/{link}")
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form.text)
        assert token is not None, form.text
        browser.post(str(form.url), data={"csrfmiddlewaretoken": token[1]}, headers={"Referer": str(form.url)})
        usage, name = f"/t/{slug}/usage/", f"<b>{row['model']}</b>"
        wait_for(f"{row['model']} on the usage page", lambda: name in browser.get(usage).text, seconds=90)
        receipt = browser.get(f"{usage}{uuid.UUID(row['id'])}")
    assert receipt.status_code == 200
    actual = re.search(r'<td>Actual</td>.*?<td class="num">([\d.,]+)</td>', receipt.text)
    assert actual is not None, receipt.text
    return receipt.text, float(actual[1].replace(",", ""))
