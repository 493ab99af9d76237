"""Reservations: asked for, sold, changed, renewed, and cancelled. Each promise is asked of the ledger first; what the
passing of time does to them is in ``reservation_times``."""

import datetime
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypedDict, Unpack

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from capacity.models import CostProfile, Pool, Reservation
from capacity.policy.calculator import default_burst
from capacity.promises import conversion_of
from capacity.selectors import pools_usable, profile_in_force
from capacity.services.promising import follow, insert, name_of, promise, save
from capacity.usage.reads import terms_of
from tenants.audit import Actor, state_of
from tenants.models import Tenant

State = Reservation.State
_LATE = datetime.timedelta(minutes=5)
"""A start may lie so far back: forms are filled in for a while. It is now, then."""
_OF_A_TERM = ("mu_per_min", "burst_mu", "price", "currency")
"""What holds for the whole of a reservation that has begun: guarantees and invoices are told of it afterwards."""
_CLOSE = 1e-6
"""Two bursts that differ by no more, as a share of one, are one burst."""
_SHOWN = 0.02
"""So far, as a share of it, a factor may have moved since it was shown: usage goes on while somebody makes up their
mind, and what was accepted holds."""
_CANCELLED = "Cancelled before its end."
"""What stands where nobody gave a reason: what ended in its time has none."""


MOST_REQUESTED = 50
"""Requests of one tenant that wait for a decision at once: operators read them."""


class Unsaid:
    """Stands for an end that nobody has named: None is none."""


UNSAID = Unsaid()


class Terms(TypedDict, total=False):
    """What can be said of a reservation beside how much and when.

    ``burst_mu`` None: 10 s of the rate, and at least the largest request. ``price`` is money per MU/min and month, in
    ``currency`` (ISO 4217); ``note`` says what it is for.
    """

    burst_mu: float | None
    price: Decimal | None
    currency: str
    note: str


class Change(Terms, total=False):
    """What ``reservation_change`` can change. ``starts_at`` only of what has not started."""

    mu_per_min: float
    starts_at: datetime.datetime
    ends_at: datetime.datetime | None


@transaction.atomic
def reservation_request(
    *,
    tenant: Tenant,
    pool: Pool,
    mu_per_min: float,
    actor: Actor,
    starts_at: datetime.datetime | None = None,
    ends_at: datetime.datetime | None = None,
    note: str = "",
) -> Reservation:
    """A tenant's wish for MU/min of a pool. It promises nothing until an operator approves it.

    Raises ValidationError by field, also for a pool that the tenant may not use; and where ``MOST_REQUESTED`` of the
    tenant's wait already.
    """
    if Reservation.objects.filter(tenant=tenant, state=State.REQUESTED).count() >= MOST_REQUESTED:
        raise ValidationError(
            f"{MOST_REQUESTED} requests wait for a decision already: take one back, or ask an operator to decide."
        )
    row = _new(tenant, pool, mu_per_min, starts_at, ends_at, {"note": note}, now=timezone.now())
    row.state, row.requested_by = State.REQUESTED, name_of(actor)
    return insert(row, "reservation.request", actor)


def reservation_sell(
    *,
    tenant: Tenant,
    pool: Pool,
    mu_per_min: float,
    actor: Actor,
    starts_at: datetime.datetime | None = None,
    ends_at: datetime.datetime | None = None,
    override_reason: str = "",
    **terms: Unpack[Terms],
) -> Reservation:
    """Promise MU/min of ``pool`` to ``tenant``. Raises ValidationError by field and CannotSell.

    With an ``override_reason`` it is promised although it does not fit: it stays marked as overcommitted.
    """
    now = timezone.now()
    row = _new(tenant, pool, mu_per_min, starts_at, ends_at, terms, now=now)
    row.requested_by = ""
    return promise(row, "reservation.sell", actor, override_reason, now=now, is_new=True)


