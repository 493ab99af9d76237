"""Users, tenants, memberships and invitations."""

from typing import Any

from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from tenants.admin.base import LookInline, ServiceAdmin, column, confirmed, operator_of, remember_secret, shown_once
from tenants.models import Invitation, Membership, Tenant, User
from tenants.services import (
    invitation_create,
    invitation_revoke,
    membership_add,
    membership_change,
    membership_remove,
    sign_in_link_create,
    tenant_create,
    tenant_update,
    user_create,
    user_set_active,
)


class MembershipInline(LookInline):
    """A look at who belongs where; memberships are written on their own page."""

    model = Membership
    fields = ("tenant", "user", "role", "created_at")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        rows: QuerySet[Membership] = super().get_queryset(request).select_related("tenant", "user")
        return rows


@admin.register(User)
class UserAdmin(ServiceAdmin):
    list_display = ("email", "name", "is_operator", "is_active", "tenant_count", "last_login")
    list_filter = ("is_operator", "is_active")
    search_fields = ("email", "name")
    fields = ("email", "name", "is_operator", "is_active", "last_login", "created_at")
    readonly_fields = ("email", "name", "is_operator", "last_login", "created_at")
    fields_on_add = ("email", "name", "is_operator")
    inlines = (MembershipInline,)
    actions = ("create_sign_in_link", "deactivate")

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        rows: QuerySet[User] = super().get_queryset(request)
        return rows.annotate(tenant_total=Count("memberships"))

    @column("Tenants", ordering="tenant_total")
    def tenant_count(self, user: Any) -> int:
        return int(user.tenant_total)

    def create(self, request: HttpRequest, data: dict[str, Any]) -> User:
        user = user_create(actor=operator_of(request), **data)
        remember_secret(request, f"One-time sign-in link for {user.email}, valid for 1 hour", _link(request, user))
        return user

    def change(self, request: HttpRequest, obj: User, data: dict[str, Any]) -> None:
        user_set_active(user=obj, is_active=data["is_active"], actor=operator_of(request))

    @confirmed(
        question="Make a one-time sign-in link for these people? Whoever has it is them, once.", verb="Make link"
    )
    def create_sign_in_link(self, request: HttpRequest, rows: list[User]) -> HttpResponse:
        links = [{"label": f"{user.email}, valid for 1 hour", "text": _link(request, user)} for user in rows]
        return shown_once(self, request, "One-time sign-in links.", links)

    @confirmed(
        question="Keep these people out? Their sessions end with their next click, "
        "their tokens and the open invitations that they sent for good.",
        verb="Deactivate",
    )
    def deactivate(self, request: HttpRequest, rows: list[User]) -> int:
        return sum(user_set_active(user=user, is_active=False, actor=operator_of(request)) for user in rows)


def _link(request: HttpRequest, user: User) -> str:
    token = sign_in_link_create(user=user, actor=operator_of(request))
    return request.build_absolute_uri(reverse("sign-in-link", args=[token]))


@admin.register(Tenant)
class TenantAdmin(ServiceAdmin):
    list_display = ("name", "slug", "is_active", "best_effort", "member_count", "key_count", "created_at")
    list_filter = ("is_active", "best_effort")
    search_fields = ("name", "slug")
    fields = ("name", "slug", "is_active", "best_effort", "created_at", "updated_at")
    readonly_fields = ("created_at", "updated_at")
    fields_on_add = ("name", "slug")
    prepopulated_fields = {"slug": ("name",)}
    inlines = (MembershipInline,)
    actions = ("deactivate", "activate")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Tenant]:
        rows: QuerySet[Tenant] = super().get_queryset(request)
        return rows.annotate(
            member_total=Count("memberships", distinct=True),
            key_total=Count("api_keys", filter=Q(api_keys__revoked_at=None), distinct=True),
        )

    @column("Members", ordering="member_total")
    def member_count(self, tenant: Any) -> int:
        return int(tenant.member_total)

    @column("Keys in use", ordering="key_total")
    def key_count(self, tenant: Any) -> int:
        return int(tenant.key_total)

    def create(self, request: HttpRequest, data: dict[str, Any]) -> Tenant:
        return tenant_create(actor=operator_of(request), **data)

    def change(self, request: HttpRequest, obj: Tenant, data: dict[str, Any]) -> None:
        tenant_update(tenant=obj, actor=operator_of(request), **data)

    @confirmed(question="Refuse all keys of these tenants from now on?", verb="Deactivate")
    def deactivate(self, request: HttpRequest, rows: list[Tenant]) -> int:
        return _set_active(rows, False, operator_of(request))

    @confirmed(question="Let the keys of these tenants in again?", verb="Activate")
    def activate(self, request: HttpRequest, rows: list[Tenant]) -> int:
        return _set_active(rows, True, operator_of(request))


def _set_active(tenants: list[Tenant], is_active: bool, actor: User) -> int:
    changed = [tenant for tenant in tenants if tenant.is_active != is_active]
    for tenant in changed:
        tenant_update(tenant=tenant, is_active=is_active, actor=actor)
    return len(changed)


@admin.register(Membership)
class MembershipAdmin(ServiceAdmin):
    list_display = ("user", "tenant", "role", "created_at")
    list_filter = ("role", "tenant")
    list_select_related = ("user", "tenant")
    search_fields = ("user__email", "user__name", "tenant__name")
    autocomplete_fields = ("user", "tenant")
    fields = ("tenant", "user", "role", "created_at")
    readonly_fields = ("tenant", "user", "created_at")
    fields_on_add = ("tenant", "user", "role")
    actions = ("remove",)

    def create(self, request: HttpRequest, data: dict[str, Any]) -> Membership:
        return membership_add(actor=operator_of(request), **data)

    def change(self, request: HttpRequest, obj: Membership, data: dict[str, Any]) -> None:
        membership_change(membership=obj, role=data["role"], actor=operator_of(request))

    @confirmed(question="End these memberships? The people keep their accounts.", verb="Remove")
    def remove(self, request: HttpRequest, rows: list[Membership]) -> int:
        return sum(membership_remove(membership=membership, actor=operator_of(request)) for membership in rows)


@admin.register(Invitation)
class InvitationAdmin(ServiceAdmin):
    list_display = ("email", "tenant", "role", "state", "expires_at", "invited_by")
    list_filter = ("role", "tenant")
    list_select_related = ("tenant", "invited_by")
    search_fields = ("email", "tenant__name")
    autocomplete_fields = ("tenant",)
    fields = ("tenant", "email", "role", "invited_by", "created_at", "expires_at", "accepted_at", "revoked_at")
    readonly_fields = fields
    fields_on_add = ("tenant", "email", "role")
    actions = ("revoke",)

    @column("State", label={"Open": "info", "Accepted": "success", "Expired": "warning", "Revoked": "danger"})
    def state(self, invitation: Invitation) -> str:
        return str(invitation.state.label)

    def create(self, request: HttpRequest, data: dict[str, Any]) -> Invitation:
        invitation, token = invitation_create(actor=operator_of(request), **data)
        url = request.build_absolute_uri(reverse("invitation", args=[token]))
        remember_secret(request, f"Link for {invitation.email} to join {invitation.tenant}, valid for 7 days", url)
        return invitation

    @confirmed(question="Revoke these invitations? Their links stop working at once.", verb="Revoke")
    def revoke(self, request: HttpRequest, rows: list[Invitation]) -> int:
        return sum(invitation_revoke(invitation=invitation, actor=operator_of(request)) for invitation in rows)
