"""``/deployments``: pools being served, for operators."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import django_filters
from django.db.models import Count, Prefetch, Q, QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.models import Pool
from serving.api.revisions import RevisionFields, RevisionSerializer
from serving.models import Deployment, Replica, Revision
from serving.services import (
    deployment_create,
    deployment_disable,
    deployment_enable,
    deployment_remove,
    deployment_retry,
    deployment_update,
)
from tenants.api.base import ApiViewSet
from tenants.api.filters import RemovedFilterSet
from tenants.policy.roles import Action

MOST_REPLICAS = 10_000
"""More is a slip of the finger: the loops would begin to make them."""


class DeploymentFields(serializers.Serializer[Any]):
    """What can be changed of a deployment."""

    min_replicas = serializers.IntegerField(min_value=0, max_value=MOST_REPLICAS, default=1)
    max_replicas = serializers.IntegerField(min_value=0, max_value=MOST_REPLICAS, default=1)
    pinned_replicas = serializers.IntegerField(
        min_value=0,
        max_value=MOST_REPLICAS,
        allow_null=True,
        default=None,
        help_text="Exactly so many, whatever the load and the bounds; null: the scale loop decides.",
    )


class NewDeployment(RevisionFields, DeploymentFields):
    """Runtime, options and target concurrency are those of the first revision."""

    pool = serializers.CharField(max_length=80, help_text="Slug or id of the pool.")
    name = serializers.CharField(max_length=200, help_text="What clients send as model. It cannot be changed.")
    is_enabled = serializers.BooleanField(default=True, help_text="Serve at once; false: when it is enabled.")

    def validate_pool(self, text: str) -> Pool:
        try:
            found = Pool.objects.filter(pk=uuid.UUID(text)).first()
        except ValueError:
            found = Pool.objects.filter(slug=text).first()
        if found is None:
            raise serializers.ValidationError("There is no such pool. GET /api/v1/pools lists them.", "unknown")
        return found


class DeploymentSerializer(serializers.ModelSerializer[Deployment]):
    """Replicas are counted by state; ``desired_replicas`` is what the scale loop, or a person, wants."""

    pool = serializers.CharField(source="pool.slug", read_only=True)
    ready_replicas = serializers.IntegerField(source="ready_total", read_only=True)
    starting_replicas = serializers.IntegerField(source="starting_total", read_only=True)
    failed_replicas = serializers.IntegerField(source="failed_total", read_only=True)
    revision = serializers.SerializerMethodField(help_text="The current one.")

    class Meta:
        model = Deployment
        fields = (
            "id",
            "name",
            "pool",
            "is_enabled",
            "min_replicas",
            "max_replicas",
            "pinned_replicas",
            "desired_replicas",
            "ready_replicas",
            "starting_replicas",
            "failed_replicas",
            "cold_start_s",
            "retry_attempt",
            "revision",
            "created_at",
            "updated_at",
            "removed_at",
        )
        read_only_fields = fields

    @extend_schema_field(RevisionSerializer(allow_null=True))
    def get_revision(self, row: Any) -> dict[str, Any] | None:
        return RevisionSerializer(row.current[0]).data if row.current else None


class DeploymentRemoval(serializers.Serializer[Any]):
    """How a deployment is removed."""

    confirm = serializers.CharField(
        max_length=200,
        default="",
        allow_blank=True,
        help_text="Its name: let the replicas that have not ended drain and stop.",
    )


class DeploymentFilter(RemovedFilterSet):
    search = django_filters.CharFilter(field_name="name", lookup_expr="icontains", label="Part of the name.")
    pool = django_filters.CharFilter(field_name="pool__slug", label="Slug of the pool.")

    class Meta:
        model = Deployment
        fields = ("name", "is_enabled")


class DeploymentsViewSet(ApiViewSet[Deployment]):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "retrieve": Action.PLATFORM_VIEW,
        "create": Action.PLATFORM_OPERATE,
        "partial_update": Action.PLATFORM_OPERATE,
        "enable": Action.PLATFORM_OPERATE,
        "disable": Action.PLATFORM_OPERATE,
        "retry": Action.PLATFORM_OPERATE,
        "destroy": Action.PLATFORM_OPERATE,
    }
    queryset = Deployment.objects.all()
    serializer_class = DeploymentSerializer
    filterset_class = DeploymentFilter
    ordering_fields = ("name", "created_at")

    def get_queryset(self) -> QuerySet[Deployment]:
        """What was removed can be looked at, not acted on."""
        state = Replica.State
        looks = self.action in ("list", "retrieve", "destroy")
        return (
            (Deployment.everything if looks else Deployment.objects)
            .select_related("pool")
            .prefetch_related(
                Prefetch("revisions", queryset=Revision.objects.filter(is_current=True), to_attr="current")
            )
            .annotate(
                ready_total=Count("replicas", filter=Q(replicas__state=state.READY)),
                starting_total=Count("replicas", filter=Q(replicas__state__in=(state.PENDING, state.STARTING))),
                failed_total=Count("replicas", filter=Q(replicas__state=state.FAILED)),
            )
            .order_by("name")
        )

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Filters are of the list: one deployment is found by its id, removed or not."""
        return super().filter_queryset(queryset) if self.action == "list" else queryset

    def list(self, request: Request) -> Response:
        """Deployments by name, with how many of their replicas are ready, starting and failed."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, pk: str) -> Response:
        """One deployment."""
        return self.shown(self.get_object())

    @extend_schema(request=NewDeployment, responses={201: DeploymentSerializer})
    def create(self, request: Request) -> Response:
        """Serve a pool under a name, with a first revision. Its pool and a name are enough."""

        def make() -> Response:
            made = deployment_create(actor=self.caller.actor, **self.read(NewDeployment))
            return self._as_it_is(made, code=status.HTTP_201_CREATED)

        return self.created(make)

    @extend_schema(request=DeploymentFields)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change the bounds or pin the number of replicas. Only what is sent changes."""
        row = self.get_object()
        given = self.read(DeploymentFields, partial=True)

        def change() -> Response:
            return self._as_it_is(deployment_update(deployment=row, actor=self.caller.actor, **given))

        return self.changed(row, change)

    @extend_schema(request=None, responses=DeploymentSerializer)
    @action(detail=True, methods=["post"])
    def enable(self, request: Request, pk: str) -> Response:
        """Serve again. One that is enabled already stays so."""
        return self._switched(deployment_enable)

    @extend_schema(request=None, responses=DeploymentSerializer)
    @action(detail=True, methods=["post"])
    def disable(self, request: Request, pk: str) -> Response:
        """Stop serving: replicas drain and stop, and clients get 503."""
        return self._switched(deployment_disable)

    @extend_schema(request=None, responses=DeploymentSerializer)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Start failed replicas again, and try anew what had failed on their hosts."""
        row = self.get_object()

        def again() -> Response:
            return self._as_it_is(deployment_retry(deployment=row, actor=self.caller.actor))

        return self.created(again)

    @extend_schema(parameters=[DeploymentRemoval], responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Take the deployment away. Its name is free, its usage and history stay; clients get 404 for it.

        409 while replicas have not ended, unless ``confirm`` is its name: then they drain and stop; and for the last
        one that serves a pool of which reservations are not over. One that was removed before stays so. Keys and limits
        that name it stay, for whatever has that name next.
        """
        row = self.get_object()
        if row.removed_at is not None:
            return Response(status=status.HTTP_204_NO_CONTENT)
        query = DeploymentRemoval(data=request.query_params)
        query.is_valid(raise_exception=True)

        def remove() -> Response:
            deployment_remove(deployment=row, actor=self.caller.actor, **query.validated_data)
            return Response(status=status.HTTP_204_NO_CONTENT)

        return self.changed(row, remove)

    def _switched(self, switch: Any) -> Response:
        row = self.get_object()

        def change() -> Response:
            switch(deployment=row, actor=self.caller.actor)
            return self._as_it_is(row)

        return self.changed(row, change)

    def _as_it_is(self, row: Deployment, *, code: int = status.HTTP_200_OK) -> Response:
        """Read again: counts and the current revision are no columns."""
        return self.shown(self.get_queryset().get(pk=row.pk), code=code)
