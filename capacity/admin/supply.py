"""What replicas supply on hardware that their pool's price is not for."""

from django.contrib import admin

from capacity.models import ReplicaSupply
from tenants.admin.base import HistoryAdmin, column


@admin.register(ReplicaSupply)
class ReplicaSupplyAdmin(HistoryAdmin):
    list_display = ("pool", "hardware_type", "rate", "adopted_at", "calibration_id")
    list_filter = ("pool", "hardware_type")
    list_select_related = ("pool", "hardware_type")
    search_fields = ("pool__name", "hardware_type__name")

    @column("Requests/min at the knee", ordering="requests_per_min")
    def rate(self, row: ReplicaSupply) -> str:
        return f"{row.requests_per_min:.4g}"
