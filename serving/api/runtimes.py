"""``/models/{model}/runtime``: which runtime a deployment of the model would get, and why, for operators."""

from __future__ import annotations

from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from capacity.api.base import NamedViewSet
from capacity.models import Model
from serving.artifacts import runtime_choice
from serving.models import Revision
from serving.options import spoken
from tenants.policy.roles import Action


class RuntimeChoiceSerializer(serializers.Serializer[Any]):
    """What a revision without a runtime would run."""

    runtime = serializers.ChoiceField(Revision.Runtime.choices)
    options = serializers.DictField(help_text="Those that the model's files call for; what is sent goes before.")
    speaks = serializers.ListField(child=serializers.CharField(), help_text="What clients could ask of it.")
    reason = serializers.CharField()
    missing = serializers.CharField(help_text="What a person must still say; empty: nothing.")


class ModelRuntimeViewSet(NamedViewSet[Model]):
    required: ClassVar = {"runtime": Action.PLATFORM_VIEW}
    queryset = Model.objects.all()
    lookup_url_kwarg = "model"

    @extend_schema(responses=RuntimeChoiceSerializer)
    def runtime(self, request: Request, model: str) -> Response:
        """The runtime that fits the model's files, as far as the control plane sees them, and why."""
        choice = runtime_choice(self.get_object())
        speaks = () if choice.missing else spoken(choice.runtime, choice.options)
        found = {
            "runtime": choice.runtime,
            "options": choice.options,
            "speaks": speaks,
            "reason": choice.reason,
            "missing": choice.missing,
        }
        return Response(RuntimeChoiceSerializer(found).data)
