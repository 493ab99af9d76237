"""What tests of the operators' pages share."""

from __future__ import annotations

import re
from typing import Any

from django.test import Client

from tenants.models import AuditEntry


def text(answer: Any) -> str:
    return str(answer.content.decode())


def undo(client: Client, page: str) -> Any:
    """Press the button that takes the last act back, as it stands on ``page``."""
    offer = re.search(r'<form class="acts" method="post" action="([^"]+)">(.*?)</form>', page, re.S)
    assert offer is not None
    fields = dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', offer[2]))
    fields.pop("csrfmiddlewaretoken", None)
    return client.post(offer[1], fields, follow=True)


def acts(*names: str) -> list[str]:
    return list(AuditEntry.objects.filter(action__in=names).order_by("at", "id").values_list("action", flat=True))
