"""``/pools`` and their prices, for operators; ``/tenants/{tenant}/pools``: those that a tenant may use."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.api.base import PAIRS, NamedField, NamedViewSet, NumberField, RemovableViewSet, TiersField, find_named
from capacity.api.ledger import (
    AVAILABILITY,
    AnswerSerializer,
    AvailabilityQuery,
    DemandSerializer,
    ShapeFields,
    TenantDemandSerializer,
    shape_of,
    told_answer,
    told_piece,
)
from capacity.api.prices import (
    CoefficientFields,
    NewProfile,
    PricedSerializer,
    PricesMixin,
    ProfileSerializer,
    price_of,
)
from capacity.calculations import calculate
from capacity.models import CostProfile, HardwareType, Model, Pool
from capacity.policy.ledger import can_sell, outlook
from capacity.policy.stock import Term
from capacity.selectors import claw_back_s, pools_usable
from capacity.services import (
    pool_create,
    pool_remove,
    pool_tenants_set,
    pool_update,
    profile_add,
    profile_restore,
    profile_withdraw,
)
from capacity.stocks import stock_of
from tenants.api.base import ApiViewSet, TenantViewSet
from tenants.api.filters import RemovedFilterSet
from tenants.models import Tenant
from tenants.policy.roles import Action

_LARGEST = 2**31 - 1


class TenantPoolSerializer(PricedSerializer, serializers.ModelSerializer[Pool]):
    """What a tenant needs to know of a pool: nothing of who else uses it, and of how it is run."""

    model = serializers.SlugRelatedField[Model](slug_field="slug", read_only=True)
    credit_tiers = TiersField(read_only=True, help_text=f"What a reservation sold now gives back: {PAIRS}.")
    claw_back_s = serializers.SerializerMethodField(
        help_text="Seconds within which the owner of a reservation has it back, however much of it was lent. "
        "Null until the pool has a price."
    )

    def get_claw_back_s(self, pool: Pool) -> float | None:
        found = self.context["view"].prices.get(pool.pk)
        return claw_back_s(found, context_tokens=pool.model.context_tokens) if found else None

    class Meta:
        model = Pool
        fields: tuple[str, ...] = (
            "id",
            "slug",
            "name",
            "model",
            "ttft_objective_ms",
            "tpot_objective_ms",
            "tolerable_wait_s",
            "slo_share",
            "best_effort",
            "credit_tiers",
            "claw_back_s",
            "price",
        )
        read_only_fields: tuple[str, ...] = fields


class PoolSerializer(TenantPoolSerializer):
    tenants = serializers.SlugRelatedField[Tenant](
        slug_field="slug", many=True, read_only=True, help_text="Who may use it, unless it is public."
    )

    class Meta(TenantPoolSerializer.Meta):
        fields = (
            *TenantPoolSerializer.Meta.fields,
            "is_public",
            "tenants",
            "oversell_factor",
            "keep_spare",
            "adopts_calibrations",
            "adoption_error_limit",
            "version",
            "created_at",
            "updated_at",
            "removed_at",
        )
        read_only_fields = fields


class PoolFields(serializers.Serializer[Pool]):
    """What can be changed of a pool."""

    name = serializers.CharField(max_length=120, required=False, help_text="The model's, where it is not given.")
    is_public = serializers.BooleanField(required=False, help_text="Every tenant may use it; else only those listed.")
    ttft_objective_ms = serializers.IntegerField(min_value=1, max_value=_LARGEST, required=False)
    tpot_objective_ms = serializers.IntegerField(min_value=1, max_value=_LARGEST, required=False)
    tolerable_wait_s = NumberField(required=False, help_text="A request may wait this long for admission.")
    slo_share = NumberField(required=False, help_text="Share of requests that may wait longer (0..1).")
    oversell_factor = NumberField(required=False, help_text="MU/min sold per MU/min had.")
    keep_spare = serializers.BooleanField(required=False, help_text="Keep the promise with one replica lost.")
    adopts_calibrations = serializers.BooleanField(
        required=False,
        help_text="A calibration becomes the price by itself where its errors are small enough, and fit, load and what "
        "was measured before agree; else its reason says what does not.",
    )
    adoption_error_limit = NumberField(required=False, help_text="Mean relative error up to which that happens (0..1).")
    best_effort = serializers.BooleanField(
        required=False, help_text="What nobody has reserved, or its owner does not use, is lent as best effort."
    )
    credit_tiers = TiersField(
        required=False, help_text=f"{PAIRS}, the mildest first; none: no credit. What was sold keeps its own."
    )


class NewPool(PoolFields):
    slug = serializers.SlugField(max_length=80, required=False, help_text="Made from the name where it is not given.")
    model = NamedField(slug_field="slug", queryset=Model.objects.all(), help_text="Id or slug.")
    hardware_type = NamedField(
        slug_field="slug", queryset=HardwareType.objects.all(), help_text="Id or slug of what the price is for."
    )
    tenants = NamedField(
        slug_field="slug", queryset=Tenant.objects.all(), many=True, required=False, help_text="Ids or slugs."
    )
    price = CoefficientFields(
        required=False, help_text="Where it is not given: a default from model size and hardware, marked uncalibrated."
    )


class PoolTenants(serializers.Serializer[Any]):
    """Who may use a pool."""

    tenants = NamedField(
        slug_field="slug", queryset=Tenant.objects.all(), many=True, help_text="All of them, by id or slug."
    )
    is_public = serializers.BooleanField(required=False, help_text="Every tenant may use it; else only those listed.")


class TenantPoolFilter(django_filters.FilterSet):
    model = django_filters.CharFilter(field_name="model__slug", label="Slug of its model.")
    search = django_filters.CharFilter(field_name="name", lookup_expr="icontains", label="Part of the name.")


class PoolFilter(TenantPoolFilter, RemovedFilterSet):
    class Meta:
        model = Pool
        fields = ("is_public", "keep_spare", "best_effort")


class PoolsViewSet(PricesMixin, RemovableViewSet[Pool]):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "retrieve": Action.PLATFORM_VIEW,
        "create": Action.PLATFORM_OPERATE,
        "partial_update": Action.PLATFORM_OPERATE,
        "tenants": Action.PLATFORM_OPERATE,
        "destroy": Action.PLATFORM_OPERATE,
        "availability": Action.PLATFORM_VIEW,
        "calculate": Action.PLATFORM_VIEW,
    }
    queryset = Pool.everything.select_related("model").prefetch_related("tenants")
    serializer_class = PoolSerializer
    filterset_class = PoolFilter
    ordering_fields = ("name", "slug", "created_at")
    lookup_url_kwarg = "pool"

    def list(self, request: Request) -> Response:
        """What is sold: models with a price, objectives, and rules of selling."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, pool: str) -> Response:
        """One pool, by id or slug, with the price in force."""
        return self.shown(self.get_object())

    @extend_schema(request=NewPool, responses={201: PoolSerializer})
    def create(self, request: Request) -> Response:
        """A new pool with its first price: the one sent, or a default from model size and hardware."""

        def make() -> Response:
            given = self.read(NewPool)
            price = given.pop("price", None)
            made = pool_create(actor=self.caller.actor, profile=price_of(dict(price)) if price else None, **given)
            return self.shown(made, code=status.HTTP_201_CREATED)

        return self.created(make)

    @extend_schema(request=PoolFields)
    def partial_update(self, request: Request, pool: str) -> Response:
        """Change what is sent. A new price is a new version under the pool's profiles."""
        row = self.get_object()
        given = self.read(PoolFields, partial=True)
        return self.changed(row, lambda: self.shown(pool_update(pool=row, actor=self.caller.actor, **given)))

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pool: str) -> Response:
        """Take away a pool that nothing serves and of which nothing is sold; its slug is free, its prices stay.

        409 names what stands in the way: deployments, replicas of removed ones that have not ended, and reservations.
        """
        row = self.get_object()
        return self.removed(row, lambda: pool_remove(pool=row, actor=self.caller.actor))

    @extend_schema(request=PoolTenants, responses=PoolSerializer)
    @action(detail=True, methods=["put"])
    def tenants(self, request: Request, pool: str) -> Response:
        """Say who may use the pool: the tenants listed and nobody else, or every tenant.

        400 where a tenant would be shut out whose reservation of the pool is not over.
        """
        row = self.get_object()
        given = self.read(PoolTenants)

        def put() -> Response:
            pool_tenants_set(pool=row, actor=self.caller.actor, **given)
            return self.shown(self.get_object())

        return self.changed(row, put)

    @extend_schema(parameters=AVAILABILITY, responses=AnswerSerializer)
    @action(detail=True, methods=["get"])
    def availability(self, request: Request, pool: str) -> Response:
        """What is sold of the pool and what can be, over a time; with ``mu_per_min``, whether so much can be sold."""
        row, now = self.get_object(), timezone.now()
        query = AvailabilityQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        since = max(query.validated_data.get("starts_at", now), now)
        until = query.validated_data.get("ends_at")
        if until is not None and until <= since:
            raise serializers.ValidationError({"ends_at": ["It must lie after the start, and after now."]})
        mu = query.validated_data.get("mu_per_min")
        ends = until.timestamp() if until else None
        stock = stock_of(row, now=now)
        if mu is not None:
            return Response(told_answer(can_sell(stock, Term("ask", mu, since.timestamp(), ends))))
        pieces = outlook(stock, since=since.timestamp(), until=ends)
        told: dict[str, Any] = {
            "verdict": None,
            "reason": "",
            "headroom_mu_per_min": max(0.0, min(piece.headroom for piece in pieces)),
            "shortages": [],
            "pieces": [told_piece(piece) for piece in pieces],
            "inputs": {},
        }
        return Response(told)

    @extend_schema(request=ShapeFields, responses=DemandSerializer)
    @action(detail=True, methods=["post"])
    def calculate(self, request: Request, pool: str) -> Response:
        """From a request's shape and rate to MU/min, replicas and accelerators; or from MU/min to requests/min.

        Nothing is changed.
        """
        given = self.read(ShapeFields)
        shape = shape_of(given)
        return Response(asdict(calculate(self.get_object(), shape, now=timezone.now(), **given)))


