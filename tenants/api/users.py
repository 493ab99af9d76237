"""``/users``, for operators: the people of the platform."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters
from django.db.models import Q, QuerySet
from django.urls import reverse
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from tenants.api.base import ApiViewSet
from tenants.api.problems import Conflict
from tenants.models import User
from tenants.policy.roles import Action
from tenants.services import sign_in_link_create, user_create, user_set_active


class UserSerializer(serializers.ModelSerializer[User]):
    class Meta:
        model = User
        fields = ("id", "email", "name", "is_operator", "is_active", "last_login", "created_at", "updated_at")
        read_only_fields = fields


class NewUser(serializers.Serializer[Any]):
    email = serializers.EmailField()
    name = serializers.CharField(max_length=120, allow_blank=True, default="")
    password = serializers.CharField(
        write_only=True,
        allow_null=True,
        default=None,
        trim_whitespace=False,
        max_length=1024,
        help_text="Without one they sign in by one-time link.",
    )
    is_operator = serializers.BooleanField(default=False, help_text="May do everything, in every tenant.")


class SignInUrl(serializers.Serializer[Any]):
    """``sign_in_url`` is the one-time link, shown this once: whoever has it is that person, once, within the hour."""

    sign_in_url = serializers.URLField()


class UserFilter(django_filters.FilterSet):
    search = django_filters.CharFilter(method="by_text", label="Part of the name or e-mail address.")

    class Meta:
        model = User
        fields = ("is_operator", "is_active")

    def by_text(self, rows: QuerySet[User], name: str, value: str) -> QuerySet[User]:
        return rows.filter(Q(name__icontains=value) | Q(email__icontains=value))


class UsersViewSet(ApiViewSet[User]):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "retrieve": Action.PLATFORM_VIEW,
        "create": Action.PLATFORM_OPERATE,
        "activate": Action.PLATFORM_OPERATE,
        "deactivate": Action.PLATFORM_OPERATE,
        "sign_in_link": Action.PLATFORM_OPERATE,
    }
    queryset = User.objects.all()
    serializer_class = UserSerializer
    filterset_class = UserFilter
    ordering_fields = ("email", "name", "created_at", "last_login")

    def list(self, request: Request) -> Response:
        """The people of the platform. For operators."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, pk: str) -> Response:
        """One person. For operators."""
        return self.shown(self.get_object())

    @extend_schema(request=NewUser, responses={201: UserSerializer})
    def create(self, request: Request) -> Response:
        """Make an account. Without a password its person signs in by one-time link. For operators."""

        def make() -> Response:
            made = user_create(actor=self.caller.actor, **self.read(NewUser))
            return self.shown(made, code=status.HTTP_201_CREATED)

        return self.created(make)

    @extend_schema(request=None, responses=UserSerializer)
    @action(detail=True, methods=["post"])
    def activate(self, request: Request, pk: str) -> Response:
        """Let the person in again. For operators."""
        return self._set_active(True)

    @extend_schema(request=None, responses=UserSerializer)
    @action(detail=True, methods=["post"])
    def deactivate(self, request: Request, pk: str) -> Response:
        """Keep the person out: sessions are refused; tokens, sign-in links and invitations they sent end for good.

        The last active operator stays.
        """
        return self._set_active(False)

    @extend_schema(request=None, responses={201: SignInUrl})
    @action(detail=True, methods=["post"], url_path="sign-in-link")
    def sign_in_link(self, request: Request, pk: str) -> Response:
        """Make a one-time link that signs the person in within an hour. It is in this answer and never shown again."""
        user = self.get_object()

        def make() -> Response:
            if not user.is_active:
                raise Conflict("The person is kept out: activate them first.")
            token = sign_in_link_create(user=user, actor=self.caller.actor)
            url = self.request.build_absolute_uri(reverse("sign-in-link", args=[token]))
            return Response(SignInUrl({"sign_in_url": url}).data, status=status.HTTP_201_CREATED)

        return self.created(make)

    def _set_active(self, is_active: bool) -> Response:
        user = self.get_object()

        def change() -> Response:
            user_set_active(user=user, is_active=is_active, actor=self.caller.actor)
            user.refresh_from_db()
            return self.shown(user)

        return self.changed(user, change)
