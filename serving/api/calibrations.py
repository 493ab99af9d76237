"""``/calibrations``: what a request was measured to cost, for operators."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from django.utils import timezone
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from serving.calibrations import Adoption, adoption_of
from serving.models import Calibration, Deployment
from serving.services import calibration_adopt, calibration_cancel, calibration_start
from tenants.api.base import ApiViewSet
from tenants.api.filters import MomentFilter
from tenants.api.pagination import Cursor
from tenants.api.problems import ProblemSerializer
from tenants.policy.roles import Action


class CalibrationSerializer(serializers.ModelSerializer[Calibration]):
    """The ids are of things that may be gone by now; ``reason`` says why it is in its state."""

    progress = serializers.DictField(read_only=True, help_text="share (0..1), step and detail, as the agent tells.")

    class Meta:
        model = Calibration
        fields: tuple[str, ...] = (
            "id",
            "deployment_id",
            "deployment_name",
            "pool_id",
            "pool_name",
            "revision_id",
            "revision_number",
            "runtime",
            "replica_id",
            "host_name",
            "hardware_type_id",
            "hardware_name",
            "state",
            "state_since",
            "reason",
            "grid",
            "allow_outage",
            "adopt_when_fitted",
            "adopt_from",
            "requested_by",
            "progress",
            "method",
            "engine_version",
            "measuring_at",
            "ended_at",
            "adopted_at",
            "adopted_by",
            "adopted_version",
            "adopted_supply",
            "effective_from",
            "created_at",
            "updated_at",
        )
        read_only_fields: tuple[str, ...] = fields


class CalibrationDetail(CalibrationSerializer):
    """With the order, what was measured, what was fitted, and the knee."""

    order = serializers.DictField(read_only=True, help_text="Shapes, repeats, mix and objectives.")
    points = serializers.ListField(
        child=serializers.DictField(), read_only=True, help_text="Engine milliseconds of each shape and repeat."
    )
    levels = serializers.ListField(
        child=serializers.DictField(), read_only=True, help_text="What was attained at each rate that was offered."
    )
    fit = serializers.DictField(read_only=True, help_text="Terms in engine ms, residuals, R² and errors.")
    knee = serializers.DictField(
        read_only=True,
        help_text="The highest load that keeps the objectives; "
        "supply_limit: null, or that not the hardware limits it, and the target_concurrency to try (recommended).",
    )

    class Meta(CalibrationSerializer.Meta):
        fields = (*CalibrationSerializer.Meta.fields, "order", "points", "levels", "fit", "knee")
        read_only_fields = fields


class NewCalibration(serializers.Serializer[Any]):
    """What to measure, and what becomes of it."""

    deployment = serializers.CharField(max_length=200, help_text="Name or id of the deployment.")
    grid = serializers.ChoiceField(
        choices=Calibration.Grid.choices, default=Calibration.Grid.MEDIUM, help_text="How many shapes are measured."
    )
    allow_outage = serializers.BooleanField(
        default=False, help_text="Take the only ready replica too: clients get 503 meanwhile."
    )
    adopt_when_fitted = serializers.BooleanField(
        default=False, help_text="It becomes the price without being looked at, unless no knee was found."
    )
    adopt_from = serializers.DateTimeField(
        allow_null=True, default=None, help_text="In force from then on; at once, where it is not given."
    )

    def validate_deployment(self, text: str) -> Deployment:
        try:
            found = Deployment.objects.filter(pk=uuid.UUID(text)).first()
        except ValueError:
            found = Deployment.objects.filter(name=text).first()
        if found is None:
            raise serializers.ValidationError(
                "There is no such deployment. GET /api/v1/deployments lists them.", "unknown"
            )
        return found


class AdoptionFields(serializers.Serializer[Any]):
    effective_from = serializers.DateTimeField(
        allow_null=True, default=None, help_text="In force from then on; at once, where it is not given."
    )


class CoefficientChange(serializers.Serializer[Any]):
    """A coefficient in MU, now and as measured."""

    name = serializers.CharField()
    now = serializers.FloatField(allow_null=True, help_text="Of the price in force; null: the pool has none.")
    new = serializers.FloatField()


class TenantChange(serializers.Serializer[Any]):
    """What the new price does to a tenant. Shares are of the pool's MU."""

    tenant = serializers.CharField(allow_null=True, help_text="Slug; null: the smallest ones together.")
    tenant_id = serializers.UUIDField(allow_null=True)
    tenants = serializers.IntegerField(help_text="How many these are.")
    requests = serializers.IntegerField()
    mu_now = serializers.FloatField(help_text="MU that were charged.")
    mu_new = serializers.FloatField(help_text="MU that the same work would be charged.")
    factor = serializers.FloatField(help_text="mu_new per mu_now.")
    share_now = serializers.FloatField()
    share_new = serializers.FloatField()
    basis = serializers.ChoiceField(
        choices=("requests", "mean", "none"), help_text="Single requests were priced anew, or their mean."
    )
    sampled = serializers.IntegerField(help_text="Requests that were priced anew.")


