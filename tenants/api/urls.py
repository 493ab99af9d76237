"""Addresses of this app's part of the REST API."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from tenants.api.keys import KeysViewSet
from tenants.api.tenants import TenantsViewSet

_platform = SimpleRouter(trailing_slash=False)
_platform.register("tenants", TenantsViewSet)

_tenant = SimpleRouter(trailing_slash=False)
_tenant.register("keys", KeysViewSet, basename="tenant-key")

urlpatterns = [
    *_platform.urls,
    path("tenants/<str:tenant>/", include(_tenant.urls)),
]