class ProfilesViewSet(ApiViewSet[CostProfile]):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "create": Action.PLATFORM_OPERATE,
        "withdraw": Action.PLATFORM_OPERATE,
        "restore": Action.PLATFORM_OPERATE,
    }
    lookup_field = "version"
    lookup_value_regex = "[0-9]{1,9}"
    queryset = CostProfile.objects.none()
    serializer_class = ProfileSerializer
    filterset_fields = ("calibrated",)
    ordering_fields = ("version", "effective_from")

    def get_queryset(self) -> QuerySet[CostProfile]:
        pools = Pool.everything if self.action == "list" else Pool.objects
        rows = CostProfile.objects.filter(pool=find_named(pools.all(), self.kwargs["pool"]))
        return rows.select_related("hardware_type").order_by("-version")

    def get_object(self) -> CostProfile:
        return get_object_or_404(self.get_queryset(), version=self.kwargs["version"])

    def list(self, request: Request, pool: str) -> Response:
        """All versions of the pool's price, newest first. A version is never edited: a new one replaces it.

        Those of a removed pool stay, under its id.
        """
        return self.listed(self.get_queryset())

    @extend_schema(request=NewProfile, responses={201: ProfileSerializer})
    def create(self, request: Request, pool: str) -> Response:
        """The pool's next price, in force from a moment on. What was used before keeps the price it was given."""
        row = find_named(Pool.objects.all(), pool)

        def make() -> Response:
            given = self.read(NewProfile)
            made = profile_add(pool=row, profile=price_of(given), actor=self.caller.actor, **given)
            return self.shown(made, code=status.HTTP_201_CREATED)

        return self.created(make)

    @extend_schema(request=None, responses=ProfileSerializer)
    @action(detail=True, methods=["post"])
    def withdraw(self, request: Request, pool: str, version: str) -> Response:
        """Take back a version that is not in force yet. ``restore`` brings it back until then."""
        return self.shown(profile_withdraw(profile=self.get_object(), actor=self.caller.actor))

    @extend_schema(request=None, responses=ProfileSerializer)
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, pool: str, version: str) -> Response:
        """Undo ``withdraw``."""
        return self.shown(profile_restore(profile=self.get_object(), actor=self.caller.actor))


