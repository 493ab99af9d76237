"""ETags: a version of an object that a change can insist on."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from rest_framework.request import Request

from tenants.api.problems import PreconditionFailed
from tenants.models import Identified


def etag_of(row: Identified) -> str:
    """Changes with every change of the row."""
    return f'"{row.pk.hex[-12:]}-{int(row.updated_at.timestamp() * 1_000_000):x}"'


def stated_version(request: Request) -> str:
    """What ``If-Match`` says; empty where nothing is stated."""
    return request.headers.get("If-Match", "").strip()


def require_version(request: Request, row: Identified) -> None:
    """Take the row's turn if it is still what ``If-Match`` names. Without the header there is nothing to check.

    Call it in the transaction of the change. Raises PreconditionFailed.
    """
    stated = stated_version(request)
    if not stated or stated == "*":
        return
    wanted = {tag.strip().removeprefix("W/") for tag in stated.split(",")}
    rows: Any = type(row)._default_manager.filter(pk=row.pk, updated_at=row.updated_at)
    if etag_of(row) not in wanted or not rows.update(updated_at=timezone.now()):
        raise PreconditionFailed
