"""``/tenants/{tenant}/keys``: API keys. A key's text is in the answer that made it, and nowhere else."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

import django_filters
from django.db.models import Q, QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from tenants.api.base import TenantViewSet
from tenants.keys import LONGEST_MODEL, MOST_MODELS, MOST_NETWORKS, SCOPES
from tenants.models import ApiKey
from tenants.policy.keys import Reach, beyond
from tenants.policy.members import key_refusal
from tenants.policy.roles import Action, scopes_beyond
from tenants.services import api_key_create, api_key_revoke, api_key_rotate, api_key_update

_MAX_OVERLAP_S = 90 * 86_400


class KeyFields(serializers.Serializer[ApiKey]):
    """What can be changed of a key."""

    name = serializers.CharField(max_length=120)
    scopes = serializers.ListField(
        child=serializers.ChoiceField(SCOPES),
        max_length=len(SCOPES),
        default=["inference"],
        help_text="What the key may do.",
    )
    models_allowed = serializers.ListField(
        child=serializers.CharField(max_length=LONGEST_MODEL),
        max_length=MOST_MODELS,
        default=[],
        help_text="Served model names; empty means all.",
    )
    allowed_ips = serializers.ListField(
        child=serializers.CharField(max_length=50),
        max_length=MOST_NETWORKS,
        default=[],
        help_text="Networks in CIDR form; empty means all.",
    )


class NewKey(KeyFields):
    expires_at = serializers.DateTimeField(allow_null=True, default=None)


class Rotation(serializers.Serializer[Any]):
    overlap_s = serializers.IntegerField(
        min_value=0, max_value=_MAX_OVERLAP_S, default=86_400, help_text="Seconds for which the old key still works."
    )


class KeySerializer(serializers.ModelSerializer[ApiKey]):
    created_by = serializers.EmailField(source="created_by.email", default=None, read_only=True, allow_null=True)
    is_usable = serializers.BooleanField(read_only=True)

    class Meta:
        model = ApiKey
        fields = (
            "id",
            "name",
            "public_id",
            "scopes",
            "models_allowed",
            "allowed_ips",
            "expires_at",
            "revoked_at",
            "rotated_at",
            "last_used_at",
            "is_usable",
            "created_by",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields


class MadeKey(KeySerializer):
    """``secret`` is the key's whole text, shown this once."""

    secret = serializers.CharField(read_only=True)

    class Meta:
        model = ApiKey
        fields = (*KeySerializer.Meta.fields, "secret")
        read_only_fields = fields


class KeyFilter(django_filters.FilterSet):
    usable = django_filters.BooleanFilter(method="by_use", label="Neither revoked nor expired.")
    search = django_filters.CharFilter(field_name="name", lookup_expr="icontains", label="Part of the name.")

    class Meta:
        model = ApiKey
        fields = ("public_id",)

    def by_use(self, rows: QuerySet[ApiKey], name: str, value: bool) -> QuerySet[ApiKey]:
        living = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=timezone.now()))
        return rows.filter(living if value else ~living)


class KeysViewSet(TenantViewSet[ApiKey]):
    required: ClassVar = {
        "list": Action.KEY_VIEW,
        "retrieve": Action.KEY_VIEW,
        "create": Action.KEY_CREATE,
        "partial_update": Action.KEY_CREATE,
        "revoke": Action.KEY_CREATE,
        "rotate": Action.KEY_CREATE,
    }
    queryset = ApiKey.objects.none()
    serializer_class = KeySerializer
    filterset_class = KeyFilter
    ordering_fields = ("name", "created_at", "last_used_at")

    def get_queryset(self) -> QuerySet[ApiKey]:
        return ApiKey.objects.filter(tenant=self.tenant).select_related("tenant", "created_by")

    def list(self, request: Request, tenant: str) -> Response:
        """The tenant's API keys, without their texts."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, tenant: str, pk: str) -> Response:
        """One API key, without its text."""
        return self.shown(self.get_object())

    @extend_schema(request=NewKey, responses={201: MadeKey})
    def create(self, request: Request, tenant: str) -> Response:
        """Make an API key. Its text is in this answer and never shown again."""

        def make() -> Response:
            given = self.read(NewKey)
            self._require_rights(Reach(**{name: given[name] for name in Reach._fields}))
            key, text = api_key_create(tenant=self.tenant, actor=self.caller.actor, **given)
            return self._made(key, text)

        return self.created(make)

    @extend_schema(request=KeyFields)
    def partial_update(self, request: Request, tenant: str, pk: str) -> Response:
        """Change what is sent of a key; its text stays. Developers change the keys they made themselves."""
        key = self._managed()
        given = self.read(KeyFields, partial=True)
        changes = {name: given[name] for name in Reach._fields if name in given}
        if changes:
            self._require_rights(_reach(key)._replace(**changes))
        return self.changed(key, lambda: self.shown(api_key_update(key=key, actor=self.caller.actor, **given)))

    @extend_schema(request=None, responses=KeySerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, tenant: str, pk: str) -> Response:
        """Refuse the key from now on; gateways know within two seconds. It cannot be undone."""
        key = self._managed()

        def end() -> Response:
            api_key_revoke(key=key, actor=self.caller.actor)
            key.refresh_from_db()
            return self.shown(key)

        return self.changed(key, end)

    @extend_schema(request=Rotation, responses={201: MadeKey})
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, tenant: str, pk: str) -> Response:
        """A new key with the same rights; the old one works on for the overlap."""
        key = self._managed()

        def make() -> Response:
            self._require_rights(_reach(key))  # the new one's text is in the answer
            overlap = datetime.timedelta(seconds=self.read(Rotation)["overlap_s"])
            return self._made(*api_key_rotate(key=key, actor=self.caller.actor, overlap=overlap))

        return self.created(make)

    def _made(self, key: ApiKey, text: str) -> Response:
        key.secret = text  # type: ignore[attr-defined]
        return self.shown(key, code=status.HTTP_201_CREATED, serializer=MadeKey)

    def _require_rights(self, wanted: Reach) -> None:
        """Nobody makes a key that may do more than they may themselves. Raises PermissionDenied, ValidationError."""
        caller = self.caller
        if caller.key is not None:
            if errors := beyond(_reach(caller.key), wanted):
                raise exceptions.ValidationError(errors, code="beyond_own_rights")
        elif too_much := scopes_beyond(wanted.scopes, lambda action: caller.can(action, self.tenant)):
            raise exceptions.PermissionDenied(
                f"You may not give a key the scope {', '.join(too_much)}: your role does not cover it. Ask an admin."
            )

    def _managed(self) -> ApiKey:
        """The key, if the caller may change it. Raises Http404, PermissionDenied."""
        key = self.get_object()
        caller = self.caller
        is_own = caller.user is not None and key.created_by_id == caller.user.pk
        if refusal := key_refusal(lambda action: caller.can(action, self.tenant), is_own=is_own):
            raise exceptions.PermissionDenied(refusal)
        return key


def _reach(key: ApiKey) -> Reach:
    return Reach(key.scopes, key.models_allowed, key.allowed_ips, key.expires_at)
