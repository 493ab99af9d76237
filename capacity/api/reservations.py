"""``/reservations``, for operators: sold, asked for, changed. ``/tenants/{tenant}/reservations``: a tenant's own."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.api.base import PAIRS, NamedField, NumberField, TiersField
from capacity.api.ledger import SaleProblemSerializer, asked
from capacity.models import Pool, Reservation
from capacity.promises import conversion_of
from capacity.selectors import pools_usable
from capacity.services import (
    reservation_approve,
    reservation_cancel,
    reservation_change,
    reservation_convert,
    reservation_refuse,
    reservation_renew,
    reservation_request,
    reservation_restore,
    reservation_sell,
    reservation_withdraw,
)
from tenants.api.base import ApiViewSet, TenantViewSet
from tenants.api.filters import MomentFilter
from tenants.models import Tenant
from tenants.policy.roles import Action

_REFUSED = {(409, "application/problem+json"): SaleProblemSerializer}


class TenantReservationSerializer(serializers.ModelSerializer[Reservation]):
    """What a tenant is told of its own."""

    pool = serializers.SlugRelatedField[Pool](slug_field="slug", read_only=True)
    profile_version = serializers.IntegerField(
        source="profile.version", read_only=True, help_text="Version of the pool's price in which its MU count."
    )
    credit_tiers = TiersField(
        read_only=True, help_text=f"What its breach minutes give back, since it was sold: {PAIRS}."
    )
    renews = serializers.PrimaryKeyRelatedField[Reservation](
        read_only=True, allow_null=True, help_text="What it follows."
    )

    class Meta:
        model = Reservation
        fields: tuple[str, ...] = (
            "id",
            "pool",
            "state",
            "mu_per_min",
            "burst_mu",
            "starts_at",
            "ends_at",
            "profile_version",
            "price",
            "currency",
            "credit_tiers",
            "note",
            "requested_by",
            "decided_at",
            "reason",
            "renews",
            "created_at",
            "updated_at",
        )
        read_only_fields: tuple[str, ...] = fields


class ReservationSerializer(TenantReservationSerializer):
    """What operators are told: also whose it is, and what the ledger said of it."""

    tenant = serializers.SlugRelatedField[Tenant](slug_field="slug", read_only=True)

    class Meta(TenantReservationSerializer.Meta):
        fields = (
            "id",
            "tenant",
            *TenantReservationSerializer.Meta.fields[1:],
            "decided_by",
            "verdict",
            "override_reason",
            "is_overcommitted",
        )
        read_only_fields = fields


class PoolField(NamedField):
    """A pool by its id or slug; below a tenant's address one that it may not use does not exist."""

    def get_queryset(self) -> QuerySet[Pool]:
        view = self.context.get("view")
        return pools_usable(view.tenant) if isinstance(view, TenantViewSet) else Pool.objects.all()


class RequestFields(serializers.Serializer[Any]):
    """What a tenant asks for."""

    pool = PoolField(slug_field="slug", queryset=Pool.objects.all(), help_text="Id or slug.")
    mu_per_min = NumberField(help_text="More than 0.")
    starts_at = serializers.DateTimeField(required=False, allow_null=True, help_text="Now, where it is not given.")
    ends_at = serializers.DateTimeField(required=False, allow_null=True, help_text="null: until it is cancelled.")
    note = serializers.CharField(max_length=2000, allow_blank=True, default="", help_text="What it is for.")


class TermsFields(serializers.Serializer[Any]):
    """What an operator can say beside how much and when."""

    burst_mu = NumberField(
        required=False,
        allow_null=True,
        help_text="MU that its bucket holds; null: 10 s of the rate, and at least the largest request.",
    )
    price = serializers.DecimalField(
        max_digits=14, decimal_places=6, required=False, allow_null=True, help_text="Money per MU/min and month."
    )
    currency = serializers.CharField(max_length=3, allow_blank=True, required=False, help_text="ISO 4217, e.g. EUR.")
    note = serializers.CharField(max_length=2000, allow_blank=True, required=False)
    override_reason = serializers.CharField(
        max_length=500,
        allow_blank=True,
        default="",
        help_text="Sell it although it does not fit, and say why: it stays marked as overcommitted.",
    )


class SaleFields(TermsFields, RequestFields):
    """A sale."""

    tenant = NamedField(slug_field="slug", queryset=Tenant.objects.all(), help_text="Id or slug.")


