"""``/guarantees`` and ``/tenants/{tenant}/guarantees``: did we keep our word? By reservation and month, and minute."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from django.http import Http404, HttpResponseBase
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.api.base import PAIRS, TiersField
from capacity.api.exports import TYPES, export
from capacity.api.usage import AnyAccept, ExportQuery
from capacity.models import GuaranteeMinute, Reservation
from capacity.models.guarantees import SUMS
from capacity.usage.attainment import Month, in_month, month_of, months
from tenants.api.base import ApiViewSet, TenantViewSet
from tenants.api.filters import MomentFilter
from tenants.api.pagination import MomentCursor
from tenants.policy.roles import Action

MINUTE_COLUMNS = ("starts_at", *SUMS, "is_breach", "reason")
_SLICE = 1000


class NewestMinuteFirst(MomentCursor):
    ordering = ("-starts_at", "-id")  # type: ignore[assignment]  # the stub knows one column alone


class MonthQuery(serializers.Serializer[Any]):
    month = serializers.RegexField(
        r"^\d{4}-(0[1-9]|1[0-2])$", required=False, help_text="As 2026-11 (UTC). Not given: this month."
    )

    def validate_month(self, value: str) -> str:
        if not "1970-01" <= value < "9999-01":
            raise serializers.ValidationError("Give a month between 1970 and 9998.")
        return value


class GuaranteeSerializer(serializers.Serializer[Any]):
    """One reservation in a month: how much of the time it was kept, and what is credited."""

    id = serializers.UUIDField(source="reservation.pk", help_text="Of the reservation.")
    pool = serializers.SlugField(source="reservation.pool.slug")
    mu_per_min = serializers.FloatField(source="reservation.mu_per_min")
    starts_at = serializers.DateTimeField(source="reservation.starts_at")
    ends_at = serializers.DateTimeField(source="reservation.ends_at", allow_null=True)
    state = serializers.CharField(source="reservation.state", help_text="active, or ended.")
    month = serializers.SerializerMethodField(help_text="As 2026-11 (UTC).")
    minutes = serializers.IntegerField(help_text="Minutes that were judged, in which something was promised.")
    breach_minutes = serializers.IntegerField()
    attainment = serializers.FloatField(help_text="Share of the minutes in which the promise was kept.")
    credit_share = serializers.FloatField(help_text="Share of the month's price that is credited.")
    credit_amount = serializers.DecimalField(
        max_digits=None,
        decimal_places=None,
        allow_null=True,
        help_text="With the decimals of the currency (ISO 4217). Null where the reservation has no price.",
    )
    currency = serializers.CharField(source="reservation.currency", allow_blank=True)
    credit_tiers = TiersField(source="reservation.credit_tiers", help_text=f"By which it is credited: {PAIRS}.")
    entitled_mu = serializers.FloatField(source="sums.entitled_mu")
    used_mu = serializers.FloatField(source="sums.used_mu")
    lent_mu = serializers.FloatField(source="sums.lent_mu", help_text="Not used, and taken by best effort.")
    throttled_mu = serializers.FloatField(source="sums.throttled_mu", help_text="Refused while entitled.")
    slow_mu = serializers.FloatField(source="sums.slow_mu", help_text="Served beyond an objective of the pool.")
    unserved_mu = serializers.FloatField(source="sums.unserved_mu", help_text="Failed or broken off by the platform.")
    requests = serializers.IntegerField(source="sums.requests")

    def get_month(self, month: Month) -> str:
        return f"{month.month:%Y-%m}"


class PlatformGuaranteeSerializer(GuaranteeSerializer):
    tenant = serializers.SlugField(source="reservation.tenant.slug")


class MinuteSerializer(serializers.ModelSerializer[GuaranteeMinute]):
    """One minute of a reservation. MU of its pool; requests within the reservation that ended in the minute."""

    class Meta:
        model = GuaranteeMinute
        fields = MINUTE_COLUMNS
        read_only_fields = fields


class MinuteFilter(django_filters.FilterSet):
    since = MomentFilter(field_name="starts_at", lookup_expr="gte", label="Began then or later.")
    until = MomentFilter(field_name="starts_at", lookup_expr="lt", label="Began before.")

    class Meta:
        model = GuaranteeMinute
        fields = ("is_breach",)


class _Guarantees(ApiViewSet[Reservation]):
    queryset = Reservation.objects.none()
    serializer_class = GuaranteeSerializer
    filter_backends = ()

    def told(self, rows: QuerySet[Reservation]) -> Response:
        asked = MonthQuery(data=self.request.query_params)
        asked.is_valid(raise_exception=True)
        text = asked.validated_data.get("month") or f"{timezone.now().astimezone(datetime.UTC):%Y-%m}"
        month = month_of(text)
        page: Any = self.paginate_queryset(in_month(rows, month).order_by("-starts_at", "pk"))
        return self.get_paginated_response(self.get_serializer(months(page, month), many=True).data)


class GuaranteesViewSet(_Guarantees):
    required: ClassVar = {"list": Action.PLATFORM_VIEW}
    serializer_class = PlatformGuaranteeSerializer

    @extend_schema(parameters=[MonthQuery])
    def list(self, request: Request) -> Response:
        """How each reservation that promised something in a month was kept: attainment, breach minutes, credit."""
        return self.told(Reservation.objects.all())


class TenantGuaranteesViewSet(_Guarantees, TenantViewSet[Reservation]):
    required: ClassVar = {"list": Action.USAGE_VIEW}

    @extend_schema(parameters=[MonthQuery])
    def list(self, request: Request, tenant: str) -> Response:
        """How each of the tenant's reservations was kept in a month: attainment, breach minutes, credit."""
        return self.told(Reservation.objects.filter(tenant=self.tenant))