def reservation_approve(
    *, reservation: Reservation, actor: Actor, override_reason: str = "", **terms: Unpack[Terms]
) -> Reservation:
    """Promise what was asked for; one whose start has passed starts now. Raises as ``reservation_sell`` does."""
    now = timezone.now()
    row = _in_state(reservation, State.REQUESTED, what="approved")
    row.starts_at = max(row.starts_at, now)
    if row.ends_at is not None and row.ends_at <= now:
        raise ValidationError({"ends_at": "Its time is over: refuse it, or sell one for another time."})
    row.credit_tiers = row.pool.credit_tiers
    _set_terms(row, terms)
    return promise(row, "reservation.approve", actor, override_reason, now=now)


@transaction.atomic
def reservation_refuse(*, reservation: Reservation, actor: Actor, reason: str) -> Reservation:
    """Decline what was asked for; the tenant reads the reason. Raises ValidationError."""
    row = _in_state(reservation, State.REQUESTED, what="refused")
    before = state_of(row)
    row.state, row.reason = State.REFUSED, reason.strip()
    row.decided_by, row.decided_at = name_of(actor), timezone.now()
    return save(row, "reservation.refuse", actor, before, was=State.REQUESTED)


@transaction.atomic
def reservation_withdraw(*, reservation: Reservation, actor: Actor) -> Reservation:
    """Take a request back that nobody has decided about. Raises ValidationError for one that somebody has."""
    row = _in_state(reservation, State.REQUESTED, what="taken back: ask an operator to end what is sold")
    before = state_of(row)
    row.state = State.CANCELLED
    return save(row, "reservation.withdraw", actor, before, was=State.REQUESTED)


@transaction.atomic
def reservation_cancel(*, reservation: Reservation, actor: Actor, reason: str = "") -> Reservation:
    """Take a request back, or end a promise: one that has begun ends now, and what it promised so far stays on record.

    Raises ValidationError for what is over.
    """
    now = timezone.now()
    row = _in_state(reservation, State.REQUESTED, State.DRAFT, State.ACTIVE, what="cancelled")
    before, was = state_of(row), row.state
    row.reason = reason.strip()
    if row.is_promised and row.starts_at < now:
        row.state, row.reason = State.ENDED, row.reason or _CANCELLED
        # One whose time was over has promised nothing since, though nobody has moved its state yet.
        row.ends_at = min(now, row.ends_at or now)
    else:
        row.state = State.CANCELLED
    return save(row, "reservation.cancel", actor, before, was=was)


def reservation_restore(
    *,
    reservation: Reservation,
    actor: Actor,
    ends_at: datetime.datetime | Unsaid | None = UNSAID,
    override_reason: str = "",
) -> Reservation:
    """Take a refusal or a cancellation back. What was promised is asked of the ledger again; ``ends_at`` must be given
    of what had begun, since its end was moved to the moment it was cancelled; what lies between promises nothing.
    Raises as ``reservation_sell`` does.
    """
    now = timezone.now()
    row = _in_state(reservation, State.REFUSED, State.CANCELLED, State.ENDED, what="restored")
    was_promised = row.state == State.ENDED or bool(row.verdict)
    lapsed_at = row.ends_at if row.state == State.ENDED else None
    if row.state == State.ENDED:
        if not row.reason:
            raise ValidationError("It ended because its time was over: renew it, or sell another.")
        followers = row.renewals.exclude(state__in=(State.CANCELLED, State.REFUSED))
        if any(follower.starts_at == row.ends_at for follower in followers):
            raise ValidationError("Its terms changed, and another reservation follows it: change that one.")
        if isinstance(ends_at, Unsaid):
            told = "Its end was moved when it was cancelled: say until when it holds, or null for no end."
            raise ValidationError({"ends_at": told})
        row.ends_at = ends_at
    if row.ends_at is not None and row.ends_at <= now:
        raise ValidationError({"ends_at": "Its time is over: sell one for another time."})
    if was_promised:
        row.reason = ""
        if row.state == State.CANCELLED:
            # It never began: what has passed of it meanwhile was promised to nobody.
            row.starts_at = max(row.starts_at, now)
        return promise(row, "reservation.restore", actor, override_reason, now=now, lapsed_at=lapsed_at)
    with transaction.atomic():
        before, was = state_of(row), row.state
        row.state, row.reason, row.decided_by, row.decided_at = State.REQUESTED, "", "", None
        return save(row, "reservation.restore", actor, before, was=was)


