"""The OpenAPI document: how callers prove who they are, and the problems that any request can meet."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter

from tenants.api.idempotency import HEADER
from tenants.api.problems import ProblemSerializer

_ALWAYS = {"401": "Not signed in.", "403": "Not allowed.", "429": "Too many requests."}


class TokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "tenants.api.authentication.TokenAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "A person's access token (pst_…), or an API key (mu_…) with the scope usage or manage.",
        }


class Schema(AutoSchema):
    """Adds to each operation the problems it can answer with, and the headers that all of its kind take."""

    def get_response_serializers(self) -> Any:
        found = super().get_response_serializers()
        made: dict[Any, Any] = dict(found) if isinstance(found, dict) else {self._success(found): found}
        for code in self._problems():
            made.setdefault((int(code), "application/problem+json"), ProblemSerializer)
        return made

    def _success(self, found: Any) -> int:
        if self.method == "DELETE" or found is None:
            return 204
        return 201 if self.method == "POST" and getattr(self.view, "action", "") == "create" else 200

    def _problems(self) -> list[str]:
        codes = list(_ALWAYS)
        if self.method in ("POST", "PUT", "PATCH") or getattr(self.view, "action", "") == "list":
            codes.append("400")
        if "{" in self.path:
            codes.append("404")
        if self.method in ("POST", "PUT", "PATCH", "DELETE"):
            codes += ["409", "415"] if self.method != "DELETE" else ["409"]
        if self.method in ("PATCH", "PUT", "DELETE"):
            codes.append("412")
        if self.method == "POST":
            codes += ["412", "422"]
        return codes

    def get_override_parameters(self) -> list[Any]:
        made = list(super().get_override_parameters())
        if self.method == "POST":
            made.append(
                OpenApiParameter(
                    HEADER,
                    str,
                    OpenApiParameter.HEADER,
                    description="Send it again with the same key: it happens once.",
                )
            )
        if self.method in ("PATCH", "PUT", "DELETE"):
            made.append(
                OpenApiParameter(
                    "If-Match", str, OpenApiParameter.HEADER, description="An ETag: change only what is still the same."
                )
            )
        return made

    def get_filter_backends(self) -> Any:
        return super().get_filter_backends() if getattr(self.view, "action", "") == "list" else []