_RESERVATION = OpenApiParameter(
    "reservation", OpenApiTypes.UUID, OpenApiParameter.PATH, description="Id of the reservation."
)
_FILE = extend_schema(
    parameters=[_RESERVATION, ExportQuery],
    responses={(200, content_type): OpenApiTypes.STR for content_type in TYPES.values()},
)


class _Minutes(ApiViewSet[GuaranteeMinute]):
    queryset = GuaranteeMinute.objects.none()
    serializer_class = MinuteSerializer
    pagination_class: Any = NewestMinuteFirst
    filter_backends = (DjangoFilterBackend,)
    filterset_class = MinuteFilter

    def of(self, reservations: QuerySet[Reservation]) -> QuerySet[GuaranteeMinute]:
        row = get_object_or_404(reservations, pk=_uuid(self.kwargs.get("reservation", "")))
        return GuaranteeMinute.objects.filter(reservation=row)

    def exported(self) -> HttpResponseBase:
        query = ExportQuery(data=self.request.query_params)
        query.is_valid(raise_exception=True)
        rows = self.filter_queryset(self.get_queryset())
        name = f"guarantee-{self.kwargs['reservation']}"
        return export(_slices(rows), MINUTE_COLUMNS, file_format=query.validated_data["format"], name=name)


class GuaranteeMinutesViewSet(_Minutes):
    required: ClassVar = {"list": Action.PLATFORM_VIEW}

    def get_queryset(self) -> QuerySet[GuaranteeMinute]:
        return self.of(Reservation.objects.all())

    @extend_schema(parameters=[_RESERVATION])
    def list(self, request: Request, reservation: str) -> Response:
        """The minutes of a reservation that were judged, newest first."""
        return self.listed(self.get_queryset())


class TenantGuaranteeMinutesViewSet(_Minutes, TenantViewSet[GuaranteeMinute]):
    required: ClassVar = {"list": Action.USAGE_VIEW}

    def get_queryset(self) -> QuerySet[GuaranteeMinute]:
        return self.of(Reservation.objects.filter(tenant=self.tenant))

    @extend_schema(parameters=[_RESERVATION])
    def list(self, request: Request, tenant: str, reservation: str) -> Response:
        """The minutes of one of the tenant's reservations that were judged, newest first."""
        return self.listed(self.get_queryset())


class GuaranteeMinutesExportViewSet(GuaranteeMinutesViewSet):
    content_negotiation_class = AnyAccept
    pagination_class = None

    @_FILE
    def list(self, request: Request, reservation: str) -> HttpResponseBase:  # type: ignore[override]  # a file
        """The minutes of a reservation as one file, newest first."""
        return self.exported()


class TenantGuaranteeMinutesExportViewSet(TenantGuaranteeMinutesViewSet):
    content_negotiation_class = AnyAccept
    pagination_class = None

    @_FILE
    def list(self, request: Request, tenant: str, reservation: str) -> HttpResponseBase:  # type: ignore[override]
        """The minutes of one of the tenant's reservations as one file, newest first."""
        return self.exported()


def _slices(rows: QuerySet[GuaranteeMinute]) -> Iterator[list[tuple[Any, ...]]]:
    """A slice by a query of its own each: the reader may take their time."""
    ordered = rows.order_by("-starts_at").values_list(*MINUTE_COLUMNS)
    found = list(ordered[:_SLICE])
    while found:
        yield found
        found = list(ordered.filter(starts_at__lt=found[-1][0])[:_SLICE])


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise Http404("There is no such object: ids are UUIDs.") from None
