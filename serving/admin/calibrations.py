"""Calibrations, as they were measured."""

from django.contrib import admin
from django.http import HttpRequest

from serving.models import Calibration
from serving.services import calibration_adopt, calibration_cancel
from tenants.admin.base import HistoryAdmin, column, confirmed, operator_of

_COLOURS = {
    "Queued": "info",
    "Draining": "info",
    "Measuring": "info",
    "Fitted": "warning",
    "Adopted": "success",
    "Failed": "danger",
    "Cancelled": "default",
}


@admin.register(Calibration)
class CalibrationAdmin(HistoryAdmin):
    list_display = (
        "created_at",
        "deployment_name",
        "hardware_name",
        "state_shown",
        "mean_error",
        "knee",
        "adopted_version",
        "requested_by",
    )
    list_filter = ("state", "grid", "deployment_name", "hardware_name")
    search_fields = ("deployment_name", "pool_name", "host_name", "reason")
    date_hierarchy = "created_at"
    actions = ("cancel", "adopt")

    @column("State", ordering="state", label=_COLOURS)
    def state_shown(self, row: Calibration) -> str:
        return row.get_state_display()

    @column("Mean error (%)")
    def mean_error(self, row: Calibration) -> str:
        return f"{100 * row.fit['mean_error']:.1f}" if "mean_error" in row.fit else "–"

    @column("Knee (requests/s)")
    def knee(self, row: Calibration) -> str:
        return f"{row.knee['rate_per_s']:.3g}" if "rate_per_s" in row.knee else "–"

    @confirmed(question="Stop measuring these? Their replicas go back into rotation.", verb="Cancel")
    def cancel(self, request: HttpRequest, rows: list[Calibration]) -> int:
        return sum(calibration_cancel(calibration=row, actor=operator_of(request)) for row in rows)

    @confirmed(
        question="Make these the next price of their pools, at once? Measured on other hardware than the price's, they "
        "become what replicas there supply. The console shows first who would pay more or less.",
        verb="Adopt",
    )
    def adopt(self, request: HttpRequest, rows: list[Calibration]) -> int:
        for row in rows:
            calibration_adopt(calibration=row, actor=operator_of(request))
        return len(rows)