class PreviewSerializer(serializers.Serializer[Any]):
    """What adopting it would change, by the usage of the last seven days."""

    is_reference = serializers.BooleanField(
        help_text="Measured on the hardware of the pool's price; else it is a supply."
    )
    supply_mu_per_min = serializers.FloatField(
        help_text="Of a replica on this hardware, in MU of what would be in force."
    )
    coefficients = CoefficientChange(many=True)
    since = serializers.DateTimeField()
    mu_now = serializers.FloatField()
    mu_new = serializers.FloatField()
    factor = serializers.FloatField(help_text="Of the whole pool.")
    tenants = TenantChange(many=True)


class CalibrationFilter(django_filters.FilterSet):
    deployment = django_filters.UUIDFilter(field_name="deployment_id", label="Id of the deployment.")
    deployment_name = django_filters.CharFilter(label="Name of the deployment.")
    pool = django_filters.UUIDFilter(field_name="pool_id", label="Id of the pool.")
    is_under_way = django_filters.BooleanFilter(method="under_way", label="Queued, draining or measuring.")
    since = MomentFilter(field_name="created_at", lookup_expr="gte", label="Asked for then or later.")
    until = MomentFilter(field_name="created_at", lookup_expr="lt", label="Asked for before.")

    class Meta:
        model = Calibration
        fields = ("state",)

    def under_way(self, rows: QuerySet[Calibration], name: str, value: bool) -> QuerySet[Calibration]:
        states = Calibration.UNDER_WAY
        return rows.filter(state__in=states) if value else rows.exclude(state__in=states)


class CalibrationsViewSet(ApiViewSet[Calibration]):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "retrieve": Action.PLATFORM_VIEW,
        "preview": Action.PLATFORM_VIEW,
        "create": Action.PLATFORM_OPERATE,
        "cancel": Action.PLATFORM_OPERATE,
        "adopt": Action.PLATFORM_OPERATE,
    }
    queryset = Calibration.objects.all()
    serializer_class = CalibrationSerializer
    pagination_class = Cursor
    filter_backends = (DjangoFilterBackend,)
    filterset_class = CalibrationFilter

    def get_serializer_class(self) -> type[CalibrationSerializer]:
        return CalibrationSerializer if self.action == "list" else CalibrationDetail

    def list(self, request: Request) -> Response:
        """Calibrations, newest first, with their progress."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, pk: str) -> Response:
        """One calibration with all that was measured and fitted."""
        return self.shown(self.get_object())

    @extend_schema(request=NewCalibration, responses={201: CalibrationDetail})
    def create(self, request: Request) -> Response:
        """Measure what a request costs: a replica is taken out of rotation, drained, measured, and given back.

        Refused while another one of the deployment is under way, where no replica is ready, and where the only ready
        one would have to be taken, unless ``allow_outage`` is given.
        """

        def make() -> Response:
            made = calibration_start(actor=self.caller.actor, **self.read(NewCalibration))
            return self.shown(made, code=status.HTTP_201_CREATED)

        return self.created(make)

    @extend_schema(request=None, responses=CalibrationDetail)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop measuring; the replica goes back into rotation. One that is over stays as it is."""
        row = self.get_object()

        def change() -> Response:
            calibration_cancel(calibration=row, actor=self.caller.actor)
            return self.shown(self.get_object())

        return self.changed(row, change)

    @extend_schema(request=AdoptionFields, responses=CalibrationDetail)
    @action(detail=True, methods=["post"])
    def adopt(self, request: Request, pk: str) -> Response:
        """Make it the pool's next price, in force from ``effective_from``.

        Measured on hardware that is not the pool's reference, it becomes what replicas there supply instead, at once.
        """
        row = self.get_object()
        given = self.read(AdoptionFields)

        def change() -> Response:
            return self.shown(calibration_adopt(calibration=row, actor=self.caller.actor, **given))

        return self.changed(row, change)

    @extend_schema(responses={200: PreviewSerializer, (409, "application/problem+json"): ProblemSerializer})
    @action(detail=True, methods=["get"], pagination_class=None, filterset_class=None)
    def preview(self, request: Request, pk: str) -> Response:
        """What adopting it would change: coefficients, and who would pay more or less on the last week's usage.

        409 where nothing was fitted, or the pool is gone.
        """
        found = adoption_of(self.get_object(), now=timezone.now())
        return Response(PreviewSerializer(_told(found)).data)


def _told(found: Adoption) -> dict[str, Any]:
    slugs = found.tenants
    return {
        "is_reference": found.is_reference,
        "supply_mu_per_min": found.supply_mu_per_min,
        "coefficients": [{"name": one.name, "now": one.now, "new": one.new} for one in found.coefficients],
        "since": found.since,
        "mu_now": found.preview.mu_now,
        "mu_new": found.preview.mu_new,
        "factor": found.preview.factor,
        "tenants": [
            {
                **{name: getattr(row, name) for name in row.__slots__},
                "tenant": slugs.get(row.tenant_id) if row.tenant_id else None,
            }
            for row in found.preview.rows
        ],
    }
