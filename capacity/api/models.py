"""``/models``: what can be served, for operators."""

from __future__ import annotations

from typing import ClassVar

import django_filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.api.base import RemovableViewSet
from capacity.models import Model
from capacity.services import model_create, model_remove, model_update
from tenants.api.filters import RemovedFilterSet
from tenants.policy.roles import Action


class ModelSerializer(serializers.ModelSerializer[Model]):
    class Meta:
        model = Model
        fields = (
            "id",
            "slug",
            "name",
            "artifact_kind",
            "artifact_value",
            "artifact_revision",
            "parameters",
            "context_tokens",
            "created_at",
            "updated_at",
            "removed_at",
        )
        read_only_fields = fields


class ModelFields(serializers.Serializer[Model]):
    """What can be changed of a model."""

    name = serializers.CharField(max_length=200)
    artifact_value = serializers.CharField(
        max_length=500,
        allow_blank=True,
        required=False,
        help_text="The local folder, or the hub id; embed for the tiny embedding model.",
    )
    artifact_revision = serializers.CharField(max_length=100, allow_blank=True, required=False)
    parameters = serializers.IntegerField(
        min_value=1, max_value=2**63 - 1, allow_null=True, required=False, help_text="Their number, where known."
    )
    context_tokens = serializers.IntegerField(min_value=1, max_value=2**31 - 1, allow_null=True, required=False)


class NewModel(ModelFields):
    slug = serializers.SlugField(max_length=80, required=False, help_text="Made from the name where it is not given.")
    artifact_kind = serializers.ChoiceField(Model.Artifact.choices)


class ModelFilter(RemovedFilterSet):
    search = django_filters.CharFilter(field_name="name", lookup_expr="icontains", label="Part of the name.")

    class Meta:
        model = Model
        fields = ("artifact_kind",)


class ModelsViewSet(RemovableViewSet[Model]):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "retrieve": Action.PLATFORM_VIEW,
        "create": Action.PLATFORM_OPERATE,
        "partial_update": Action.PLATFORM_OPERATE,
        "destroy": Action.PLATFORM_OPERATE,
    }
    queryset = Model.everything.all()
    serializer_class = ModelSerializer
    filterset_class = ModelFilter
    ordering_fields = ("name", "slug", "parameters", "created_at")
    lookup_url_kwarg = "model"

    def list(self, request: Request) -> Response:
        """The models that pools can sell."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, model: str) -> Response:
        """One model, by id or slug."""
        return self.shown(self.get_object())

    @extend_schema(request=NewModel, responses={201: ModelSerializer})
    def create(self, request: Request) -> Response:
        """A new model: where its weights are, and what is known of it."""

        def make() -> Response:
            made = model_create(actor=self.caller.actor, **self.read(NewModel))
            return self.shown(made, code=status.HTTP_201_CREATED)

        return self.created(make)

    @extend_schema(request=ModelFields)
    def partial_update(self, request: Request, model: str) -> Response:
        """Change what is sent. Replicas take a new artifact when they start anew."""
        row = self.get_object()
        given = self.read(ModelFields, partial=True)
        return self.changed(row, lambda: self.shown(model_update(model=row, actor=self.caller.actor, **given)))

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, model: str) -> Response:
        """Take away a model that no pool sells; its slug is free. 409 names the pools that do."""
        row = self.get_object()
        return self.removed(row, lambda: model_remove(model=row, actor=self.caller.actor))
