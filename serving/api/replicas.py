"""``/replicas``: the engines, where they run, how far they are, and what they said last."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

import django_filters
import redis
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from serving.agents.logs import log_ask, log_kept
from serving.api.base import DeploymentPartViewSet
from serving.api.incidents import IncidentDetail
from serving.models import Incident, Replica
from serving.policy.log_lines import lines_after
from serving.shared_state import client
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
    lines = serializers.IntegerField(min_value=1, max_value=5000, default=100, help_text="At most so many.")
    after = serializers.IntegerField(
        min_value=0,
        max_value=2**63 - 1,
        required=False,
        help_text="The position of the answer before: what came since.",
    )


class LogSerializer(serializers.Serializer[Any]):
    """The end of an engine's log."""

    is_live = serializers.BooleanField(help_text="As its agent has it now; else what an incident kept, or nothing.")
    lines = serializers.ListField(child=serializers.CharField(allow_blank=True))
    position = serializers.IntegerField(allow_null=True, help_text="Of a live log: give it as after to read on.")
    has_gap = serializers.BooleanField(help_text="More was written since after than is sent, or the log began anew.")
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


def log_of(replica: Replica, *, lines: int, after: int | None = None) -> dict[str, Any]:
    """The log as the agent has it, which is asked for it with each call; else the newest that an incident kept."""
    place = f"replicas/{replica.pk}/engine.log in the agent's folder"
    if replica.host is None:
        return _log_of_incident(replica, lines=lines, note="It is on no host.")
    whole = f"The whole log is {place} on host {replica.host.name}."
    try:
        log_ask(replica, client=client())
        piece = log_kept(replica, client=client())
    except redis.RedisError:
        return _log_of_incident(replica, lines=lines, note=f"The shared state does not answer. {whole}")
    if piece is None:
        wait = f"The agent of {replica.host.name} is asked for the log: ask again in a few seconds. {whole}"
        return _log_of_incident(replica, lines=lines, note=wait)
    found = lines_after(piece.data, piece.end, after=after, most=lines)
    return {**_NOTHING, **asdict(found), "is_live": True, "note": whole}


_NOTHING: dict[str, Any] = {
    "is_live": False,
    "lines": [],
    "position": None,
    "has_gap": False,
    "incident": None,
    "kept_at": None,
}


def _log_of_incident(replica: Replica, *, lines: int, note: str) -> dict[str, Any]:
    for incident in incidents_of(replica)[:_INCIDENTS_SHOWN]:
        by_agent = incident.evidence.get("agent")
        kept = incident.evidence.get("log_tail") or (by_agent.get("log_tail") if isinstance(by_agent, dict) else "")
        if kept:
            return {
                **_NOTHING,
                "lines": str(kept).splitlines()[-lines:],
                "incident": incident.pk,
                "kept_at": incident.opened_at,
                "note": f"These are the last lines that an incident kept. {note}",
            }
    return {**_NOTHING, "note": note}


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
        """The end of the engine's log, now. To follow it, ask again each second with ``after``.

        The first answer may hold nothing yet, or what an incident kept: the agent brings the log within three seconds.
        """
        row = self.get_object()
        query = LogQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        return Response(LogSerializer(log_of(row, **query.validated_data)).data)


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
