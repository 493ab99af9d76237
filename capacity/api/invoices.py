"""``/invoices`` and ``/tenants/{tenant}/invoices``: what was issued, what a month comes to, files, and issuing."""

from __future__ import annotations

import datetime
import json
from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from django.http import HttpResponse, HttpResponseBase
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.helpers import forced_singular_serializer
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.api.base import NamedField
from capacity.api.exports import TYPES, export
from capacity.api.guarantees import MonthQuery
from capacity.api.usage import AnyAccept
from capacity.models import Invoice
from capacity.policy.invoice import LINE_COLUMNS, told_line, told_period, totals_of
from capacity.services import Preview, invoice_issue, invoice_preview
from capacity.usage.attainment import month_of
from tenants.api.base import ApiViewSet, TenantViewSet
from tenants.api.pagination import Cursor
from tenants.models import Tenant
from tenants.policy.roles import Action

LINE_KINDS = ("reservation", "credit", "usage")
FILES = {"csv": TYPES["csv"], "json": "application/json"}
_INVOICE = OpenApiParameter("invoice", OpenApiTypes.UUID, OpenApiParameter.PATH, description="Id of the document.")


class HighestNumberFirst(Cursor):
    ordering = "-number"

    def position(self, text: str) -> str:
        """A number that a column can hold."""
        number = int(text)
        if not 0 <= number < 2**63:
            raise ValueError("no document can have this number")
        return str(number)


class InvoiceLineSerializer(serializers.Serializer[Any]):
    """One line. Decimals are text, so that no digit is lost. In a note all of it is a difference."""

    kind = serializers.ChoiceField(LINE_KINDS)
    currency = serializers.CharField()
    amount = serializers.CharField(
        help_text="Rounded to the smallest part of the currency (ISO 4217), half to even; in format 1 to hundredths."
    )
    pool_id = serializers.UUIDField()
    pool = serializers.CharField(help_text="Its slug when it was issued.")
    price = serializers.CharField(
        allow_null=True, help_text="Per 1,000 MU for usage, per MU/min and month for a reservation; null: none."
    )
    model = serializers.CharField(allow_blank=True, help_text="Served model, of usage.")
    profile_version = serializers.IntegerField(allow_null=True, help_text="Version of the price, of usage.")
    service_class = serializers.CharField(allow_blank=True, help_text="Of usage: reserved costs nothing here.")
    requests = serializers.IntegerField()
    input_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    mu = serializers.CharField(help_text="To nine decimals.")
    reservation = serializers.CharField(allow_blank=True, help_text="Its id.")
    mu_per_min = serializers.CharField(allow_null=True, help_text="Of the reservation.")
    minutes = serializers.IntegerField(help_text="Of the reservation, that are charged.")
    breach_minutes = serializers.IntegerField(help_text="For which there is a credit.")
    credit_share = serializers.CharField(allow_null=True, help_text="Of the reservation's price.")


class InvoicePeriodSerializer(serializers.Serializer[Any]):
    """Half-open."""

    since = serializers.DateTimeField()
    until = serializers.DateTimeField()
    time_zone = serializers.CharField()


class ChainEndSerializer(serializers.Serializer[Any]):
    """Up to which record of the tenant's chain of usage a document speaks."""

    sequence = serializers.IntegerField()
    hash = serializers.CharField(allow_blank=True)


class InvoiceContentSerializer(serializers.Serializer[Any]):
    """All that a document says. Its hash is the SHA-256 of this as JSON without spaces, keys sorted."""

    format = serializers.IntegerField()
    name = serializers.CharField()
    number = serializers.IntegerField()
    kind = serializers.ChoiceField(Invoice.Kind.choices)
    tenant_id = serializers.UUIDField()
    tenant = serializers.CharField()
    tenant_name = serializers.CharField()
    month = serializers.CharField(help_text="As 2026-11 (UTC).")
    period = InvoicePeriodSerializer()
    issued_at = serializers.DateTimeField()
    corrects = serializers.CharField(allow_null=True, help_text="Of a note: the name of the invoice.")
    currency = serializers.CharField(help_text="Of the prices of usage.")
    lines = InvoiceLineSerializer(many=True)
    totals = serializers.DictField(child=serializers.CharField(), help_text="By currency.")
    chain = ChainEndSerializer()


class InvoiceSerializer(serializers.ModelSerializer[Invoice]):
    """An invoice, or a note that corrects it. It never changes."""

    month = serializers.SerializerMethodField(help_text="As 2026-11 (UTC).")
    name = serializers.CharField(read_only=True, help_text="Its number as people write it.")
    totals = serializers.DictField(
        child=serializers.CharField(), source="content.totals", read_only=True, help_text="By currency."
    )
    corrects = serializers.CharField(
        source="content.corrects", read_only=True, allow_null=True, help_text="Of a note: the name of the invoice."
    )

    class Meta:
        model = Invoice
        fields: tuple[str, ...] = (
            "id",
            "name",
            "number",
            "kind",
            "month",
            "totals",
            "corrects",
            "issued_at",
            "hash",
        )
        read_only_fields: tuple[str, ...] = fields

    def get_month(self, row: Invoice) -> str:
        return f"{row.month:%Y-%m}"


