"""``/provider-credentials``: secrets of external providers. They are written, and never in an answer."""

from __future__ import annotations

from typing import Any, ClassVar

from django.http import Http404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from serving.models import ProviderCredential
from serving.services import provider_credential_remove, provider_credential_set
from tenants.api.base import ApiViewSet
from tenants.policy.roles import Action


class CredentialFields(serializers.Serializer[Any]):
    """What is left out stays as it is; a new credential needs provider and secret."""

    provider = serializers.CharField(max_length=40, required=False)
    base_url = serializers.CharField(max_length=200, required=False, allow_blank=True)
    secret = serializers.CharField(
        max_length=4000, required=False, write_only=True, help_text="Kept encrypted, and never shown."
    )


class CredentialSerializer(serializers.ModelSerializer[ProviderCredential]):
    class Meta:
        model = ProviderCredential
        fields = ("id", "name", "provider", "base_url", "created_at", "updated_at")
        read_only_fields = fields


class ProviderCredentialsViewSet(ApiViewSet[ProviderCredential]):
    required: ClassVar = {
        "list": Action.PLATFORM_VIEW,
        "retrieve": Action.PLATFORM_VIEW,
        "update": Action.PLATFORM_OPERATE,
        "destroy": Action.PLATFORM_OPERATE,
    }
    queryset = ProviderCredential.objects.order_by("name")
    serializer_class = CredentialSerializer
    filterset_fields = ("provider",)
    ordering_fields = ("name", "updated_at")
    lookup_field = "name"

    def get_object(self) -> ProviderCredential:
        found = self._stored()
        if found is None:
            raise Http404("There is no credential of this name. PUT makes one.")
        return found

    def list(self, request: Request) -> Response:
        """Credentials by name, without their secrets."""
        return self.listed(self.get_queryset())

    def retrieve(self, request: Request, name: str) -> Response:
        """One credential, without its secret."""
        return self.shown(self.get_object())

    @extend_schema(request=CredentialFields, responses={200: CredentialSerializer, 201: CredentialSerializer})
    def update(self, request: Request, name: str) -> Response:
        """Set the credential of this name, new or stored. Nothing that is left out changes."""
        row = self._stored()
        given = self.read(CredentialFields)

        def put(code: int) -> Response:
            return self.shown(provider_credential_set(name=name, actor=self.caller.actor, **given), code=code)

        missing = "There is no credential of this name: leave out If-Match to make one."
        return self.put_or_create(row, put, missing=missing)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, name: str) -> Response:
        """Forget the credential. What uses it stops working."""
        row = self.get_object()

        def forget() -> Response:
            provider_credential_remove(credential=row, actor=self.caller.actor)
            return Response(status=status.HTTP_204_NO_CONTENT)

        return self.changed(row, forget)

    def _stored(self) -> ProviderCredential | None:
        return self.get_queryset().filter(name=self.kwargs["name"]).first()
