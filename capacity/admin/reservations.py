"""Reservations: looked at here and decided about by the services that REST and the console call; sold there."""

from collections.abc import Callable

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from capacity.models import Reservation
from capacity.models.reservations import ReservationGap
from capacity.services import (
    CannotSell,
    reservation_approve,
    reservation_cancel,
    reservation_refuse,
    reservation_restore,
)
from tenants.admin.base import HistoryAdmin, column, confirmed, operator_of

_DECLINED = "An operator declined it."


@admin.register(Reservation)
class ReservationAdmin(HistoryAdmin):
    """What the ledger said, and when, is written by a sale alone: nothing of it can be typed."""

    list_display = (
        "tenant",
        "pool",
        "supply",
        "state_shown",
        "starts_at",
        "ends_at",
        "verdict_shown",
        "note",
        "requested_by",
    )
    list_filter = ("state", "verdict", ("override_reason", admin.EmptyFieldListFilter), "pool", "tenant")
    list_select_related = ("tenant", "pool")
    search_fields = ("id", "tenant__name", "tenant__slug", "pool__name", "pool__slug", "note", "requested_by")
    search_help_text = "Id, tenant, pool, what it is for, or who asked for it"
    date_hierarchy = "starts_at"
    ordering = ("-starts_at",)
    actions = ("approve", "refuse", "cancel", "restore")

    @column("MU/min", ordering="mu_per_min")
    def supply(self, row: Reservation) -> str:
        return f"{row.mu_per_min:g}"

    @column(
        "State",
        ordering="state",
        label={"requested": "info", "draft": "info", "active": "success", "refused": "danger"},
    )
    def state_shown(self, row: Reservation) -> str:
        return row.state

    @column("Ledger", ordering="verdict", label={"overcommitted": "danger"})
    def verdict_shown(self, row: Reservation) -> str:
        return "overcommitted" if row.is_overcommitted else row.get_verdict_display()

    @confirmed(
        question="Promise what was asked for? Each is asked of the ledger, and what does not fit is refused: then none "
        "of them is approved. To sell one that does not fit, with a reason, use the console.",
        verb="Approve",
    )
    def approve(self, request: HttpRequest, rows: list[Reservation]) -> int:
        return _each(rows, lambda row: reservation_approve(reservation=row, actor=operator_of(request)))

    @confirmed(question=f"Decline what was asked for? The tenant reads: {_DECLINED}", verb="Refuse")
    def refuse(self, request: HttpRequest, rows: list[Reservation]) -> int:
        return _each(
            rows, lambda row: reservation_refuse(reservation=row, actor=operator_of(request), reason=_DECLINED)
        )

    @confirmed(question="Take these requests back, or end these promises? One that runs ends now.", verb="Cancel")
    def cancel(self, request: HttpRequest, rows: list[Reservation]) -> int:
        return _each(rows, lambda row: reservation_cancel(reservation=row, actor=operator_of(request)))

    @confirmed(
        question="Take these refusals and cancellations back? What was promised is asked of the ledger again.",
        verb="Restore",
    )
    def restore(self, request: HttpRequest, rows: list[Reservation]) -> int:
        return _each(rows, lambda row: reservation_restore(reservation=row, actor=operator_of(request)))


@admin.register(ReservationGap)
class ReservationGapAdmin(HistoryAdmin):
    list_display = ("reservation", "since", "until")
    list_filter = ("reservation__pool", "reservation__tenant")
    list_select_related = ("reservation__tenant", "reservation__pool")
    search_fields = ("reservation__id", "reservation__tenant__name", "reservation__pool__name")
    date_hierarchy = "since"


def _each(rows: list[Reservation], act: Callable[[Reservation], Reservation]) -> int:
    """Raises ValidationError, for what the ledger refuses too: with how much is missing, and when."""
    for row in rows:
        try:
            act(row)
        except CannotSell as error:
            raise ValidationError(f"{row.tenant.name}, {row.pool.name}: {error.answer.reason}") from None
    return len(rows)
