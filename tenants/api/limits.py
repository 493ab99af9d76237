"""``/tenants/{tenant}/limits`` and ``…/keys/{key}/limits``: plain limits, named by their kind and model."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.db.models import QuerySet
from django.http import Http404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from tenants.api.base import TenantViewSet
from tenants.models import ApiKey, Limit
from tenants.policy.roles import Action
from tenants.services import limit_remove, limit_set

_MOST = 2**63 - 1
_MODEL = OpenApiParameter("model", str, description="Served model name; empty: the limit for all models together.")
_KIND = OpenApiParameter("kind", str, OpenApiParameter.PATH, enum=Limit.Kind.values)
_KEY = OpenApiParameter("key", OpenApiTypes.UUID, OpenApiParameter.PATH, description="Id of the API key.")


class LimitFields(serializers.Serializer[Any]):
    value = serializers.IntegerField(min_value=1, max_value=_MOST, help_text="Per minute, or at once for concurrency.")
    model = serializers.CharField(
        max_length=200, allow_blank=True, default="", help_text="Served model name; empty means all models together."
    )


class LimitSerializer(serializers.ModelSerializer[Limit]):
    class Meta:
        model = Limit
        fields = ("id", "kind", "model", "value", "created_at", "updated_at")
        read_only_fields = fields


class LimitsViewSet(TenantViewSet[Limit]):
    required: ClassVar = {
        "list": Action.TENANT_VIEW,
        "retrieve": Action.TENANT_VIEW,
        "update": Action.LIMIT_MANAGE,
        "destroy": Action.LIMIT_MANAGE,
    }
    queryset = Limit.objects.none()
    serializer_class = LimitSerializer
    filterset_fields = ("kind", "model")
    ordering_fields = ("kind", "model", "value")
    lookup_field = "kind"

    @property
    def api_key(self) -> ApiKey | None:
        """Whose limits these are; None: the tenant's own."""
        return None

    def get_queryset(self) -> QuerySet[Limit]:
        rows = Limit.objects.filter(tenant=self.tenant, api_key=self.api_key)
        return rows.select_related("tenant").order_by("kind", "model")

    def list(self, request: Request, **_: str) -> Response:
        """The limits that are set."""
        return self.listed(self.get_queryset())

    @extend_schema(parameters=[_KIND, _MODEL])
    def retrieve(self, request: Request, **_: str) -> Response:
        """The limit of this kind, for one model or for all together."""
        return self.shown(self._stored(request.query_params.get("model", "")))

    @extend_schema(parameters=[_KIND], request=LimitFields, responses={200: LimitSerializer, 201: LimitSerializer})
    def update(self, request: Request, **_: str) -> Response:
        """Set the limit of this kind, whether or not there is one. Gateways hold to it within two seconds."""
        given = self.read(LimitFields)
        row = self._found(given["model"])

        def put(code: int) -> Response:
            made = limit_set(
                tenant=self.tenant, api_key=self.api_key, kind=self._kind, actor=self.caller.actor, **given
            )
            return self.shown(made, code=code)

        missing = "There is no such limit: leave out If-Match to set one."
        return self.put_or_create(row, put, missing=missing, turn_of=self.tenant)

    @extend_schema(parameters=[_KIND, _MODEL], responses={204: None})
    def destroy(self, request: Request, **_: str) -> Response:
        """Remove the limit of this kind: what it held back is free."""
        row = self._stored(request.query_params.get("model", ""))

        def end() -> Response:
            limit_remove(limit=row, actor=self.caller.actor)
            return Response(status=status.HTTP_204_NO_CONTENT)

        return self.changed(row, end, turn_of=self.tenant)

    @property
    def _kind(self) -> str:
        kind: str = self.kwargs["kind"]
        if kind not in Limit.Kind.values:
            raise Http404(f"There is no such kind of limit: use {', '.join(Limit.Kind.values)}.")
        return kind

    def _found(self, model: str) -> Limit | None:
        return self.get_queryset().filter(kind=self._kind, model=model).first()

    def _stored(self, model: str) -> Limit:
        row = None if "\0" in model else self._found(model)
        if row is None:
            raise Http404("No such limit is set. A limit for one model is named by ?model=<served name>.")
        return row


class KeyLimitsViewSet(LimitsViewSet):
    required: ClassVar = {**LimitsViewSet.required, "list": Action.KEY_VIEW, "retrieve": Action.KEY_VIEW}

    _api_key: ApiKey | None = None

    @property
    def api_key(self) -> ApiKey:
        if self._api_key is None:
            self._api_key = self._find_key()
        return self._api_key

    def _find_key(self) -> ApiKey:
        try:
            found = ApiKey.objects.filter(tenant=self.tenant, pk=uuid.UUID(self.kwargs["key"])).first()
        except ValueError:
            found = None
        if found is None:
            raise Http404("The tenant has no such API key.")
        return found
