"""``/tenants/{tenant}/invitations``: offers to join. A link is in the answer that made it, and nowhere else."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

import django_filters
from django.db.models import Q, QuerySet
from django.urls import reverse
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from tenants.api.base import TenantViewSet
from tenants.api.members import require_role_manager
from tenants.models import Invitation, Membership
from tenants.policy.roles import Action
from tenants.services import invitation_create, invitation_revoke

_MAX_VALID_H = 30 * 24


class InvitationSerializer(serializers.ModelSerializer[Invitation]):
    state = serializers.ChoiceField(Invitation.State.choices, read_only=True)
    invited_by = serializers.EmailField(source="invited_by.email", default=None, allow_null=True, read_only=True)

    class Meta:
        model = Invitation
        fields = (
            "id",
            "email",
            "role",
            "state",
            "invited_by",
            "expires_at",
            "accepted_at",
            "revoked_at",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields


class NewInvitation(serializers.Serializer[Any]):
    email = serializers.EmailField()
    role = serializers.ChoiceField(Membership.Role.choices, default=Membership.Role.DEVELOPER)
    valid_for_h = serializers.IntegerField(
        min_value=1, max_value=_MAX_VALID_H, default=7 * 24, help_text="Hours until it expires."
    )


class MadeInvitation(InvitationSerializer):
    """``accept_url`` is the one-time link, shown this once: send it to the invited person and nobody else."""

    accept_url = serializers.URLField(read_only=True)

    class Meta:
        model = Invitation
        fields = (*InvitationSerializer.Meta.fields, "accept_url")
        read_only_fields = fields


class InvitationFilter(django_filters.FilterSet):
    state = django_filters.ChoiceFilter(choices=Invitation.State.choices, method="by_state")
    email = django_filters.CharFilter(lookup_expr="iexact")

    class Meta:
        model = Invitation
        fields = ("role",)

    def by_state(self, rows: QuerySet[Invitation], name: str, value: str) -> QuerySet[Invitation]:
        waiting, now = Q(accepted_at=None, revoked_at=None), timezone.now()
        conditions = {
            Invitation.State.OPEN: waiting & Q(expires_at__gt=now),
            Invitation.State.EXPIRED: waiting & Q(expires_at__lte=now),
            Invitation.State.ACCEPTED: Q(accepted_at__isnull=False),
            Invitation.State.REVOKED: Q(revoked_at__isnull=False),
        }
        return rows.filter(conditions[Invitation.State(value)])


class InvitationsViewSet(TenantViewSet[Invitation]):
    required: ClassVar = {
        "list": Action.MEMBER_VIEW,
        "retrieve": Action.MEMBER_VIEW,
        "create": Action.MEMBER_MANAGE,
        "revoke": Action.MEMBER_MANAGE,
    }
    queryset = Invitation.objects.none()
    serializer_class = InvitationSerializer
    filterset_class = InvitationFilter
    ordering_fields = ("email", "created_at", "expires_at")

    def get_queryset(self) -> QuerySet[Invitation]:
        return Invitation.objects.filter(tenant=self.tenant).select_related("tenant", "invited_by")

    def list(self, request: Request, tenant: str) -> Response:
        """The invitations of the tenant, newest first, without their links."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, tenant: str, pk: str) -> Response:
        """One invitation, without its link."""
        return self.shown(self.get_object())

    @extend_schema(request=NewInvitation, responses={201: MadeInvitation})
    def create(self, request: Request, tenant: str) -> Response:
        """Invite somebody by e-mail address. The one-time link is in this answer and never shown again.

        Send the link to them: Penstock sends no mail. Only owners invite owners. Whoever has an account signs in with
        it to accept; others get one.
        """

        def make() -> Response:
            given = self.read(NewInvitation)
            self.tenant.take_turn()  # whoever loses their role at this moment invites before that, or not at all
            require_role_manager(self.caller, self.tenant, given["role"])
            valid_for = datetime.timedelta(hours=given.pop("valid_for_h"))
            made, token = invitation_create(tenant=self.tenant, actor=self.caller.actor, valid_for=valid_for, **given)
            url = self.request.build_absolute_uri(reverse("invitation", args=[token]))
            made.accept_url = url  # type: ignore[attr-defined]
            return self.shown(made, code=status.HTTP_201_CREATED, serializer=MadeInvitation)

        return self.created(make)

    @extend_schema(request=None, responses=InvitationSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, tenant: str, pk: str) -> Response:
        """Make the link of an invitation stop working. One that was accepted stays accepted: end the membership."""
        invitation = self.get_object()
        require_role_manager(self.caller, self.tenant, invitation.role)

        def end() -> Response:
            invitation_revoke(invitation=invitation, actor=self.caller.actor)
            invitation.refresh_from_db()
            return self.shown(invitation)

        return self.changed(invitation, end)
