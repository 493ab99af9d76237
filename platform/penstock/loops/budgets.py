"""Tells the state what the books have of each budget's day or month, so that whoever lost it counts from there.

A budget that is set in the middle of its period counts what was used before, too.
"""

from __future__ import annotations

import redis
from django.db.models import Count, Max

from capacity.models import BooksState
from penstock.budgets import spent
from serving.gateway.state import run_script, script
from serving.policy import budgets
from tenants.models import Limit
from tenants.policy.limits import BUDGETS

TOLD = "penstock:budgets:told"
_TOLD_S = 600
_SCRIPT = script("budgets")
_KEPT_S = 86_400.0
_CHUNK = 200


def is_news(client: redis.Redis) -> bool:
    """Whether the state is to be told anything. Reads only."""
    return _news(client)[0] is not None


def _news(client: redis.Redis) -> tuple[BooksState | None, str]:
    """The books, where the state was not told of them as they are, or of the budgets; and what marks that it was."""
    seen = Limit.objects.filter(kind__in=BUDGETS).aggregate(count=Count("pk"), last=Max("updated_at"))
    books = BooksState.objects.filter(pk=1).exclude(final_until=None).first() if seen["count"] else None
    if books is None or books.final_until is None:
        return None, ""
    mark = f"{books.final_until.timestamp():.0f} {books.late_records} {seen['count']} {seen['last']}"
    return (None if client.get(TOLD) == mark.encode() else books), mark


def tell_budgets(client: redis.Redis, *, now: float) -> int:
    """Tell what the books have up to their last final minute, unless that was told; how many periods were."""
    books, mark = _news(client)
    if books is None or books.final_until is None:
        return 0
    until = budgets.minute_of(books.final_until.timestamp())
    found = list(spent(Limit.objects.filter(kind__in=BUDGETS).select_related("member"), books.final_until, now=now))
    for start in range(0, len(found), _CHUNK):
        part = found[start : start + _CHUNK]
        arguments: list[str] = []
        for one in part:
            arguments += [repr(one.amount), str(until), f"{(one.ends_at - now + _KEPT_S) * 1000:.0f}"]
        run_script(client, _SCRIPT, [f"penstock:budget:{one.id}" for one in part], arguments)
    client.set(TOLD, mark, ex=_TOLD_S)
    return len(found)