class InvoiceDetailSerializer(InvoiceSerializer):
    content = serializers.SerializerMethodField(help_text="All that it says: what the hash is of.")

    class Meta(InvoiceSerializer.Meta):
        fields = (*InvoiceSerializer.Meta.fields, "content")
        read_only_fields = fields

    @extend_schema_field(InvoiceContentSerializer)
    def get_content(self, row: Invoice) -> Any:
        return row.content


class _OfPlatform(serializers.Serializer[Any]):
    tenant = serializers.SlugField(source="tenant.slug", read_only=True)


class PlatformInvoiceSerializer(_OfPlatform, InvoiceSerializer):
    class Meta(InvoiceSerializer.Meta):
        fields = ("tenant", *InvoiceSerializer.Meta.fields, "issued_by")
        read_only_fields = fields


class PlatformInvoiceDetailSerializer(_OfPlatform, InvoiceDetailSerializer):
    class Meta(InvoiceDetailSerializer.Meta):
        fields = ("tenant", *InvoiceDetailSerializer.Meta.fields, "issued_by")
        read_only_fields = fields


class InvoicePreviewSerializer(serializers.Serializer[Any]):
    """What a month comes to by what is booked now. It is no invoice, and is not kept."""

    status = serializers.ChoiceField(("preview",))
    month = serializers.CharField(help_text="As 2026-11 (UTC).")
    period = InvoicePeriodSerializer()
    waits_for = serializers.CharField(allow_blank=True, help_text="Why it cannot be issued yet; empty where it can.")
    is_empty = serializers.BooleanField(help_text="Nothing has a price: there will be no invoice.")
    currency = serializers.CharField(help_text="Of the prices of usage.")
    lines = InvoiceLineSerializer(many=True)
    totals = serializers.DictField(child=serializers.CharField(), help_text="By currency.")
    documents = serializers.ListField(
        child=serializers.CharField(), help_text="Names of what was issued of the month, oldest first."
    )


class IssueFields(serializers.Serializer[Any]):
    tenant = NamedField(slug_field="slug", queryset=Tenant.objects.all(), help_text="Id or slug.")
    month = serializers.RegexField(r"^\d{4}-(0[1-9]|1[0-2])$", help_text="As 2026-11 (UTC). It must be over.")

    def validate_month(self, value: str) -> datetime.date:
        return month_of(MonthQuery().validate_month(value))


class FileQuery(serializers.Serializer[Any]):
    format = serializers.ChoiceField(
        tuple(FILES), default="csv", help_text="CSV: its lines. JSON: all that it says, and its hash."
    )


class InvoiceFilter(django_filters.FilterSet):
    kind = django_filters.ChoiceFilter(choices=Invoice.Kind.choices)
    month = django_filters.CharFilter(method="of_month", label="As 2026-11 (UTC).")

    def of_month(self, rows: QuerySet[Invoice], name: str, value: str) -> QuerySet[Invoice]:
        asked = MonthQuery(data={"month": value})
        asked.is_valid(raise_exception=True)
        return rows.filter(month=month_of(value))


class PlatformInvoiceFilter(InvoiceFilter):
    tenant = django_filters.CharFilter(field_name="tenant__slug", label="Slug of the tenant.")


class _Invoices(ApiViewSet[Invoice]):
    queryset = Invoice.objects.none()
    serializer_class: Any = InvoiceSerializer
    detail_class: ClassVar[Any] = InvoiceDetailSerializer
    pagination_class: Any = HighestNumberFirst
    filter_backends: Any = (DjangoFilterBackend,)
    filterset_class: Any = InvoiceFilter
    lookup_url_kwarg = "invoice"


class InvoicesViewSet(_Invoices):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "retrieve": Action.PLATFORM_VIEW,
        "create": Action.PLATFORM_OPERATE,
    }
    queryset = Invoice.objects.select_related("tenant")
    serializer_class = PlatformInvoiceSerializer
    detail_class = PlatformInvoiceDetailSerializer
    filterset_class = PlatformInvoiceFilter

    def list(self, request: Request) -> Response:
        """What was issued to all tenants, newest first."""
        return self.listed(self.get_queryset())

    @extend_schema(parameters=[_INVOICE], responses=PlatformInvoiceDetailSerializer)
    def retrieve(self, request: Request, invoice: str) -> Response:
        """One document with its lines."""
        return self.shown(self.get_object(), serializer=self.detail_class)

    @extend_schema(
        request=IssueFields, responses={201: PlatformInvoiceDetailSerializer, 200: PlatformInvoiceDetailSerializer}
    )
    def create(self, request: Request) -> Response:
        """Issue the invoice of a month that is final or, where it has been issued, a note of what has changed since.

        200 with the newest document of the month where nothing has.
        """

        def make() -> Response:
            given = self.read(IssueFields)
            issued = invoice_issue(actor=self.caller.actor, **given)
            code = status.HTTP_201_CREATED if issued.is_new else status.HTTP_200_OK
            return self.shown(issued.invoice, code=code, serializer=self.detail_class)

        return self.created(make)


