"""``/deployments/{deployment}/revisions``: what its replicas run. Revisions are never edited; a new one takes over."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from serving.api.base import DeploymentPartViewSet
from serving.models import Revision
from serving.options import spoken
from serving.services import revision_create, revision_restore
from tenants.api.fields import JsonObjectField
from tenants.policy.roles import Action

MOST_AT_ONCE = 100_000


class RevisionFields(serializers.Serializer[Any]):
    """What a revision runs."""

    runtime = serializers.ChoiceField(
        Revision.Runtime.choices,
        required=False,
        help_text="Left out: the one that fits the model's files, with the options that it needs for them.",
    )
    options = JsonObjectField(default=dict, help_text="Of the runtime; some say which host a replica needs.")
    target_concurrency = serializers.IntegerField(
        min_value=1, max_value=MOST_AT_ONCE, default=16, help_text="Requests at once per replica."
    )


class RevisionSerializer(serializers.ModelSerializer[Revision]):
    """``speaks`` is what clients can ask: generate (completions, chat), embed, score, invocations or http."""

    options = serializers.DictField(read_only=True)
    speaks = serializers.SerializerMethodField()

    class Meta:
        model = Revision
        fields = (
            "id",
            "deployment",
            "number",
            "runtime",
            "runtime_reason",
            "options",
            "speaks",
            "target_concurrency",
            "is_current",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields

    def get_speaks(self, row: Revision) -> list[str]:
        return list(spoken(row.runtime, row.options))


class RevisionsViewSet(DeploymentPartViewSet[Revision]):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "retrieve": Action.PLATFORM_VIEW,
        "create": Action.PLATFORM_OPERATE,
        "restore": Action.PLATFORM_OPERATE,
    }
    queryset = Revision.objects.none()
    serializer_class = RevisionSerializer
    filterset_fields = ("runtime", "is_current")
    ordering_fields = ("number", "created_at")

    def get_queryset(self) -> QuerySet[Revision]:
        return Revision.objects.filter(deployment=self.deployment).order_by("-number")

    def list(self, request: Request, deployment: str) -> Response:
        """Revisions of a deployment, newest first."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, deployment: str, pk: str) -> Response:
        """One revision of a deployment."""
        return self.shown(self.get_object())

    @extend_schema(request=RevisionFields, responses={201: RevisionSerializer})
    def create(self, request: Request, deployment: str) -> Response:
        """A new revision, current from now on: replicas of the one before are replaced step by step."""

        def make() -> Response:
            given = self.read(RevisionFields)
            made = revision_create(deployment=self.deployment, actor=self.caller.actor, **given)
            return self.shown(made, code=status.HTTP_201_CREATED)

        return self.created(make)

    @extend_schema(request=None, responses={201: RevisionSerializer})
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, deployment: str, pk: str) -> Response:
        """Go back: a new revision with the contents of this earlier one becomes current."""
        earlier = self.get_object()

        def make() -> Response:
            made = revision_restore(revision=earlier, actor=self.caller.actor)
            return self.shown(made, code=status.HTTP_201_CREATED)

        return self.created(make)