class ChangeFields(TermsFields):
    """What can be changed of a reservation. ``starts_at`` only of one that has not started."""

    mu_per_min = NumberField(required=False)
    starts_at = serializers.DateTimeField(required=False)
    ends_at = serializers.DateTimeField(required=False, allow_null=True)


class RenewFields(TermsFields):
    """A further term."""

    ends_at = serializers.DateTimeField(required=False, allow_null=True, help_text="null: until it is cancelled.")
    mu_per_min = NumberField(required=False, help_text="In the version in force; else what it was, times the factor.")
    accepted_factor = NumberField(required=False, help_text="Of the conversion, where another version is in force.")


class ConvertFields(serializers.Serializer[Any]):
    accepted_factor = NumberField(help_text="Of the conversion, as it was shown.")
    override_reason = serializers.CharField(max_length=500, allow_blank=True, default="")


class ReasonFields(serializers.Serializer[Any]):
    reason = serializers.CharField(max_length=500, allow_blank=True, default="", help_text="The tenant reads it.")


class RestoreFields(serializers.Serializer[Any]):
    ends_at = serializers.DateTimeField(
        required=False,
        allow_null=True,
        help_text="Needed of one that had begun: its end was moved when it was cancelled. null: it has none.",
    )
    override_reason = serializers.CharField(max_length=500, allow_blank=True, default="")


class ConversionSerializer(serializers.Serializer[Any]):
    """What an MU of the reservation's version is worth in the version in force."""

    from_version = serializers.IntegerField()
    to_version = serializers.IntegerField()
    factor = serializers.FloatField(help_text="MU of the version in force per MU of the reservation's.")
    basis = serializers.ChoiceField(("same", "usage", "standard"))
    reason = serializers.CharField()
    mu_per_min = serializers.FloatField(help_text="What the reservation would be in the version in force.")


class TenantReservationFilter(django_filters.FilterSet):
    pool = django_filters.CharFilter(field_name="pool__slug", label="Slug of the pool.")
    state = django_filters.MultipleChoiceFilter(choices=Reservation.State.choices, label="Its state; several may be.")
    since = MomentFilter(field_name="starts_at", lookup_expr="gte", label="Starts then or later.")
    until = MomentFilter(field_name="starts_at", lookup_expr="lt", label="Starts before.")


class ReservationFilter(TenantReservationFilter):
    tenant = django_filters.CharFilter(field_name="tenant__slug", label="Slug of the tenant.")
    verdict = django_filters.ChoiceFilter(choices=Reservation.Verdict.choices[1:], label="What the ledger said.")


