"""Addresses of this app's part of the REST API."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from capacity.api.hosts import AcceleratorsViewSet, HardwareTypesViewSet, HostsViewSet
from capacity.api.models import ModelsViewSet
from capacity.api.pools import PoolsViewSet, ProfilesViewSet, TenantPoolsViewSet

_platform = SimpleRouter(trailing_slash=False)
_platform.register("hardware-types", HardwareTypesViewSet)
_platform.register("hosts", HostsViewSet)
_platform.register("accelerators", AcceleratorsViewSet)
_platform.register("models", ModelsViewSet)
_platform.register("pools", PoolsViewSet)

_pool = SimpleRouter(trailing_slash=False)
_pool.register("profiles", ProfilesViewSet, basename="pool-profile")

_tenant = SimpleRouter(trailing_slash=False)
_tenant.register("pools", TenantPoolsViewSet, basename="tenant-pool")

urlpatterns = [
    *_platform.urls,
    path("pools/<str:pool>/", include(_pool.urls)),
    path("tenants/<str:tenant>/", include(_tenant.urls)),
]
