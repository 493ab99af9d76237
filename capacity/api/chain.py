"""``/tenants/{tenant}/usage/file`` and ``/usage/anchors``: what a tenant needs to check its usage by itself."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

from django.db.models import QuerySet
from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.api.exports import TYPES, SlicedResponse
from capacity.api.usage import AnyAccept
from capacity.models import UsageAnchor, UsageRecord
from capacity.usage.file import usage_file
from tenants.api.base import TenantViewSet
from tenants.policy.roles import Action


class FileQuery(serializers.Serializer[Any]):
    since = serializers.DateField(
        required=False, help_text="From this day (UTC) on. Not given: all records that are still kept."
    )

    def validate_since(self, value: datetime.date) -> datetime.date:
        if value.year < 1970:
            raise serializers.ValidationError("Give a day after 1970.")
        return value


class AnchorSerializer(serializers.ModelSerializer[UsageAnchor]):
    """Where the tenant's chain of usage records stood when a day was over. Keep it: it can never change."""

    class Meta:
        model = UsageAnchor
        fields = ("id", "day", "at", "sequence", "hash")
        read_only_fields = fields


class TenantUsageFileViewSet(TenantViewSet[UsageRecord]):
    required: ClassVar = {"list": Action.USAGE_VIEW}
    queryset = UsageRecord.objects.none()
    pagination_class = None
    filter_backends = ()
    content_negotiation_class = AnyAccept

    @extend_schema(parameters=[FileQuery], responses={(200, TYPES["ndjson"]): OpenApiTypes.STR})
    def list(self, request: Request, tenant: str) -> HttpResponseBase:
        """The tenant's chained records in the order of their booking, with the prices, anchors and daily sums that they
        are checked against: a file for ``penstock usage verify``, made while it is sent.
        """
        asked = FileQuery(data=request.query_params)
        asked.is_valid(raise_exception=True)
        lines = usage_file(tenant_id=self.tenant.pk, tenant=self.tenant.slug, since=asked.validated_data.get("since"))
        name = f"usage-file-{self.tenant.slug}.ndjson"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
        return SlicedResponse(lines, content_type=TYPES["ndjson"], headers=headers)


class TenantUsageAnchorsViewSet(TenantViewSet[UsageAnchor]):
    required: ClassVar = {"list": Action.USAGE_VIEW, "retrieve": Action.USAGE_VIEW}
    queryset = UsageAnchor.objects.none()
    serializer_class = AnchorSerializer
    filter_backends = ()

    def get_queryset(self) -> QuerySet[UsageAnchor]:
        return UsageAnchor.objects.filter(tenant_id=self.tenant.pk).order_by("-day")

    def list(self, request: Request, tenant: str) -> Response:
        """Where the tenant's chain stood at the end of each day, newest first. Anchors outlive the records."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, tenant: str, pk: str) -> Response:
        """One anchor."""
        return self.shown(self.get_object())
