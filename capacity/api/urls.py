"""Addresses of this app's part of the REST API."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from capacity.api.chain import TenantUsageAnchorsViewSet, TenantUsageFileViewSet
from capacity.api.enrolment import EnrolmentTokensViewSet, EnrolView
from capacity.api.guarantees import (
    GuaranteeMinutesExportViewSet,
    GuaranteeMinutesViewSet,
    GuaranteesViewSet,
    TenantGuaranteeMinutesExportViewSet,
    TenantGuaranteeMinutesViewSet,
    TenantGuaranteesViewSet,
)
from capacity.api.hosts import AcceleratorsViewSet, HardwareTypesViewSet, HostsViewSet
from capacity.api.invoices import (
    InvoiceFileViewSet,
    InvoicesViewSet,
    TenantInvoiceFileViewSet,
    TenantInvoicesViewSet,
)
from capacity.api.models import ModelsViewSet
from capacity.api.pools import PoolsViewSet, ProfilesViewSet, TenantPoolsViewSet
from capacity.api.reservations import ReservationsViewSet, TenantReservationsViewSet
from capacity.api.usage import (
    TenantUsageExportViewSet,
    TenantUsageRollupsViewSet,
    TenantUsageViewSet,
    UsageExportViewSet,
    UsageRollupsViewSet,
    UsageViewSet,
)

_platform = SimpleRouter(trailing_slash=False)
_platform.register("hardware-types", HardwareTypesViewSet)
_platform.register("hosts", HostsViewSet)
_platform.register("accelerators", AcceleratorsViewSet)
_platform.register("enrolment-tokens", EnrolmentTokensViewSet)
_platform.register("models", ModelsViewSet)
_platform.register("pools", PoolsViewSet)
_platform.register("reservations", ReservationsViewSet)
_platform.register("guarantees", GuaranteesViewSet, basename="guarantee")
_platform.register("invoices", InvoicesViewSet, basename="invoice")
# Before the requests: their names are no ids.
_platform.register("usage/export", UsageExportViewSet, basename="usage-export")
_platform.register("usage/rollups", UsageRollupsViewSet, basename="usage-rollup")
_platform.register("usage", UsageViewSet)

_pool = SimpleRouter(trailing_slash=False)
_pool.register("profiles", ProfilesViewSet, basename="pool-profile")

_guarantee = SimpleRouter(trailing_slash=False)
_guarantee.register("minutes/export", GuaranteeMinutesExportViewSet, basename="guarantee-minute-export")
_guarantee.register("minutes", GuaranteeMinutesViewSet, basename="guarantee-minute")

_tenant_guarantee = SimpleRouter(trailing_slash=False)
_tenant_guarantee.register(
    "minutes/export", TenantGuaranteeMinutesExportViewSet, basename="tenant-guarantee-minute-export"
)
_tenant_guarantee.register("minutes", TenantGuaranteeMinutesViewSet, basename="tenant-guarantee-minute")

_invoice = SimpleRouter(trailing_slash=False)
_invoice.register("export", InvoiceFileViewSet, basename="invoice-export")

_tenant_invoice = SimpleRouter(trailing_slash=False)
_tenant_invoice.register("export", TenantInvoiceFileViewSet, basename="tenant-invoice-export")

_tenant = SimpleRouter(trailing_slash=False)
_tenant.register("pools", TenantPoolsViewSet, basename="tenant-pool")
_tenant.register("reservations", TenantReservationsViewSet, basename="tenant-reservation")
_tenant.register("guarantees", TenantGuaranteesViewSet, basename="tenant-guarantee")
_tenant.register("invoices", TenantInvoicesViewSet, basename="tenant-invoice")
_tenant.register("usage/export", TenantUsageExportViewSet, basename="tenant-usage-export")
_tenant.register("usage/file", TenantUsageFileViewSet, basename="tenant-usage-file")
_tenant.register("usage/anchors", TenantUsageAnchorsViewSet, basename="tenant-usage-anchor")
_tenant.register("usage/rollups", TenantUsageRollupsViewSet, basename="tenant-usage-rollup")
_tenant.register("usage", TenantUsageViewSet, basename="tenant-usage")

urlpatterns = [
    *_platform.urls,
    path("enrol", EnrolView.as_view(), name="enrol"),
    path("pools/<str:pool>/", include(_pool.urls)),
    path("guarantees/<str:reservation>/", include(_guarantee.urls)),
    path("invoices/<str:invoice>/", include(_invoice.urls)),
    path("tenants/<str:tenant>/", include(_tenant.urls)),
    path("tenants/<str:tenant>/invoices/<str:invoice>/", include(_tenant_invoice.urls)),
    path("tenants/<str:tenant>/guarantees/<str:reservation>/", include(_tenant_guarantee.urls)),
]
