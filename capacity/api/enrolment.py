"""``/enrolment-tokens`` for operators, and ``/enrol``: a host that has such a token comes in by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import django_filters
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db.models import Q, QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import authentication, exceptions, permissions, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.api.base import NamedField, NamesField
from capacity.models import EnrolmentToken, HardwareType
from capacity.policy.enrolment import agent_url_fault
from capacity.services import (
    enrolment_token_create,
    enrolment_token_find,
    enrolment_token_redeem,
    enrolment_token_revoke,
)
from tenants.api import idempotency
from tenants.api.base import ApiViewSet, CountedView
from tenants.api.caller import Caller
from tenants.api.problems import Conflict
from tenants.policy.roles import Action

_MOST_USES = 10_000


class EnrolmentTokenSerializer(serializers.ModelSerializer[EnrolmentToken]):
    hardware_type = serializers.SlugRelatedField[HardwareType](
        slug_field="slug",
        read_only=True,
        allow_null=True,
        help_text="Of the hosts; null: the one that each of them reports.",
    )
    labels = serializers.DictField(child=serializers.CharField(), read_only=True)
    created_by = serializers.EmailField(source="created_by.email", default=None, read_only=True, allow_null=True)
    is_usable = serializers.BooleanField(read_only=True)

    class Meta:
        model = EnrolmentToken
        fields: tuple[str, ...] = (
            "id",
            "name",
            "public_id",
            "hardware_type",
            "labels",
            "uses_left",
            "expires_at",
            "revoked_at",
            "is_usable",
            "created_by",
            "created_at",
            "updated_at",
        )
        read_only_fields: tuple[str, ...] = fields


class MadeEnrolmentToken(EnrolmentTokenSerializer):
    """``secret`` is the token's whole text, shown this once."""

    secret = serializers.CharField(read_only=True)

    class Meta(EnrolmentTokenSerializer.Meta):
        fields = (*EnrolmentTokenSerializer.Meta.fields, "secret")
        read_only_fields = fields


class NewEnrolmentToken(serializers.Serializer[EnrolmentToken]):
    name = serializers.CharField(max_length=120, help_text="Which hosts it is for.")
    hardware_type = NamedField(
        slug_field="slug",
        queryset=HardwareType.objects.all(),
        allow_null=True,
        default=None,
        help_text="Id or slug. Not given: the hardware that each host reports.",
    )
    labels = NamesField(
        child=serializers.CharField(max_length=200, allow_blank=True), default=dict, help_text="Of the hosts."
    )
    uses = serializers.IntegerField(min_value=1, max_value=_MOST_USES, default=1, help_text="So many hosts can enrol.")
    expires_at = serializers.DateTimeField(allow_null=True, default=None, help_text="Not given: in 24 hours.")


class Enrolment(serializers.Serializer[Any]):
    """What a host says of itself."""

    name = serializers.SlugField(max_length=60, help_text="Of the host, as people will see it; no other has it.")
    hardware = serializers.CharField(
        max_length=120,
        allow_blank=True,
        default="",
        help_text="Its accelerator's name, or its processor's. Not needed where the token says what it is.",
    )
    is_cpu = serializers.BooleanField(default=False, help_text="It has no accelerator.")
    memory_bytes = serializers.IntegerField(
        min_value=0, max_value=2**63 - 1, default=0, help_text="Of one accelerator; of the host where it has none."
    )


class AgentConfig(serializers.Serializer[Any]):
    """The host's agent.json, as it is. ``secret`` is shown this once."""

    host_id = serializers.UUIDField()
    name = serializers.CharField()
    secret = serializers.CharField(help_text="As hexadecimal digits.")
    broker_url = serializers.CharField()
    state_url = serializers.CharField()


class EnrolmentTokenFilter(django_filters.FilterSet):
    usable = django_filters.BooleanFilter(method="by_use", label="Neither used up, revoked nor expired.")
    search = django_filters.CharFilter(field_name="name", lookup_expr="icontains", label="Part of the name.")

    class Meta:
        model = EnrolmentToken
        fields = ("public_id",)

    def by_use(self, rows: QuerySet[EnrolmentToken], name: str, value: bool) -> QuerySet[EnrolmentToken]:
        usable = Q(revoked_at=None, expires_at__gt=timezone.now(), uses_left__gt=0)
        return rows.filter(usable if value else ~usable)


