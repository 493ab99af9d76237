"""``/me``: who the caller is, and a person's own access tokens. A token's text is in the answer that made it only."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from tenants.api.base import ApiViewSet
from tenants.api.permissions import IsCaller, IsPerson
from tenants.models import AccessToken, ApiKey, Membership, Tenant, User
from tenants.permissions import roles_of
from tenants.policy.keys import outlives
from tenants.services import access_token_create, access_token_revoke


class NamedTenant(serializers.ModelSerializer[Tenant]):
    class Meta:
        model = Tenant
        fields = ("id", "slug", "name")
        read_only_fields = fields


class NamedUser(serializers.ModelSerializer[User]):
    class Meta:
        model = User
        fields = ("id", "email", "name")
        read_only_fields = fields


class NamedKey(serializers.ModelSerializer[ApiKey]):
    tenant = NamedTenant(read_only=True)

    class Meta:
        model = ApiKey
        fields = ("id", "name", "public_id", "tenant")
        read_only_fields = fields


class RoleIn(serializers.Serializer[Any]):
    """A role in one tenant."""

    tenant = NamedTenant()
    role = serializers.ChoiceField(Membership.Role.choices)


class Me(serializers.Serializer[Any]):
    """Exactly one of ``user`` and ``key`` is set."""

    user = NamedUser(allow_null=True)
    key = NamedKey(allow_null=True)
    is_operator = serializers.BooleanField(help_text="May do everything, in every tenant.")
    roles = RoleIn(many=True, help_text="A person's roles; empty for a key.")
    scopes = serializers.ListField(child=serializers.CharField(), help_text="A key's scopes; empty for a person.")
    api_url = serializers.CharField(help_text="Where models answer: OpenAI's API, ending in /v1.")


class TokenSerializer(serializers.ModelSerializer[AccessToken]):
    is_usable = serializers.BooleanField(read_only=True)

    class Meta:
        model = AccessToken
        fields = (
            "id",
            "name",
            "public_id",
            "expires_at",
            "revoked_at",
            "last_used_at",
            "is_usable",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields


class NewToken(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120, help_text="Where it is used.")
    expires_at = serializers.DateTimeField(allow_null=True, default=None)


class MadeToken(TokenSerializer):
    """``secret`` is the token's whole text, shown this once."""

    secret = serializers.CharField(read_only=True)

    class Meta:
        model = AccessToken
        fields = (*TokenSerializer.Meta.fields, "secret")
        read_only_fields = fields


class MeViewSet(ApiViewSet[User]):
    permission_classes = (IsCaller,)
    serializer_class = Me

    @extend_schema(responses=Me)
    def retrieve(self, request: Request) -> Response:
        """Who you are to this API: the person or the API key, with their roles or scopes."""
        caller = self.caller
        roles = roles_of(caller.user) if caller.user else {}
        told = {
            "user": caller.user,
            "key": caller.key,
            "is_operator": caller.is_operator,
            "roles": [{"tenant": tenant, "role": role} for tenant, role in roles.items()],
            "scopes": caller.key.scopes if caller.key else [],
            "api_url": settings.PENSTOCK_API_URL,
        }
        return Response(self.get_serializer(told).data)


class TokensViewSet(ApiViewSet[AccessToken]):
    permission_classes = (IsPerson,)
    queryset = AccessToken.objects.none()
    serializer_class = TokenSerializer
    ordering_fields = ("name", "created_at", "last_used_at")

    @property
    def person(self) -> User:
        found = self.caller.user
        assert found is not None  # noqa: S101 (for the type checker; the permission has checked)
        return found

    def get_queryset(self) -> QuerySet[AccessToken]:
        return AccessToken.objects.filter(user=self.person)

    def list(self, request: Request) -> Response:
        """Your access tokens, without their texts."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, pk: str) -> Response:
        """One of your access tokens, without its text."""
        return self.shown(self.get_object())

    @extend_schema(request=NewToken, responses={201: MadeToken})
    def create(self, request: Request) -> Response:
        """Make an access token, which may do what you may do. Its text is in this answer and never shown again.

        By an access token that ends, make one that ends no later. A new password ends them all.
        """

        def make() -> Response:
            given = self.read(NewToken)
            asking = self.request.auth
            ends = asking.expires_at if isinstance(asking, AccessToken) else None
            if longer := outlives(ends, given["expires_at"], who="token"):
                raise exceptions.ValidationError({"expires_at": longer}, code="beyond_own_rights")
            token, text = access_token_create(user=self.person, actor=self.person, **given)
            token.secret = text  # type: ignore[attr-defined]
            return self.shown(token, code=status.HTTP_201_CREATED, serializer=MadeToken)

        return self.created(make)

    @extend_schema(request=None, responses=TokenSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """Refuse the token from now on. It cannot be undone."""
        token = self.get_object()

        def end() -> Response:
            access_token_revoke(token=token, actor=self.person)
            token.refresh_from_db()
            return self.shown(token)

        return self.changed(token, end)