class TenantPoolsViewSet(PricesMixin, NamedViewSet[Pool], TenantViewSet[Pool]):
    required: ClassVar = dict.fromkeys(("list", "retrieve", "calculate"), Action.TENANT_VIEW)
    queryset = Pool.objects.none()
    serializer_class = TenantPoolSerializer
    filterset_class = TenantPoolFilter
    ordering_fields = ("name", "slug")
    lookup_url_kwarg = "pool"

    def get_queryset(self) -> QuerySet[Pool]:
        return pools_usable(self.tenant).select_related("model")

    def list(self, request: Request, tenant: str) -> Response:
        """The pools that the tenant may use, with their objectives and the price in force."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, tenant: str, pool: str) -> Response:
        """One pool that the tenant may use, by id or slug."""
        return self.shown(self.get_object())

    @extend_schema(request=ShapeFields, responses=TenantDemandSerializer)
    @action(detail=True, methods=["post"])
    def calculate(self, request: Request, tenant: str, pool: str) -> Response:
        """From a request's shape and rate to MU/min, or from MU/min to requests/min. Nothing is changed."""
        given = self.read(ShapeFields)
        shape = shape_of(given)
        return Response(TenantDemandSerializer(calculate(self.get_object(), shape, now=timezone.now(), **given)).data)
