"""``/deployments/{deployment}/events``: what was decided about it and what broke in it, as one feed."""

from __future__ import annotations

import datetime
import re
import uuid
from dataclasses import dataclass
from typing import Any, ClassVar

from django.db.models import F, Q
from rest_framework import serializers
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from serving.api.base import DeploymentPartViewSet
from serving.models import Incident, ScalingDecision
from tenants.policy.roles import Action

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_CURSOR = re.compile(r"([0-9]{1,17})-([0-9a-f]{32})")
KINDS = ("scaling", *Incident.Kind.values)
_LONG = "log_tail"
"""Evidence that the feed leaves out: it is at the incident."""


@dataclass(frozen=True)
class Event:
    id: uuid.UUID
    at: datetime.datetime
    kind: str
    reason: str
    inputs: dict[str, Any]
    before: int | None = None
    after: int | None = None
    replica: uuid.UUID | None = None
    closed_at: datetime.datetime | None = None


@dataclass(frozen=True)
class Place:
    """Of an event in the feed. Two may happen at one moment: its time alone is none."""

    at: datetime.datetime
    id: uuid.UUID

    def __str__(self) -> str:
        return f"{(self.at - _EPOCH) // datetime.timedelta(microseconds=1)}-{self.id.hex}"

    @classmethod
    def parse(cls, text: str) -> Place:
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise serializers.ValidationError({"cursor": "Send the cursor as it stands in next, or leave it out."})
        return cls(_EPOCH + datetime.timedelta(microseconds=int(found[1])), uuid.UUID(hex=found[2]))


def events_before(deployment: uuid.UUID, place: Place | None, *, count: int, changes_only: bool = False) -> list[Event]:
    """At most ``count`` events of the deployment that are older than ``place``, newest first: two queries.

    ``changes_only`` leaves out the samples of an unchanged wish.
    """
    decisions = ScalingDecision.objects.filter(_older("at", place), deployment_id=deployment)
    if changes_only:
        decisions = decisions.exclude(before=F("after"))
    incidents = Incident.objects.filter(_older("opened_at", place), deployment_id=deployment)
    events = [
        *(_of_decision(row) for row in decisions.order_by("-at", "-id")[:count]),
        *(_of_incident(row) for row in incidents.order_by("-opened_at", "-id")[:count]),
    ]
    return sorted(events, key=lambda event: (event.at, event.id), reverse=True)[:count]


def _older(column: str, place: Place | None) -> Q:
    if place is None:
        return Q()
    return Q(**{f"{column}__lt": place.at}) | Q(**{column: place.at, "id__lt": place.id})


def _of_decision(row: ScalingDecision) -> Event:
    return Event(row.id, row.at, "scaling", row.reason, row.inputs, before=row.before, after=row.after)


def _of_incident(row: Incident) -> Event:
    return Event(
        row.id,
        row.opened_at,
        row.kind,
        row.summary,
        _without_logs(row.evidence),
        replica=row.replica_id,
        closed_at=row.closed_at,
    )


def _without_logs(evidence: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_logs(value) if isinstance(value, dict) else value
        for name, value in evidence.items()
        if name != _LONG
    }


class EventSerializer(serializers.Serializer[Event]):
    """``before`` and ``after`` are those of a decision, ``replica`` and ``closed_at`` those of an incident."""

    id = serializers.UUIDField()
    at = serializers.DateTimeField()
    kind = serializers.ChoiceField(KINDS)
    reason = serializers.CharField()
    inputs = serializers.DictField(help_text="What the decision was based on, or what was seen; logs are left out.")
    before = serializers.IntegerField(allow_null=True)
    after = serializers.IntegerField(allow_null=True)
    replica = serializers.UUIDField(allow_null=True)
    closed_at = serializers.DateTimeField(allow_null=True)


class EventPages(BasePagination):
    """Newest first, from two tables. Events that come in meanwhile neither repeat nor hide any."""

    page_size = 100
    max_page_size = 1000
    _next: str | None = None

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        """``queryset`` is a deployment's id."""
        cursor = request.query_params.get("cursor", "")
        size = self._size(request.query_params.get("page_size", ""))
        found = events_before(queryset, Place.parse(cursor) if cursor else None, count=size + 1)
        page = found[:size]
        if len(found) > size:
            place = Place(page[-1].at, page[-1].id)
            self._next = replace_query_param(request.build_absolute_uri(), "cursor", str(place))
        return page

    def _size(self, text: str) -> int:
        """As DRF's own pages do: what is no number is passed over, too large a one is cut."""
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
        return min(number or self.page_size, self.max_page_size)

    def get_paginated_response(self, data: Any) -> Response:
        return Response({"next": self._next, "results": data})

    def get_paginated_response_schema(self, schema: Any) -> dict[str, Any]:
        return {
            "type": "object",
            "required": ["next", "results"],
            "properties": {
                "next": {"type": ["string", "null"], "format": "uri", "description": "Address of what is older."},
                "results": schema,
            },
        }

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        cursor, size = "Where to go on; it is part of next.", "Number of results to return per page."
        return [
            {"name": "cursor", "required": False, "in": "query", "description": cursor, "schema": {"type": "string"}},
            {"name": "page_size", "required": False, "in": "query", "description": size, "schema": {"type": "integer"}},
        ]


class EventsViewSet(DeploymentPartViewSet[Any]):
    required: ClassVar = {"list": Action.PLATFORM_VIEW}
    queryset = ScalingDecision.objects.none()
    serializer_class = EventSerializer
    pagination_class = EventPages
    filter_backends = ()

    def list(self, request: Request, deployment: str) -> Response:
        """Scaling decisions and incidents of a deployment, newest first, each with its reason and inputs."""
        page: Any = self.deployment.pk
        return self.get_paginated_response(self.get_serializer(self.paginate_queryset(page), many=True).data)