def reservation_change(
    *, reservation: Reservation, actor: Actor, override_reason: str = "", **change: Unpack[Change]
) -> Reservation:
    """Another size, end, burst, price or note; more than was promised is asked of the ledger.

    Of one that has begun, another rate, burst or price ends the old terms now and begins new ones, in a reservation
    that follows it: what was promised when stays on record. Returns the one that holds from now on. Raises as
    ``reservation_sell`` does.
    """
    now = timezone.now()
    stored = _promised(reservation, what="changed", now=now)
    row = _promised(reservation, what="changed", now=now)
    has_begun = stored.starts_at <= now
    if has_begun and change.get("starts_at", stored.starts_at) != stored.starts_at:
        raise ValidationError({"starts_at": "It has begun: its start cannot be moved."})
    for name in ("mu_per_min", "starts_at", "ends_at"):
        if name in change:
            setattr(row, name, change[name])
    _check_times(row, now=now, is_start_new=not has_begun and "starts_at" in change)
    if "mu_per_min" in change and "burst_mu" not in change and _has_default_burst(stored):
        change["burst_mu"] = None
    _set_terms(row, change)
    if has_begun and any(getattr(row, name) != getattr(stored, name) for name in _OF_A_TERM):
        return follow(stored, row, "reservation.change", actor, override_reason, now=now)
    return promise(row, "reservation.change", actor, override_reason, now=now, instead_of=stored)


def reservation_renew(
    *,
    reservation: Reservation,
    actor: Actor,
    ends_at: datetime.datetime | None = None,
    mu_per_min: float | None = None,
    accepted_factor: float | None = None,
    override_reason: str = "",
    **terms: Unpack[Terms],
) -> Reservation:
    """Promise the same for a further term, from its end on, in the version of the price that is in force by now.

    Where that is another one, its MU are multiplied by the conversion's factor (``capacity.promises.conversion_of``),
    which must be given as ``accepted_factor``; ``mu_per_min`` is in the new version. Raises as ``reservation_sell``.
    """
    now = timezone.now()
    stored = _promised(reservation, what="renewed", now=now)
    if stored.ends_at is None:
        raise ValidationError("It has no end, so there is nothing to renew: change or convert it.")
    price, factor = _accepted(stored, accepted_factor, now=now)
    row = Reservation(
        tenant=stored.tenant,
        pool=stored.pool,
        profile=price,
        mu_per_min=stored.mu_per_min * factor if mu_per_min is None else mu_per_min,
        starts_at=stored.ends_at,
        ends_at=ends_at,
        price=stored.price,
        currency=stored.currency,
        credit_tiers=stored.pool.credit_tiers,
        note=stored.note,
        renews=stored,
    )
    _set_terms(row, {"burst_mu": None, **terms})
    return promise(row, "reservation.renew", actor, override_reason, now=now, is_new=True)


def reservation_convert(
    *, reservation: Reservation, actor: Actor, accepted_factor: float, override_reason: str = ""
) -> Reservation:
    """Count the reservation in the price in force from now on: as many MU more or fewer as the accepted factor says.

    Raises as ``reservation_sell`` does, and ValidationError where it counts in that version already.
    """
    now = timezone.now()
    stored = _promised(reservation, what="converted", now=now)
    row = _promised(reservation, what="converted", now=now)
    price, factor = _accepted(stored, accepted_factor, now=now)
    if price.pk == stored.profile_id:
        raise ValidationError(f"It counts in version {price.version} of the price already, which is in force.")
    row.profile, row.mu_per_min, row.burst_mu = price, stored.mu_per_min * factor, stored.burst_mu * factor
    if stored.starts_at <= now:
        return follow(stored, row, "reservation.convert", actor, override_reason, now=now)
    return promise(row, "reservation.convert", actor, override_reason, now=now, instead_of=stored)


