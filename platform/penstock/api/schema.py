"""The OpenAPI document: how callers prove who they are, and the problems that any request can meet."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse

from tenants.api.idempotency import HEADER
from tenants.api.problems import ProblemSerializer

_PROBLEMS = {
    "400": "Something in the request is wrong: errors says at which field.",
    "401": "Not signed in.",
    "403": "Not allowed.",
    "404": "Not found, or of a tenant that is not yours; of a list: no such page.",
    "409": "It conflicts with what is there.",
    "412": "It has changed since the version that If-Match names.",
    "413": "The body is larger than the REST API reads.",
    "415": "Send JSON.",
    "422": "The Idempotency-Key was sent with another request before.",
    "429": "Too many requests: Retry-After says when to go on.",
}


class TokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "tenants.api.authentication.TokenAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "A person's access token (pst_…), or an API key (mu_…) with the scope usage or manage.",
        }


class EnrolmentScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "capacity.api.enrolment.EnrolmentTokenAuthentication"
    name = "enrolment"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        return {"type": "http", "scheme": "bearer", "description": "An enrolment token (pse_…) that operators make."}


class Schema(AutoSchema):
    """Adds to each operation the problems it can answer with, and the headers that all of its kind take."""

    def _get_response_bodies(self, direction: Any = "response") -> dict[str, Any]:
        # Here, and not in get_response_serializers: what extend_schema says of responses replaces that one.
        made: dict[str, Any] = super()._get_response_bodies(direction)
        untyped: Any = self
        for code in self._problems() - made.keys():
            problem = OpenApiResponse(ProblemSerializer, description=_PROBLEMS[code])
            made[code] = untyped._get_response_for_code(problem, code, ["application/problem+json"], direction)
        return dict(sorted(made.items()))

    def _problems(self) -> set[str]:
        codes, is_change = {"400", "401", "403", "429"}, self.method in ("POST", "PUT", "PATCH", "DELETE")
        is_list = getattr(self.view, "action", "") == "list"
        if "{" in self.path or is_list:
            codes.add("404")
        if is_change:
            codes |= {"409", "412"}
        if is_change and self.method != "DELETE":
            codes |= {"413", "415"}
        if self.method == "POST":
            codes.add("422")
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