class EnrolmentTokensViewSet(ApiViewSet[EnrolmentToken]):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "retrieve": Action.PLATFORM_VIEW,
        "create": Action.PLATFORM_OPERATE,
        "revoke": Action.PLATFORM_OPERATE,
    }
    queryset = EnrolmentToken.objects.select_related("hardware_type", "created_by")
    serializer_class = EnrolmentTokenSerializer
    filterset_class = EnrolmentTokenFilter
    ordering_fields = ("name", "created_at", "expires_at")

    def list(self, request: Request) -> Response:
        """The tokens with which hosts enrol themselves, newest first; without their texts."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, pk: str) -> Response:
        """One enrolment token, without its text."""
        return self.shown(self.get_object())

    @extend_schema(request=NewEnrolmentToken, responses={201: MadeEnrolmentToken})
    def create(self, request: Request) -> Response:
        """A token for so many hosts. Its text is in this answer, and nowhere else."""

        def make() -> Response:
            token, text = enrolment_token_create(actor=self.caller.actor, **self.read(NewEnrolmentToken))
            token.secret = text  # type: ignore[attr-defined]
            return self.shown(token, code=status.HTTP_201_CREATED, serializer=MadeEnrolmentToken)

        return self.created(make)

    @extend_schema(request=None, responses=EnrolmentTokenSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """Let no other host in with it; those that are in stay. It cannot be undone."""
        token = self.get_object()

        def end() -> Response:
            enrolment_token_revoke(token=token, actor=self.caller.actor)
            return self.shown(self.get_object())

        return self.changed(token, end)


# ------------------------------------------------------------------------------------------------ a host comes in
class BrokerNotReachable(Conflict):
    hint = (
        "Ask an operator to set PENSTOCK_AGENT_REDIS_URL to an address of the shared state that other hosts can reach, "
        "with a user for agents alone; then enrol again."
    )
    default_code = "broker_not_reachable"


class EnrolmentTokenAuthentication(authentication.BaseAuthentication):
    """401 for a header that names no living enrolment token. A used up one may still ask what it was answered."""

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="penstock enrolment"'

    def authenticate(self, request: Request) -> tuple[AnonymousUser, EnrolmentToken] | None:
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        token = enrolment_token_find(text.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            raise exceptions.AuthenticationFailed("Send 'Authorization: Bearer' with an enrolment token (pse_…).")
        if not token.is_living:
            raise exceptions.AuthenticationFailed("The enrolment token was revoked or has expired: ask for another.")
        return AnonymousUser(), token


class HasEnrolmentToken(permissions.BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return isinstance(request.auth, EnrolmentToken)


@dataclass(frozen=True)
class _Host(Caller):
    """A host that is coming in, known by its token."""

    token: EnrolmentToken | None = None

    @property
    def identity(self) -> str:
        return f"enrolment:{self.token.pk if self.token else ''}"


class EnrolView(CountedView):
    authentication_classes = (EnrolmentTokenAuthentication,)
    permission_classes = (HasEnrolmentToken,)

    @extend_schema(request=Enrolment, responses={201: AgentConfig})
    def post(self, request: Request) -> Response:
        """Enrol the host that asks, with an enrolment token (pse_…) as bearer token.

        The answer is what the host's agent.json holds, and its secret is shown this once. Send an Idempotency-Key: a
        host that lost the answer asks again and gets the same.
        """
        url, token = settings.PENSTOCK_AGENT_REDIS_URL, cast(EnrolmentToken, request.auth)
        if fault := agent_url_fault(url, own=settings.REDIS_URL):
            raise BrokerNotReachable(f"No host can enrol: {fault}")

        def enrol() -> Response:
            given = Enrolment(data=request.data)
            given.is_valid(raise_exception=True)
            host, secret = enrolment_token_redeem(token=token, **given.validated_data)
            told = {"host_id": host.pk, "name": host.name, "secret": secret.hex()}
            content = {**told, "broker_url": url, "state_url": url}
            return Response(AgentConfig(content).data, status=status.HTTP_201_CREATED)

        return idempotency.once(request, _Host(token=token), enrol)
