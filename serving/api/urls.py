"""Addresses of this app's part of the REST API."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from serving.api.deployments import DeploymentsViewSet
from serving.api.revisions import RevisionsViewSet

_platform = SimpleRouter(trailing_slash=False)
_platform.register("deployments", DeploymentsViewSet)

_deployment = SimpleRouter(trailing_slash=False)
_deployment.register("revisions", RevisionsViewSet, basename="deployment-revision")

urlpatterns = [
    *_platform.urls,
    path("deployments/<str:deployment>/", include(_deployment.urls)),
]
