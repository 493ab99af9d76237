"""Addresses of this app's part of the REST API."""

from rest_framework.routers import SimpleRouter

from capacity.api.hosts import AcceleratorsViewSet, HardwareTypesViewSet, HostsViewSet

_platform = SimpleRouter(trailing_slash=False)
_platform.register("hardware-types", HardwareTypesViewSet)
_platform.register("hosts", HostsViewSet)
_platform.register("accelerators", AcceleratorsViewSet)

urlpatterns = [*_platform.urls]
