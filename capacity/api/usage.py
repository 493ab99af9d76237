"""``/tenants/{tenant}/usage`` and ``/usage``: requests, their receipts, roll-ups and exports."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from django.http import Http404, HttpResponseBase
from django.utils import timezone
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.api.exports import TYPES, export
from capacity.api.receipts import (
    PlatformReceiptSerializer,
    PlatformUsageSerializer,
    ReceiptSerializer,
    UsageSerializer,
)
from capacity.models import OUTCOMES, UsageRecord, UsageRollup
from capacity.refusals import refused
from capacity.usage.reads import COLUMNS, GROUPS, PLATFORM_COLUMNS, in_slices, rollups_grouped
from tenants.api.base import ApiViewSet, TenantViewSet, find_tenant
from tenants.api.filters import MomentFilter
from tenants.api.pagination import MomentCursor
from tenants.policy.roles import Action

_SPANS = {"minute": datetime.timedelta(hours=1), "hour": datetime.timedelta(days=1), "day": datetime.timedelta(days=30)}
"""How far back the roll-ups of a period go where ``since`` is not given."""

_FIRST = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_TOO_EARLY = "Give a moment after 1970."


class NewestFirst(MomentCursor):
    ordering = ("-ended_at", "-id")  # type: ignore[assignment]  # the stub knows one column alone


class UsageFilter(django_filters.FilterSet):
    key = django_filters.UUIDFilter(field_name="key_id", label="Id of the API key.")
    pool = django_filters.UUIDFilter(field_name="pool_id", label="Id of the pool.")
    deployment = django_filters.UUIDFilter(field_name="deployment_id", label="Id of the deployment.")
    outcome = django_filters.ChoiceFilter(choices=[(name, name) for name in OUTCOMES])
    since = MomentFilter(field_name="ended_at", lookup_expr="gte", label="Ended then or later.")
    until = MomentFilter(field_name="ended_at", lookup_expr="lt", label="Ended before.")

    class Meta:
        model = UsageRecord
        fields = ("model", "service_class", "client_request_id", "stream", "lower_bound")


class PlatformUsageFilter(UsageFilter):
    tenant = django_filters.CharFilter(method="by_tenant", label="Id or slug of the tenant.")

    def by_tenant(self, rows: QuerySet[UsageRecord], name: str, value: str) -> QuerySet[UsageRecord]:
        return rows.filter(tenant_id=_tenant_id(value))


class ExportQuery(serializers.Serializer[Any]):
    format = serializers.ChoiceField(tuple(TYPES), default="csv", help_text="CSV, or one JSON object a line.")


class RollupQuery(serializers.Serializer[Any]):
    """Which roll-ups, and by what they are summed beside the pool."""

    period = serializers.ChoiceField(UsageRollup.Period.choices, default="hour")
    group = serializers.ChoiceField(
        [name for name in GROUPS if name != "tenant"],
        required=False,
        help_text="Sums for each of these in each pool. A deployment serves one model. Not given: by pool alone.",
    )
    since = serializers.DateTimeField(
        required=False, help_text="Started then or later. Not given: an hour of minutes, a day of hours, 30 days."
    )
    until = serializers.DateTimeField(required=False, help_text="Started before. Not given: now.")
    key = serializers.UUIDField(required=False, help_text="Of this API key alone.")
    pool = serializers.UUIDField(required=False, help_text="Of this pool alone.")
    deployment = serializers.UUIDField(required=False, help_text="Of this deployment alone.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        until = attrs.setdefault("until", timezone.now())
        if until < _FIRST:
            raise serializers.ValidationError({"until": [_TOO_EARLY]})
        if attrs.setdefault("since", until - _SPANS[attrs["period"]]) >= until:
            raise serializers.ValidationError({"since": ["Give a moment before until."]})
        return attrs


class PlatformRollupQuery(RollupQuery):
    group = serializers.ChoiceField(
        list(GROUPS), required=False, help_text="Sums for each of these in each pool. Not given: by pool alone."
    )
    tenant = serializers.CharField(required=False, help_text="Of this tenant alone, by id or slug.")


class RollupSerializer(serializers.Serializer[Any]):
    """Usage of one pool in one period, of one key, deployment, class or tenant where they are grouped by it."""

    starts_at = serializers.DateTimeField(help_text="Start of the minute, hour or day (UTC).")
    pool_id = serializers.UUIDField()
    key_id = serializers.UUIDField(required=False)
    deployment_id = serializers.UUIDField(required=False)
    service_class = serializers.CharField(required=False)
    tenant_id = serializers.UUIDField(required=False)
    requests = serializers.IntegerField()
    failed = serializers.IntegerField(help_text="Neither completed nor left by the client.")
    input_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    mu = serializers.FloatField(help_text="In model units of this pool.")
    money = serializers.FloatField(
        help_text="What the MU that no reservation pays for cost, in the installation's currency; 0 without a price."
    )
    mean_ttft_ms = serializers.SerializerMethodField(help_text="Of streams; null where there was none.")
    mean_duration_ms = serializers.SerializerMethodField()
    is_final = serializers.SerializerMethodField(help_text="No request of the period can come in any more.")

    def get_mean_ttft_ms(self, row: dict[str, Any]) -> float | None:
        return row["ttft_ms_sum"] / row["ttft_count"] if row["ttft_count"] else None

    def get_mean_duration_ms(self, row: dict[str, Any]) -> float | None:
        return row["duration_ms_sum"] / row["requests"] if row["requests"] else None

    def get_is_final(self, row: dict[str, Any]) -> bool:
        return not row["open"]


class UsageViewSet(ApiViewSet[UsageRecord]):
    required: ClassVar = {"list": Action.PLATFORM_VIEW, "retrieve": Action.PLATFORM_VIEW}
    queryset = UsageRecord.objects.all()
    serializer_class = PlatformUsageSerializer
    pagination_class = NewestFirst
    filter_backends = (DjangoFilterBackend,)
    filterset_class = PlatformUsageFilter

    def list(self, request: Request) -> Response:
        """Requests of all tenants that have ended, newest first."""
        return self.listed(self.get_queryset())

    @extend_schema(responses=PlatformReceiptSerializer)
    def retrieve(self, request: Request, pk: str) -> Response:
        """The receipt of one request: its tokens, what it was estimated at and cost, term by term, and its times.

        Of one that was refused before it was admitted, for an hour: why, and what stood in its way.
        """
        return _receipt(self, pk, tenant_id=None, serializer=PlatformReceiptSerializer)


class TenantUsageViewSet(TenantViewSet[UsageRecord]):
    required: ClassVar = {"list": Action.USAGE_VIEW, "retrieve": Action.USAGE_VIEW}
    queryset = UsageRecord.objects.none()
    serializer_class = UsageSerializer
    pagination_class = NewestFirst
    filter_backends = (DjangoFilterBackend,)
    filterset_class = UsageFilter

    def get_queryset(self) -> QuerySet[UsageRecord]:
        return UsageRecord.objects.filter(tenant_id=self.tenant.pk)

    def list(self, request: Request, tenant: str) -> Response:
        """The tenant's requests that have ended, newest first."""
        return self.listed(self.get_queryset())

    @extend_schema(responses=ReceiptSerializer)
    def retrieve(self, request: Request, tenant: str, pk: str) -> Response:
        """The receipt of one request: its tokens, what it was estimated at and cost, term by term, and its times.

        Of one that was refused before it was admitted, for an hour: why, and what stood in its way.
        """
        return _receipt(self, pk, tenant_id=self.tenant.pk, serializer=ReceiptSerializer)