class ReservationsViewSet(ApiViewSet[Reservation]):
    required: ClassVar = {
        **dict.fromkeys(("list", "retrieve", "conversion"), Action.PLATFORM_VIEW),
        **dict.fromkeys(
            ("create", "approve", "refuse", "change", "cancel", "restore", "renew", "convert"), Action.PLATFORM_OPERATE
        ),
    }
    queryset = Reservation.objects.select_related("tenant", "pool", "profile")
    serializer_class = ReservationSerializer
    filterset_class = ReservationFilter
    ordering_fields = ("starts_at", "ends_at", "mu_per_min", "created_at", "state")
    lookup_url_kwarg = "reservation"

    def list(self, request: Request) -> Response:
        """What is sold and asked for of all pools."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, reservation: str) -> Response:
        """One reservation."""
        return self.shown(self.get_object())

    @extend_schema(request=SaleFields, responses={201: ReservationSerializer, **_REFUSED})
    def create(self, request: Request) -> Response:
        """Sell. What does not fit by the pool's rules is refused with what is missing, unless a reason is given."""

        def make() -> Response:
            given = self.read(SaleFields)
            made = asked(lambda: reservation_sell(actor=self.caller.actor, **given))
            return self.shown(made, code=status.HTTP_201_CREATED)

        return self.created(make)

    @extend_schema(request=TermsFields, responses={200: ReservationSerializer, **_REFUSED})
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, reservation: str) -> Response:
        """Promise what was asked for, if it fits or a reason is given."""
        return self._act(TermsFields, reservation_approve)

    @extend_schema(request=ReasonFields, responses=ReservationSerializer)
    @action(detail=True, methods=["post"])
    def refuse(self, request: Request, reservation: str) -> Response:
        """Decline what was asked for. The tenant reads the reason, which is needed."""
        return self._act(ReasonFields, reservation_refuse)

    @extend_schema(request=ChangeFields, responses={200: ReservationSerializer, **_REFUSED})
    @action(detail=True, methods=["post"])
    def change(self, request: Request, reservation: str) -> Response:
        """Another size, end, burst, price or note; more than was promised is asked of the ledger again.

        Of one that runs, another size, burst or price ends it now and begins a new one, which is answered: its
        ``renews`` names the old one.
        """
        return self._act(ChangeFields, reservation_change)

    @extend_schema(request=ReasonFields, responses=ReservationSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, reservation: str) -> Response:
        """Take a request back, or end a promise: one that runs ends now."""
        return self._act(ReasonFields, reservation_cancel)

    @extend_schema(request=RestoreFields, responses={200: ReservationSerializer, **_REFUSED})
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, reservation: str) -> Response:
        """Take a refusal or a cancellation back. What was promised is asked of the ledger again."""
        return self._act(RestoreFields, reservation_restore)

    @extend_schema(request=RenewFields, responses={200: ReservationSerializer, **_REFUSED})
    @action(detail=True, methods=["post"])
    def renew(self, request: Request, reservation: str) -> Response:
        """A further term from its end on, in the version of the price in force; answers the new reservation."""
        return self._act(RenewFields, reservation_renew)

    @extend_schema(request=ConvertFields, responses={200: ReservationSerializer, **_REFUSED})
    @action(detail=True, methods=["post"])
    def convert(self, request: Request, reservation: str) -> Response:
        """Count it in the version of the price in force from now on, times the accepted factor."""
        return self._act(ConvertFields, reservation_convert)

    @extend_schema(responses=ConversionSerializer)
    @action(detail=True, methods=["get"])
    def conversion(self, request: Request, reservation: str) -> Response:
        """What its MU are worth in the version in force: the factor that ``renew`` and ``convert`` want accepted."""
        return Response(told_conversion(self.get_object()))

    def _act(self, fields: type[serializers.Serializer[Any]], service: Any) -> Response:
        row = self.get_object()
        given = self.read(fields)
        return self.changed(
            row, lambda: self.shown(asked(lambda: service(reservation=row, actor=self.caller.actor, **given)))
        )


class TenantReservationsViewSet(TenantViewSet[Reservation]):
    required: ClassVar = {
        **dict.fromkeys(("list", "retrieve", "conversion"), Action.USAGE_VIEW),
        **dict.fromkeys(("create", "cancel"), Action.RESERVATION_REQUEST),
    }
    queryset = Reservation.objects.none()
    serializer_class = TenantReservationSerializer
    filterset_class = TenantReservationFilter
    ordering_fields = ("starts_at", "ends_at", "mu_per_min", "created_at", "state")
    lookup_url_kwarg = "reservation"

    def get_queryset(self) -> QuerySet[Reservation]:
        return Reservation.objects.filter(tenant=self.tenant).select_related("pool", "profile", "tenant")

    def list(self, request: Request, tenant: str) -> Response:
        """The tenant's reservations and requests."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, tenant: str, reservation: str) -> Response:
        """One of the tenant's reservations."""
        return self.shown(self.get_object())

    @extend_schema(request=RequestFields, responses={201: TenantReservationSerializer})
    def create(self, request: Request, tenant: str) -> Response:
        """Ask for a reservation. It promises nothing until an operator approves it."""

        def make() -> Response:
            given = self.read(RequestFields)
            made = reservation_request(tenant=self.tenant, actor=self.caller.actor, **given)
            return self.shown(made, code=status.HTTP_201_CREATED)

        return self.created(make)

    @extend_schema(request=None, responses=TenantReservationSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, tenant: str, reservation: str) -> Response:
        """Take a request back that nobody has decided about. What is sold is for operators to cancel."""
        row = self.get_object()
        return self.changed(row, lambda: self.shown(reservation_withdraw(reservation=row, actor=self.caller.actor)))

    @extend_schema(responses=ConversionSerializer)
    @action(detail=True, methods=["get"])
    def conversion(self, request: Request, tenant: str, reservation: str) -> Response:
        """What its MU are worth in the version of the price in force."""
        return Response(told_conversion(self.get_object()))


def told_conversion(row: Reservation) -> dict[str, Any]:
    """As ``ConversionSerializer`` has it."""
    price, conversion = conversion_of(row, at=timezone.now())
    return {
        "from_version": row.profile.version,
        "to_version": price.version,
        "factor": conversion.factor,
        "basis": conversion.basis,
        "reason": conversion.reason,
        "mu_per_min": row.mu_per_min * conversion.factor,
    }
