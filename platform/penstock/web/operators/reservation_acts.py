"""What is done with a reservation: decided upon, changed, renewed, converted, ended. Each says what will happen."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.urls import reverse
from django.utils import timezone

from capacity.models import Reservation
from capacity.policy.guarantee import words_of_tiers
from capacity.promises import conversion_of
from capacity.services import (
    CannotSell,
    reservation_approve,
    reservation_cancel,
    reservation_change,
    reservation_convert,
    reservation_refuse,
    reservation_renew,
    reservation_restore,
)
from capacity.stocks import stock_of
from penstock.web.access import UserRequest
from penstock.web.moments import read_moment
from penstock.web.operators.forms import PageForm
from penstock.web.operators.frame import act, ask, done, form_page, refused
from penstock.web.operators.reservation_forms import (
    ApproveForm,
    ChangeForm,
    ConvertForm,
    ReasonForm,
    RefuseForm,
    RenewForm,
    fitting,
)
from penstock.web.operators.reservations import CURRENT, answer_for, find, path_of

State = Reservation.State


@form_page
def approve(request: UserRequest, reservation_id: UUID) -> HttpResponse:
    """Promise what was asked for. The ledger's answer stands above the button."""
    row, now = find(reservation_id), timezone.now()
    form = _form(request, ApproveForm)
    made = form.attempt(fitting(lambda given: reservation_approve(reservation=row, actor=request.user, **given)))
    if made is not None:
        return done(request, f"{_named(made)} is promised.", path_of(made))
    answer = answer_for(row, stock_of(row.pool, now=now), now=now)
    effects = [
        f"{row.tenant} gets {_mu(row.mu_per_min)} MU/min of {row.pool} guaranteed, {_span(row, now)}.",
        answer.reason if answer else "Its time is over: refuse it, or sell one for another time.",
        "The scale loop keeps the replicas warm that it needs, from its start on.",
        "Cancel takes it back: gateways know within two seconds.",
    ]
    return _asked(request, row, f"Approve {_named(row)}?", effects, "Approve", form)


@form_page
def refuse(request: UserRequest, reservation_id: UUID) -> HttpResponse:
    """Decline what was asked for."""
    row = find(reservation_id)
    form = _form(request, RefuseForm)
    made = form.attempt(lambda given: reservation_refuse(reservation=row, actor=request.user, **given))
    if made is not None:
        undo = reverse("operators:reservation-restore", args=[made.pk])
        return done(request, f"The request of {row.tenant} is refused.", path_of(made), undo=undo)
    effects = ["The tenant sees that it is refused, and why.", "Nothing was promised, so nothing else changes."]
    return _asked(request, row, f"Refuse {_named(row)}?", effects, "Refuse", form)


@form_page
def change(request: UserRequest, reservation_id: UUID) -> HttpResponse:
    """Another size, time, burst, price or note."""
    row, now = find(reservation_id), timezone.now()
    form = ChangeForm(request.POST) if request.method == "POST" else ChangeForm(initial=_terms(row))
    has_begun = row.starts_at <= now
    if has_begun:
        del form.fields["starts_at"]
    made = form.attempt(fitting(lambda given: _change(request, row, given))) if form.is_bound else None
    if made is not None:
        return done(request, f"{_named(made)} is changed.", path_of(made))
    effects = [
        "More than is promised now is asked of the ledger again: what does not fit is refused.",
        "Another size, burst or price ends it now and begins a new one in its place: what was promised when stays."
        if has_begun
        else "It has not started: it is changed in place.",
    ]
    return _asked(request, row, f"Change {_named(row)}", effects, "Save", form)


def _change(request: UserRequest, row: Reservation, given: dict[str, Any]) -> Reservation:
    """Only what differs is a change: days stand for their first moment, and an end has a time of its own."""
    before = _terms(row)
    reason = given.pop("override_reason")
    changed: dict[str, Any] = {name: value for name, value in given.items() if _plain(value) != _plain(before[name])}
    return reservation_change(reservation=row, actor=request.user, override_reason=reason, **changed)


@form_page
def cancel(request: UserRequest, reservation_id: UUID) -> HttpResponse:
    """Take a request back, or end a promise."""
    row, now = find(reservation_id), timezone.now()
    form = _form(request, ReasonForm)
    ends_at = row.ends_at
    made = form.attempt(lambda given: reservation_cancel(reservation=row, actor=request.user, **given))
    if made is not None:
        undo = reverse("operators:reservation-restore", args=[made.pk])
        fields = {"ends_at": ends_at.isoformat() if ends_at else ""}
        return done(request, f"{_named(made)} is cancelled.", path_of(made), undo=undo, fields=fields)
    runs = row.is_promised and row.starts_at <= now
    effects = [
        "It ends now: within two seconds the tenant’s requests are best-effort."
        if runs
        else "It never starts, and what it would have taken can be sold again.",
        "Replicas that were kept warm for it may be let go.",
        "What it promised so far stays on record." if runs else "It stays on record as cancelled.",
        "Undo asks the ledger again: it works as long as nobody else has bought the room.",
    ]
    return _asked(request, row, f"Cancel {_named(row)}?", effects, "Cancel it", form)


