"""The OpenAPI document as it is served."""

from __future__ import annotations

from functools import cache
from typing import Any

from django.http import HttpResponse
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularAPIView
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request


class SchemaView(SpectacularAPIView):
    """Written once in each process: it says the same to everybody, and takes half a second to write."""

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        chosen: BaseRenderer = request.accepted_renderer
        named = {"Content-Disposition": f'inline; filename="penstock.{chosen.format}"'}
        text = _written(type(chosen))  # type: ignore[arg-type]  # a class can be hashed, whatever its instances can
        return HttpResponse(text, content_type=chosen.media_type, headers=named)


@cache
def _written(renderer: type[BaseRenderer]) -> str | bytes:
    generator: Any = SchemaGenerator
    return renderer().render(generator().get_schema(request=None, public=True))