class TenantInvoicesViewSet(_Invoices, TenantViewSet[Invoice]):
    required: ClassVar = dict.fromkeys(("list", "retrieve", "preview"), Action.USAGE_VIEW)

    def get_queryset(self) -> QuerySet[Invoice]:
        return Invoice.objects.filter(tenant=self.tenant)

    def list(self, request: Request, tenant: str) -> Response:
        """What was issued to the tenant, newest first."""
        return self.listed(self.get_queryset())

    @extend_schema(parameters=[_INVOICE], responses=InvoiceDetailSerializer)
    def retrieve(self, request: Request, tenant: str, invoice: str) -> Response:
        """One document with its lines."""
        return self.shown(self.get_object(), serializer=self.detail_class)

    @extend_schema(parameters=[MonthQuery], responses=InvoicePreviewSerializer)
    @action(detail=False, methods=["get"], pagination_class=None, filter_backends=())
    def preview(self, request: Request, tenant: str) -> Response:
        """What a month comes to by what is booked now: this month, where none is named."""
        asked = MonthQuery(data=request.query_params)
        asked.is_valid(raise_exception=True)
        month = month_of(asked.validated_data.get("month") or this_month())
        return Response(told_preview(invoice_preview(tenant=self.tenant, month=month), month))


class InvoiceFileSerializer(serializers.Serializer[Any]):
    """A document as a file."""

    hash = serializers.CharField()
    content = InvoiceContentSerializer()


_ONE_FILE: Any = forced_singular_serializer(InvoiceFileSerializer)  # type: ignore[no-untyped-call]  # the library's
_FILE = extend_schema(
    parameters=[_INVOICE, FileQuery],
    responses={(200, FILES["csv"]): OpenApiTypes.STR, (200, FILES["json"]): _ONE_FILE},
)


class InvoiceFileViewSet(_Invoices):
    required: ClassVar = {"list": Action.PLATFORM_VIEW}
    queryset = Invoice.objects.all()
    content_negotiation_class = AnyAccept
    pagination_class = None
    filter_backends = ()

    @_FILE
    def list(self, request: Request, invoice: str) -> HttpResponseBase:
        """A document as a file."""
        return told_file(self.get_object(), request)


class TenantInvoiceFileViewSet(TenantViewSet[Invoice]):
    required: ClassVar = {"list": Action.USAGE_VIEW}
    queryset = Invoice.objects.none()
    serializer_class = InvoiceSerializer
    content_negotiation_class = AnyAccept
    pagination_class = None
    filter_backends = ()
    lookup_url_kwarg = "invoice"

    def get_queryset(self) -> QuerySet[Invoice]:
        return Invoice.objects.filter(tenant=self.tenant)

    @_FILE
    def list(self, request: Request, tenant: str, invoice: str) -> HttpResponseBase:
        """One of the tenant's documents as a file."""
        return told_file(self.get_object(), request)


def this_month() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m}"


def told_preview(found: Preview, month: datetime.date) -> dict[str, Any]:
    """As ``InvoicePreviewSerializer`` has it."""
    return {
        "status": "preview",
        "month": f"{month:%Y-%m}",
        "period": told_period(month),
        "waits_for": found.waits_for,
        "is_empty": found.is_empty,
        "currency": found.currency,
        "lines": [told_line(line) for line in found.lines],
        "totals": {name: f"{total:f}" for name, total in totals_of(found.lines).items()},
        "documents": [one.name for one in found.documents],
    }


def told_file(row: Invoice, request: Request) -> HttpResponseBase:
    """The document as a download. Raises ValidationError for another format."""
    query = FileQuery(data=request.query_params)
    query.is_valid(raise_exception=True)
    if query.validated_data["format"] == "csv":
        lines = [
            (row.name, f"{row.month:%Y-%m}", *(line[name] for name in LINE_COLUMNS)) for line in row.content["lines"]
        ]
        return export([lines], ("document", "month", *LINE_COLUMNS), file_format="csv", name=row.name)
    headers = {"Content-Disposition": f'attachment; filename="{row.name}.json"', "Cache-Control": "no-store"}
    text = json.dumps({"hash": row.hash, "content": row.content}, indent=1)
    return HttpResponse(text, content_type=FILES["json"], headers=headers)
