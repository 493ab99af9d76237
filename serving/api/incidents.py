"""``/incidents``: what broke, what was seen, what was done. ``/decisions``: what the scale loop wanted, and why."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters
from django.db.models import F, QuerySet
from django_filters.rest_framework import DjangoFilterBackend
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from serving.models import Incident, ScalingDecision
from tenants.api.base import ApiViewSet
from tenants.api.filters import MomentFilter
from tenants.api.pagination import MomentCursor
from tenants.policy.roles import Action


class NewestIncidents(MomentCursor):
    ordering = ("-opened_at", "-id")  # type: ignore[assignment]


class NewestDecisions(MomentCursor):
    ordering = ("-at", "-id")  # type: ignore[assignment]


class IncidentSerializer(serializers.ModelSerializer[Incident]):
    """The ids are of things that may be gone by now."""

    is_open = serializers.SerializerMethodField()

    class Meta:
        model = Incident
        fields = (
            "id",
            "kind",
            "summary",
            "is_open",
            "opened_at",
            "closed_at",
            "deployment_id",
            "deployment_name",
            "replica_id",
            "host_id",
        )
        read_only_fields = fields

    def get_is_open(self, row: Incident) -> bool:
        return row.closed_at is None


class TimelineEntry(serializers.Serializer[Any]):
    at = serializers.FloatField(help_text="UNIX seconds.")
    what = serializers.CharField()


class IncidentDetail(IncidentSerializer):
    """With what was seen: the log's end, metrics, requests in flight, states of processes."""

    evidence = serializers.DictField(read_only=True)
    timeline = TimelineEntry(many=True, read_only=True)

    class Meta:
        model = Incident
        fields = (*IncidentSerializer.Meta.fields, "evidence", "timeline")
        read_only_fields = fields


class IncidentFilter(django_filters.FilterSet):
    deployment = django_filters.UUIDFilter(field_name="deployment_id", label="Id of the deployment.")
    replica = django_filters.UUIDFilter(field_name="replica_id", label="Id of the replica.")
    host = django_filters.UUIDFilter(field_name="host_id", label="Id of the host.")
    is_open = django_filters.BooleanFilter(field_name="closed_at", lookup_expr="isnull", label="Not closed yet.")
    since = MomentFilter(field_name="opened_at", lookup_expr="gte", label="Opened then or later.")
    until = MomentFilter(field_name="opened_at", lookup_expr="lt", label="Opened before.")

    class Meta:
        model = Incident
        fields = ("kind",)


class IncidentsViewSet(ApiViewSet[Incident]):
    required: ClassVar = {"list": Action.PLATFORM_VIEW, "retrieve": Action.PLATFORM_VIEW}
    queryset = Incident.objects.all()
    serializer_class = IncidentSerializer
    pagination_class = NewestIncidents
    filter_backends = (DjangoFilterBackend,)
    filterset_class = IncidentFilter

    def get_serializer_class(self) -> type[IncidentSerializer]:
        return IncidentDetail if self.action == "retrieve" else IncidentSerializer

    def list(self, request: Request) -> Response:
        """Incidents, newest first."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, pk: str) -> Response:
        """One incident with its evidence and its timeline."""
        return self.shown(self.get_object())


class DecisionSerializer(serializers.ModelSerializer[ScalingDecision]):
    """Replicas wanted ``before`` and ``after``; equal numbers are a sample of an unchanged wish."""

    inputs = serializers.DictField(read_only=True, help_text="Observation, configuration and intermediate results.")

    class Meta:
        model = ScalingDecision
        fields = ("id", "at", "deployment_id", "deployment_name", "before", "after", "reason", "inputs")
        read_only_fields = fields


class DecisionFilter(django_filters.FilterSet):
    deployment = django_filters.UUIDFilter(field_name="deployment_id", label="Id of the deployment.")
    changed = django_filters.BooleanFilter(method="by_change", label="Without the samples of an unchanged wish.")
    since = MomentFilter(field_name="at", lookup_expr="gte", label="Made then or later.")
    until = MomentFilter(field_name="at", lookup_expr="lt", label="Made before.")

    class Meta:
        model = ScalingDecision
        fields = ()

    def by_change(self, rows: QuerySet[ScalingDecision], name: str, value: bool) -> QuerySet[ScalingDecision]:
        return rows.exclude(before=F("after")) if value else rows.filter(before=F("after"))


class DecisionsViewSet(ApiViewSet[ScalingDecision]):
    required: ClassVar = {"list": Action.PLATFORM_VIEW}
    queryset = ScalingDecision.objects.all()
    serializer_class = DecisionSerializer
    pagination_class = NewestDecisions
    filter_backends = (DjangoFilterBackend,)
    filterset_class = DecisionFilter

    def list(self, request: Request) -> Response:
        """Decisions of the scale loop, newest first, each with its reason and what it was based on."""
        return self.listed(self.get_queryset())
