"""Addresses of this app's part of the REST API."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from tenants.api.audit import AuditViewSet, PlatformAuditViewSet
from tenants.api.invitations import InvitationsViewSet
from tenants.api.keys import KeysViewSet
from tenants.api.limits import KeyLimitsViewSet, LimitsViewSet, MemberLimitsViewSet
from tenants.api.me import MeViewSet, TokensViewSet
from tenants.api.members import MembersViewSet
from tenants.api.tenants import TenantsViewSet
from tenants.api.users import UsersViewSet

_platform = SimpleRouter(trailing_slash=False)
_platform.register("tenants", TenantsViewSet)
_platform.register("me/tokens", TokensViewSet, basename="my-token")
_platform.register("users", UsersViewSet)
_platform.register("audit", PlatformAuditViewSet, basename="audit")

_tenant = SimpleRouter(trailing_slash=False)
_tenant.register("keys", KeysViewSet, basename="tenant-key")
_tenant.register("limits", LimitsViewSet, basename="tenant-limit")
_tenant.register("keys/(?P<key>[^/]+)/limits", KeyLimitsViewSet, basename="tenant-key-limit")
_tenant.register("members/(?P<member>[^/]+)/limits", MemberLimitsViewSet, basename="tenant-member-limit")
_tenant.register("members", MembersViewSet, basename="tenant-member")
_tenant.register("invitations", InvitationsViewSet, basename="tenant-invitation")
_tenant.register("audit", AuditViewSet, basename="tenant-audit")

urlpatterns = [
    path("me", MeViewSet.as_view({"get": "retrieve"}), name="me"),
    *_platform.urls,
    path("tenants/<str:tenant>/", include(_tenant.urls)),
]
