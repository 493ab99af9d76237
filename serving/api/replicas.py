"""``/replicas``: the engines, where they run, how far they are, and what they said last."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from serving.api.base import DeploymentPartViewSet
from serving.api.incidents import IncidentDetail
from serving.models import Incident, Replica
from tenants.api.base import ApiViewSet
from tenants.policy.roles import Action

_INCIDENTS_SHOWN = 20


class ReplicaSerializer(serializers.ModelSerializer[Replica]):
    """``reason`` says why it is in its state; ``phase`` and ``progress`` how far its agent is with the launch."""

    deployment_name = serializers.CharField(source="deployment.name", read_only=True)
    revision_number = serializers.IntegerField(source="revision.number", read_only=True)
    host_name = serializers.CharField(source="host.name", default=None, read_only=True, allow_null=True)
    accelerators = serializers.ListField(child=serializers.IntegerField(), read_only=True)
    progress = serializers.DictField(read_only=True)

    class Meta:
        model = Replica
        fields = (
            "id",
            "deployment",
            "deployment_name",
            "revision",
            "revision_number",
            "host",
            "host_name",
            "accelerators",
            "state",
            "state_since",
            "reason",
            "phase",
            "progress",
            "address",
            "engine_version",
            "max_model_len",
            "pid",
            "attempt",
            "launched_at",
            "ready_at",
            "supply_mu_per_min",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields


class ReplicaDetail(ReplicaSerializer):
    """With its newest incidents and their evidence."""

    incidents = serializers.SerializerMethodField()

    class Meta:
        model = Replica
        fields = (*ReplicaSerializer.Meta.fields, "incidents")
        read_only_fields = fields

    @extend_schema_field(IncidentDetail(many=True))
    def get_incidents(self, row: Replica) -> list[dict[str, Any]]:
        return list(IncidentDetail(incidents_of(row)[:_INCIDENTS_SHOWN], many=True).data)


class LogQuery(serializers.Serializer[Any]):
    lines = serializers.IntegerField(min_value=1, max_value=1000, default=100, help_text="At most so many.")


class LogSerializer(serializers.Serializer[Any]):
    """The end of an engine's log as its agent last kept it."""

    lines = serializers.ListField(child=serializers.CharField(allow_blank=True))
    incident = serializers.UUIDField(allow_null=True, help_text="The incident that kept it; null: none did.")
    kept_at = serializers.DateTimeField(allow_null=True, help_text="When that incident was opened.")
    note = serializers.CharField(help_text="Where these lines come from, and where the rest is.")


class ReplicaFilter(django_filters.FilterSet):
    deployment = django_filters.UUIDFilter(field_name="deployment_id", label="Id of the deployment.")
    host = django_filters.UUIDFilter(field_name="host_id", label="Id of the host.")

    class Meta:
        model = Replica
        fields = ("state",)


def incidents_of(replica: Replica) -> QuerySet[Incident]:
    return Incident.objects.filter(replica_id=replica.pk).order_by("-opened_at", "-id")


def log_of(replica: Replica, *, lines: int) -> dict[str, Any]:
    """The newest log that an incident of the replica kept. Reports bring logs, and only incidents keep them."""
    place = f"replicas/{replica.pk}/engine.log in the agent's folder"
    whole = f"The whole log is {place} on host {replica.host.name}." if replica.host else "It is on no host now."
    for incident in incidents_of(replica)[:_INCIDENTS_SHOWN]:
        by_agent = incident.evidence.get("agent")
        kept = incident.evidence.get("log_tail") or (by_agent.get("log_tail") if isinstance(by_agent, dict) else "")
        if kept:
            return {
                "lines": str(kept).splitlines()[-lines:],
                "incident": incident.pk,
                "kept_at": incident.opened_at,
                "note": f"These are the last lines that the incident kept. {whole}",
            }
    note = f"Logs come here with incidents only, and this replica has had none that kept any. {whole}"
    return {"lines": [], "incident": None, "kept_at": None, "note": note}


class ReplicasViewSet(ApiViewSet[Replica]):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "retrieve": Action.PLATFORM_VIEW,
        "logs": Action.PLATFORM_VIEW,
    }
    queryset = Replica.objects.select_related("deployment", "revision", "host").order_by("-id")
    serializer_class = ReplicaSerializer
    filterset_class = ReplicaFilter
    ordering_fields = ("created_at", "state_since", "state")

    def get_serializer_class(self) -> type[ReplicaSerializer]:
        return ReplicaDetail if self.action == "retrieve" else ReplicaSerializer

    def list(self, request: Request) -> Response:
        """Replicas of all deployments, newest first; ended ones until they are forgotten."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, pk: str) -> Response:
        """One replica: why it is in its state, how far its launch is, and the evidence of its incidents."""
        return self.shown(self.get_object())

    @extend_schema(parameters=[LogQuery], responses=LogSerializer)
    @action(detail=True, methods=["get"])
    def logs(self, request: Request, pk: str) -> Response:
        """The last lines of the engine's log that were kept: agents bring them when something breaks."""
        row = self.get_object()
        query = LogQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        return Response(LogSerializer(log_of(row, lines=query.validated_data["lines"])).data)


class DeploymentReplicasViewSet(DeploymentPartViewSet[Replica]):
    required: ClassVar = {"list": Action.PLATFORM_VIEW}
    queryset = Replica.objects.none()
    serializer_class = ReplicaSerializer
    filterset_fields = ("state",)
    ordering_fields = ("created_at", "state_since", "state")

    def get_queryset(self) -> QuerySet[Replica]:
        rows = Replica.objects.filter(deployment=self.deployment).select_related("deployment", "revision", "host")
        return rows.order_by("-id")

    def list(self, request: Request, deployment: str) -> Response:
        """Replicas of one deployment, newest first."""
        return self.listed(self.get_queryset())