def _new(
    tenant: Tenant,
    pool: Pool,
    mu_per_min: float,
    starts_at: datetime.datetime | None,
    ends_at: datetime.datetime | None,
    terms: Terms,
    *,
    now: datetime.datetime,
) -> Reservation:
    """A reservation that is not stored yet, in the price in force. Raises ValidationError by field."""
    price = profile_in_force(pool_id=pool.pk, at=now)
    if price is None:
        raise ValidationError({"pool": f"{pool} has no price yet: give it one, then sell."})
    if not Pool.objects.filter(pk=pool.pk).exists():
        raise ValidationError({"pool": f"{pool} has been removed."})
    if not pools_usable(tenant).filter(pk=pool.pk).exists():
        raise ValidationError({"pool": f"{tenant} may not use {pool}."})
    row = Reservation(
        tenant=tenant,
        pool=pool,
        profile=price,
        mu_per_min=mu_per_min,
        starts_at=starts_at or now,
        ends_at=ends_at,
        credit_tiers=pool.credit_tiers,
    )
    _check_times(row, now=now, is_start_new=True)
    _set_terms(row, {"burst_mu": None, **terms})
    return row


def _check_times(row: Reservation, *, now: datetime.datetime, is_start_new: bool) -> None:
    """Raises ValidationError by field. A new start that has just passed becomes now."""
    if is_start_new:
        if row.starts_at < now - _LATE:
            raise ValidationError({"starts_at": "It cannot start in the past: leave it empty to start now."})
        row.starts_at = max(row.starts_at, now)
    if row.ends_at is not None and row.ends_at <= max(now, row.starts_at):
        raise ValidationError({"ends_at": "It must end after it starts, and after now."})


def _set_terms(row: Reservation, terms: Mapping[str, Any]) -> None:
    if "price" in terms:
        row.price = terms["price"]
    if "currency" in terms:
        row.currency = terms["currency"].strip().upper()
    if "note" in terms:
        row.note = terms["note"].strip()
    if "burst_mu" in terms:
        burst = terms["burst_mu"]
        row.burst_mu = _default_burst(row) if burst is None else burst


def _default_burst(row: Reservation) -> float:
    context = row.pool.model.context_tokens
    return default_burst(terms_of(row.profile), mu_per_min=row.mu_per_min, context_tokens=context)


def _has_default_burst(row: Reservation) -> bool:
    return abs(row.burst_mu - _default_burst(row)) <= _CLOSE * row.burst_mu


def _in_state(reservation: Reservation, *states: Reservation.State, what: str) -> Reservation:
    """The reservation as it is stored. Raises ValidationError unless it is in one of ``states``."""
    row = Reservation.objects.select_related("tenant", "pool__model", "profile").get(pk=reservation.pk)
    if row.state not in states:
        raise ValidationError(f"It is {State(row.state).label.lower()}: it cannot be {what}.")
    return row


def _promised(reservation: Reservation, *, what: str, now: datetime.datetime) -> Reservation:
    """The reservation as it is stored. Raises ValidationError unless it is promised now, or will be."""
    row = _in_state(reservation, State.DRAFT, State.ACTIVE, what=what)
    if row.ends_at is not None and row.ends_at <= now:
        raise ValidationError(f"Its time is over: it cannot be {what}. Sell another.")
    return row


def _accepted(row: Reservation, accepted_factor: float | None, *, now: datetime.datetime) -> tuple[CostProfile, float]:
    """The price in force and the factor that was accepted. Raises ValidationError at ``accepted_factor`` unless it is
    the one to it.
    """
    price, conversion = conversion_of(row, at=now)
    factor = conversion.factor
    if conversion.basis == "same":
        return price, 1.0
    if accepted_factor is None or not abs(accepted_factor - factor) <= _SHOWN * factor:
        told = f"Version {price.version} of the price is in force: {conversion.reason}."
        raise ValidationError(
            {"accepted_factor": f"{told} Accept the factor {factor:.6g}, and the reservation is multiplied by it."}
        )
    return price, accepted_factor
