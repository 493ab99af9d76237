"""Hardware types, hosts and accelerators."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse

from capacity.models import Accelerator, HardwareType, Host
from capacity.services import (
    hardware_type_get_or_create,
    host_cordon,
    host_drain,
    host_enrol,
    host_remove,
    host_secret_renew,
    host_uncordon,
)
from tenants.admin.base import (
    HistoryAdmin,
    LookInline,
    ServiceAdmin,
    column,
    confirmed,
    operator_of,
    remember_secret,
    shown_once,
)

_GIB = 1 << 30


@admin.register(HardwareType)
class HardwareTypeAdmin(ServiceAdmin):
    can_change = False
    list_display = ("name", "slug", "is_cpu", "memory_gib")
    list_filter = ("is_cpu",)
    search_fields = ("name", "slug")
    fields = ("name", "slug", "is_cpu", "memory_bytes")
    fields_on_add = fields
    prepopulated_fields = {"slug": ("name",)}

    def get_prepopulated_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.prepopulated_fields if obj is None else {}

    @column("Memory (GiB)", ordering="memory_bytes")
    def memory_gib(self, row: HardwareType) -> str:
        return f"{row.memory_bytes / _GIB:,.0f}" if row.memory_bytes else "–"

    def create(self, request: HttpRequest, data: dict[str, Any]) -> HardwareType:
        return hardware_type_get_or_create(actor=operator_of(request), **data)


class AcceleratorInline(LookInline):
    model = Accelerator
    fields = ("index", "name", "memory_bytes", "is_healthy")
    readonly_fields = fields


@admin.register(Host)
class HostAdmin(ServiceAdmin):
    can_change = False
    list_display = ("name", "state_shown", "hardware_type", "cores", "memory_free", "orders", "last_report_at")
    list_filter = ("state", "hardware_type")
    list_select_related = ("hardware_type",)
    search_fields = ("name",)
    fields = (
        "name",
        "hardware_type",
        "state",
        "state_since",
        "state_reason",
        "labels",
        "generation",
        "acknowledged_generation",
        "last_report_at",
        "report",
        "created_at",
    )
    fields_on_add = ("name", "hardware_type", "labels")
    readonly_fields = fields
    inlines = (AcceleratorInline,)
    actions = ("cordon", "drain", "uncordon", "renew_secret", "remove")

    @column(
        "State",
        ordering="state",
        label={"Active": "success", "Cordoned": "warning", "Draining": "warning", "Lost": "danger"},
    )
    def state_shown(self, host: Host) -> str:
        return host.get_state_display()

    @column("Cores")
    def cores(self, host: Host) -> str:
        return f"{host.report['cores']:g}" if host.report.get("cores") else "–"

    @column("Memory free / all (GiB)")
    def memory_free(self, host: Host) -> str:
        total, free = host.report.get("memory_bytes"), host.report.get("memory_available_bytes")
        return f"{free / _GIB:.1f} / {total / _GIB:.1f}" if total and free is not None else "–"

    @column("Orders acknowledged / sent", ordering="generation")
    def orders(self, host: Host) -> str:
        return f"{host.acknowledged_generation} / {host.generation}"

    def create(self, request: HttpRequest, data: dict[str, Any]) -> Host:
        host, secret = host_enrol(actor=operator_of(request), **data)
        _remember(request, host, secret)
        return host

    @confirmed(question="Place nothing new on these hosts? What runs goes on.", verb="Cordon")
    def cordon(self, request: HttpRequest, rows: list[Host]) -> int:
        return sum(host_cordon(host=host, actor=operator_of(request)) for host in rows)

    @confirmed(
        question="Drain these hosts? Their replicas are replaced elsewhere, then end what they have in hand and stop; "
        "those for which no other host has room stop without a replacement.",
        verb="Drain",
    )
    def drain(self, request: HttpRequest, rows: list[Host]) -> int:
        return sum(host_drain(host=host, actor=operator_of(request)) for host in rows)

    @confirmed(question="Place replicas on these hosts again?", verb="Uncordon")
    def uncordon(self, request: HttpRequest, rows: list[Host]) -> int:
        return sum(host_uncordon(host=host, actor=operator_of(request)) for host in rows)

    @confirmed(
        question="Give these hosts new secrets? Within 2 seconds their agents are refused until they have them; "
        "engines go on serving.",
        verb="Renew secret",
    )
    def renew_secret(self, request: HttpRequest, rows: list[Host]) -> HttpResponse:
        for host in rows:
            _remember(request, host, host_secret_renew(host=host, actor=operator_of(request)))
        return shown_once(self, request, "The new secrets.", request.shown_once)  # type: ignore[attr-defined]

    @confirmed(
        question="Remove these hosts for good? Their agents are refused at once, their names are free, their history "
        "stays. Hosts that replicas still hold a part of are refused: drain them first.",
        verb="Remove",
    )
    def remove(self, request: HttpRequest, rows: list[Host]) -> int:
        return sum(host_remove(host=host, actor=operator_of(request)) for host in rows)


def _remember(request: HttpRequest, host: Host, secret: bytes) -> None:
    label = f"For agent.json on {host.name}: host_id {host.pk}, and this secret"
    remember_secret(request, label, secret.hex())


@admin.register(Accelerator)
class AcceleratorAdmin(HistoryAdmin):
    list_display = ("host", "index", "name", "memory_gib", "is_healthy")
    list_filter = ("is_healthy", "name")
    list_select_related = ("host",)
    search_fields = ("host__name", "name", "uuid")

    @column("Memory (GiB)", ordering="memory_bytes")
    def memory_gib(self, row: Accelerator) -> str:
        return f"{row.memory_bytes / _GIB:,.0f}"
