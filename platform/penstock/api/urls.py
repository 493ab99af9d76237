"""``/api/v1``: every app's part, the schema and its documentation, all from this machine."""

from django.urls import include, path
from drf_spectacular.views import SpectacularSwaggerSplitView

from penstock.api.document import SchemaView

urlpatterns = [
    path("v1/", include("tenants.api.urls")),
    path("v1/", include("serving.api.urls")),
    path("v1/", include("capacity.api.urls")),
    path("schema", SchemaView.as_view(), name="api-schema"),
    path("docs", SpectacularSwaggerSplitView.as_view(url_name="api-schema"), name="api-docs"),
]