def _receipt(
    view: ApiViewSet[UsageRecord], pk: str, *, tenant_id: uuid.UUID | None, serializer: type[ReceiptSerializer]
) -> Response:
    """Of what is booked or, for a while, of what was refused; without ``tenant_id`` of any tenant. Raises Http404."""
    try:
        return view.shown(view.get_object(), serializer=serializer)
    except Http404:
        found = refused(tenant_id, pk)
        if found is None:
            raise
    record, refusal = found
    context = {**view.get_serializer_context(), "refusal": refusal}
    return Response(serializer(record, context=context).data)


class AnyAccept(BaseContentNegotiation):
    """``format`` says what a file holds; problems are JSON whatever it is."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


_FILES = extend_schema(
    parameters=[ExportQuery], responses={(200, content_type): OpenApiTypes.STR for content_type in TYPES.values()}
)


class _Export(ApiViewSet[UsageRecord]):
    serializer_class = UsageSerializer
    pagination_class = None
    filter_backends = (DjangoFilterBackend,)
    content_negotiation_class = AnyAccept

    def exported(self, columns: Sequence[str], *, name: str) -> HttpResponseBase:
        query = ExportQuery(data=self.request.query_params)
        query.is_valid(raise_exception=True)
        rows = self.filter_queryset(self.get_queryset())
        return export(in_slices(rows, columns), columns, file_format=query.validated_data["format"], name=name)


class UsageExportViewSet(_Export):
    required: ClassVar = {"list": Action.PLATFORM_VIEW}
    queryset = UsageRecord.objects.all()
    filterset_class = PlatformUsageFilter

    @_FILES
    def list(self, request: Request) -> HttpResponseBase:
        """All requests of all tenants, newest first, as one file that is made while it is sent."""
        return self.exported(PLATFORM_COLUMNS, name="usage")


class TenantUsageExportViewSet(_Export, TenantViewSet[UsageRecord]):
    required: ClassVar = {"list": Action.USAGE_VIEW}
    queryset = UsageRecord.objects.none()
    filterset_class = UsageFilter

    def get_queryset(self) -> QuerySet[UsageRecord]:
        return UsageRecord.objects.filter(tenant_id=self.tenant.pk)

    @_FILES
    def list(self, request: Request, tenant: str) -> HttpResponseBase:
        """All requests of the tenant, newest first, as one file that is made while it is sent."""
        return self.exported(COLUMNS, name=f"usage-{self.tenant.slug}")


class _Rollups(ApiViewSet[UsageRollup]):
    queryset = UsageRollup.objects.none()
    serializer_class = RollupSerializer
    filter_backends = ()

    def summed(self, query: type[RollupQuery], **only: Any) -> Response:
        asked = query(data=self.request.query_params)
        asked.is_valid(raise_exception=True)
        given = dict(asked.validated_data)
        for name in ("key", "pool", "deployment"):
            if name in given:
                only[f"{name}_id"] = given.pop(name)
        if "tenant" in given:
            only["tenant_id"] = _tenant_id(given.pop("tenant"))
        rows: Any = rollups_grouped(group=given.pop("group", None), **given, **only)
        return self.listed(rows)


class UsageRollupsViewSet(_Rollups):
    required: ClassVar = {"list": Action.PLATFORM_VIEW}

    @extend_schema(parameters=[PlatformRollupQuery])
    def list(self, request: Request) -> Response:
        """Sums of all tenants' usage by minute, hour or day, newest first: by pool, and by what is asked within it."""
        return self.summed(PlatformRollupQuery)


class TenantUsageRollupsViewSet(_Rollups, TenantViewSet[UsageRollup]):
    required: ClassVar = {"list": Action.USAGE_VIEW}

    @extend_schema(parameters=[RollupQuery])
    def list(self, request: Request, tenant: str) -> Response:
        """Sums of the tenant's usage by minute, hour or day, newest first: by pool, and by what is asked within it."""
        return self.summed(RollupQuery, tenant_id=self.tenant.pk)


def _tenant_id(name: str) -> uuid.UUID:
    """Usage outlives its tenant: an id that is not known any more still counts."""
    try:
        return find_tenant(name).pk
    except Http404:
        try:
            return uuid.UUID(name)
        except ValueError:
            raise serializers.ValidationError({"tenant": [f"There is no tenant {name!r}."]}) from None
