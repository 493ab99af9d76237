"""``/tenants/{tenant}/members``: who belongs to a tenant, in which role."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters
from django.db.models import Q, QuerySet
from django.http import Http404
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from tenants.api.base import TenantViewSet
from tenants.api.caller import Caller
from tenants.api.me import NamedUser
from tenants.models import Membership, Tenant
from tenants.policy.members import role_refusal
from tenants.policy.roles import Action
from tenants.services import membership_change, membership_remove


def require_role_manager(caller: Caller, tenant: Tenant, *roles: str) -> None:
    """Raise PermissionDenied unless ``caller`` may give and take all of ``roles``."""
    if refusal := role_refusal(lambda action: caller.can(action, tenant), *roles):
        raise exceptions.PermissionDenied(refusal)


class RoleFields(serializers.Serializer[Any]):
    role = serializers.ChoiceField(Membership.Role.choices)


class MemberSerializer(serializers.ModelSerializer[Membership]):
    user = NamedUser(read_only=True)

    class Meta:
        model = Membership
        fields = ("id", "user", "role", "created_at", "updated_at")
        read_only_fields = fields


class MemberFilter(django_filters.FilterSet):
    search = django_filters.CharFilter(method="by_text", label="Part of the name or e-mail address.")

    class Meta:
        model = Membership
        fields = ("role",)

    def by_text(self, rows: QuerySet[Membership], name: str, value: str) -> QuerySet[Membership]:
        return rows.filter(Q(user__name__icontains=value) | Q(user__email__icontains=value))


class MembersViewSet(TenantViewSet[Membership]):
    required: ClassVar = {
        "list": Action.MEMBER_VIEW,
        "retrieve": Action.MEMBER_VIEW,
        "partial_update": Action.MEMBER_MANAGE,
        # Every member may leave; who may remove others is asked with the row at hand.
        "destroy": Action.MEMBER_VIEW,
    }
    queryset = Membership.objects.none()
    serializer_class = MemberSerializer
    filterset_class = MemberFilter
    ordering_fields = ("role", "created_at", "user__email")

    def get_queryset(self) -> QuerySet[Membership]:
        return Membership.objects.filter(tenant=self.tenant).select_related("user").order_by("user__email")

    def list(self, request: Request, tenant: str) -> Response:
        """The members of the tenant with their roles."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, tenant: str, pk: str) -> Response:
        """One membership."""
        return self.shown(self.get_object())

    @extend_schema(request=RoleFields)
    def partial_update(self, request: Request, tenant: str, pk: str) -> Response:
        """Give a member another role. Only owners make or unmake owners; the last owner stays one.

        Their open invitations that the new role could not send are revoked.
        """
        member = self.get_object()
        role = self.read(RoleFields)["role"]

        def change() -> Response:
            stored = self._stored(member)
            require_role_manager(self.caller, self.tenant, stored.role, role)
            return self.shown(membership_change(membership=stored, role=role, actor=self.caller.actor))

        return self.changed(member, change, turn_of=self.tenant)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, tenant: str, pk: str) -> Response:
        """End a membership, or leave by ending your own. The person keeps their account; the last owner stays.

        Their open invitations are revoked.
        """
        member = self.get_object()

        def end() -> Response:
            stored = self._stored(member)
            if self.caller.user is None or stored.user_id != self.caller.user.pk:
                require_role_manager(self.caller, self.tenant, stored.role)
            membership_remove(membership=stored, actor=self.caller.actor)
            return Response(status=status.HTTP_204_NO_CONTENT)

        return self.changed(member, end, turn_of=self.tenant)

    def _stored(self, member: Membership) -> Membership:
        """As it is stored: what may be done depends on the role it has now. It stays so while the tenant's turn lasts.

        Raises Http404.
        """
        stored = Membership.objects.select_related("tenant", "user").filter(pk=member.pk).first()
        if stored is None:
            raise Http404("The membership has ended.")
        return stored
