"""How a promise is written: after the ledger's answer, with its audit entry, and told to gateways."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

from django.core.exceptions import ValidationError
from django.utils import timezone

from capacity.models import Reservation, ReservationGap
from capacity.policy.ledger import Answer, can_sell
from capacity.policy.stock import Stock, Term
from capacity.promises import term_of
from capacity.selectors import pools_usable, profile_in_force
from capacity.services.pools import bump
from capacity.services.sales import Sale, sell
from tenants.audit import Actor, audit, state_of
from tenants.changes import record_change
from tenants.models import User

State, Verdict = Reservation.State, Reservation.Verdict


def promise(
    row: Reservation,
    action: str,
    actor: Actor,
    override_reason: str,
    *,
    now: datetime.datetime,
    is_new: bool = False,
    instead_of: Reservation | None = None,
    lapsed_at: datetime.datetime | None = None,
) -> Reservation:
    """Ask the ledger for ``row`` and store it as promised. ``instead_of``: the same reservation, as it is stored.
    ``lapsed_at``: since when it has not been promised, though it had begun.

    Raises ValidationError by field and CannotSell.
    """
    _require_valid(row, override_reason)
    before = None if is_new else state_of(Reservation.objects.get(pk=row.pk))
    sale = sale_of(row, instead_of, now=now)

    def write(answer: Answer, stock: Stock) -> Reservation:
        # Here nobody can take the tenant off the pool's list any more: what is promised stands in the way.
        if not pools_usable(row.tenant).filter(pk=row.pool_id).exists():
            raise ValidationError({"pool": f"{row.tenant} may not use {row.pool}."})
        _decide(row, answer, actor, override_reason, now=now)
        if instead_of is not None and instead_of.is_overcommitted and answer.verdict == "fits":
            _keep_mark(row, instead_of, sale.ask, stock)
        row.state = State.ACTIVE if row.starts_at <= now else State.DRAFT
        if before is None:
            return insert(row, action, actor)
        if lapsed_at is not None and lapsed_at < now:
            ReservationGap.objects.create(reservation=row, since=lapsed_at, until=now)
        return save(row, action, actor, before, was=before["state"])

    return sell(sale, write, now=now, is_override=bool(override_reason.strip()))


def follow(
    stored: Reservation, row: Reservation, action: str, actor: Actor, override_reason: str, *, now: datetime.datetime
) -> Reservation:
    """End ``stored`` now and promise in its place a reservation with the terms of ``row``. What renewed ``stored``
    renews that from now on. Raises as ``promise``.
    """
    left_out = ("id", "created_at", "updated_at", "starts_at", "renews")
    columns = [field.attname for field in row._meta.concrete_fields if field.name not in left_out]
    follower = Reservation(starts_at=now, **{name: getattr(row, name) for name in columns})
    _require_valid(follower, override_reason)
    sale = sale_of(follower, stored, now=now)

    def write(answer: Answer, stock: Stock) -> Reservation:
        before, was = state_of(stored), stored.state
        stored.state, stored.ends_at = State.ENDED, now
        is_priced_anew = (follower.price, follower.currency) != (stored.price, stored.currency)
        price = f" at {follower.price_text or 'no price'} {follower.currency}".rstrip() if is_priced_anew else ""
        stored.reason = f"Its terms changed: {follower.mu_per_min:g} MU/min{price} from then on."
        save(stored, action, actor, before, was=was)
        _decide(follower, answer, actor, override_reason, now=now)
        if row.is_overcommitted and answer.verdict == "fits":
            _keep_mark(follower, row, sale.ask, stock)
        follower.state, follower.renews = State.ACTIVE, stored
        # One at a time renews another.
        renewed = Reservation.objects.filter(renews=stored).exclude(state__in=(State.CANCELLED, State.REFUSED))
        later = list(renewed.values_list("pk", flat=True))
        renewed.update(renews=None)
        made = insert(follower, action, actor)
        Reservation.objects.filter(pk__in=later).update(renews=made)
        return made

    return sell(sale, write, now=now, is_override=bool(override_reason.strip()))


def sale_of(row: Reservation, instead_of: Reservation | None = None, *, now: datetime.datetime) -> Sale:
    """What is asked of the ledger for ``row``, which takes the place of ``instead_of``."""
    price = profile_in_force(pool_id=row.pool_id, at=now)
    return Sale(row.pool, term_of(row, price), term_of(instead_of, price) if instead_of else None)


def insert(row: Reservation, action: str, actor: Actor) -> Reservation:
    """Store a new one. Raises ValidationError by field."""
    row.full_clean()
    row.save(force_insert=True)
    audit(actor=actor, action=action, target=row, tenant_id=row.tenant_id, after=state_of(row))
    record_change(kind="reservation", object_id=row.pk)
    return row


def save(row: Reservation, action: str, actor: Actor, before: dict[str, Any], *, was: str) -> Reservation:
    """Store what has changed of ``row``, if nobody changed it since it was read. Raises ValidationError."""
    row.full_clean()
    # The swap comes first: of two who decide at once, the second finds out.
    as_read = Reservation.objects.filter(pk=row.pk, state=was, updated_at=row.updated_at)
    if not as_read.update(updated_at=timezone.now()):
        raise ValidationError("Somebody decided about it at the same moment: look at it again.")
    row.save(force_update=True)
    after = state_of(row)
    if before != after:
        audit(actor=actor, action=action, target=row, tenant_id=row.tenant_id, before=before, after=after)
    if was in Reservation.PROMISED and not row.is_promised:
        bump(row.pool)
    record_change(kind="reservation", object_id=row.pk)
    return row


def name_of(actor: Actor) -> str:
    """As rows name who acted."""
    return (actor.email if isinstance(actor, User) else actor)[:200]


def _decide(row: Reservation, answer: Answer, actor: Actor, override_reason: str, *, now: datetime.datetime) -> None:
    row.verdict = Verdict(answer.verdict)
    row.override_reason = override_reason.strip() if row.verdict != Verdict.FITS else ""
    row.decided_by, row.decided_at = name_of(actor), now


def _keep_mark(row: Reservation, earlier: Reservation, ask: Term, stock: Stock) -> None:
    """What was overcommitted stays marked, although no more is asked now, until all of it fits."""
    others = tuple(term for term in stock.pool.sold if term.id != str(earlier.pk))
    if can_sell(replace(stock, pool=replace(stock.pool, sold=others)), ask).verdict != "fits":
        row.verdict, row.override_reason = earlier.verdict, earlier.override_reason


def _require_valid(row: Reservation, override_reason: str) -> None:
    """Raises ValidationError by field. What the ledger will say is not known yet."""
    if len(override_reason.strip()) > 500:
        raise ValidationError({"override_reason": "Give at most 500 characters."})
    row.full_clean(exclude=("verdict", "override_reason", "state", "reason"))