@act
def restore(request: UserRequest, reservation_id: UUID) -> HttpResponse:
    """Take a refusal or a cancellation back."""
    row = find(reservation_id)
    try:
        made = reservation_restore(
            reservation=row, actor=request.user, ends_at=read_moment(request.POST.get("ends_at", ""))
        )
    except (ValidationError, CannotSell) as error:
        return refused(request, error if isinstance(error, ValidationError) else str(error), path_of(row))
    return done(request, f"{_named(made)} is {State(made.state).label.lower()} again.", path_of(made))


@form_page
def renew(request: UserRequest, reservation_id: UUID) -> HttpResponse:
    """A further term from its end on, in the version of the price in force."""
    row, now = find(reservation_id), timezone.now()
    _, conversion = conversion_of(row, at=now)
    form = _form(request, RenewForm, {"accepted_factor": conversion.factor})
    made = form.attempt(fitting(lambda given: reservation_renew(reservation=row, actor=request.user, **given)))
    if made is not None:
        return done(request, f"{_named(made)} follows on. To take it back, cancel it.", path_of(made))
    _show_factor(form, conversion.factor)
    effects = [f"A new reservation follows on {_on(row.ends_at)}, on the same terms.", *_conversion_words(row, now)]
    if row.credit_tiers != row.pool.credit_tiers:
        effects.append(f"Its credits are those of the pool by now: {words_of_tiers(row.pool.credit_tiers)}.")
    return _asked(request, row, f"Renew {_named(row)}?", effects, "Renew", form)


@form_page
def convert(request: UserRequest, reservation_id: UUID) -> HttpResponse:
    """Count it in the version of the price in force from now on."""
    row, now = find(reservation_id), timezone.now()
    _, conversion = conversion_of(row, at=now)
    form = _form(request, ConvertForm, {"accepted_factor": conversion.factor})
    made = form.attempt(fitting(lambda given: reservation_convert(reservation=row, actor=request.user, **given)))
    if made is not None:
        return done(request, f"{_named(made)} counts in version {made.profile.version} from now on.", path_of(made))
    _show_factor(form, conversion.factor)
    return _asked(request, row, f"Convert {_named(row)}?", _conversion_words(row, now), "Convert", form)


def _show_factor(form: PageForm, factor: float) -> None:
    """After a refusal: the next try accepts the factor that the page shows by then, and what was wrong with the last
    one, which is in no field that anybody sees, stands above the form.
    """
    if not form.is_bound:
        return
    form.data = {**{name: form.data[name] for name in form.data}, "accepted_factor": factor}
    for reason in form.errors.pop("accepted_factor", []):
        form.add_error(None, reason)


def _conversion_words(row: Reservation, now: datetime.datetime) -> list[str]:
    price, conversion = conversion_of(row, at=now)
    if conversion.basis == "same":
        return [f"It counts in version {price.version} of the price, which is in force: nothing is converted."]
    return [
        f"It counts in version {row.profile.version} of the price; version {price.version} is in force.",
        f"The factor is {conversion.factor:.6g}: {conversion.reason}.",
        f"{_mu(row.mu_per_min)} MU/min become {_mu(row.mu_per_min * conversion.factor)} MU/min, which buy the same "
        "work.",
    ]


def _form(request: UserRequest, kind: type[PageForm], initial: dict[str, Any] | None = None) -> Any:
    return kind(request.POST) if request.method == "POST" else kind(initial=initial)


def _asked(
    request: UserRequest, row: Reservation, title: str, effects: Sequence[str], verb: str, form: PageForm
) -> HttpResponse:
    return ask(
        request,
        title=title,
        effects=effects,
        verb=verb,
        back=path_of(row),
        of=_named(row),
        current=CURRENT,
        form=form,
    )


def _terms(row: Reservation) -> dict[str, Any]:
    """As ``ChangeForm`` has them."""
    plain = ("mu_per_min", "burst_mu", "price", "currency", "note", "starts_at", "ends_at")
    return {name: getattr(row, name) for name in plain}


def _plain(value: Any) -> Any:
    """A moment as the day that a form shows of it."""
    return value.astimezone(datetime.UTC).date() if isinstance(value, datetime.datetime) else value


def _named(row: Reservation) -> str:
    return f"{_mu(row.mu_per_min)} MU/min of {row.pool} for {row.tenant}"


def _mu(value: float) -> str:
    return f"{value:,.6g}"


def _span(row: Reservation, now: datetime.datetime) -> str:
    begins = "from now" if row.starts_at <= now else f"from {_on(row.starts_at)}"
    return f"{begins} until {_on(row.ends_at)}" if row.ends_at else f"{begins} until it is cancelled"


def _on(at: datetime.datetime | None) -> str:
    return at.astimezone(datetime.UTC).strftime("%-d %b %Y %H:%M UTC") if at else ""
