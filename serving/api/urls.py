"""Addresses of this app's part of the REST API."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from serving.api.calibrations import CalibrationsViewSet
from serving.api.deployments import DeploymentsViewSet
from serving.api.events import EventsViewSet
from serving.api.incidents import DecisionsViewSet, IncidentsViewSet
from serving.api.providers import ProviderCredentialsViewSet
from serving.api.replicas import DeploymentReplicasViewSet, ReplicasViewSet
from serving.api.revisions import RevisionsViewSet
from serving.api.runtimes import ModelRuntimeViewSet
from serving.api.served import ServedModelsViewSet

_platform = SimpleRouter(trailing_slash=False)
_platform.register("deployments", DeploymentsViewSet)
_platform.register("replicas", ReplicasViewSet)
_platform.register("calibrations", CalibrationsViewSet)
_platform.register("incidents", IncidentsViewSet)
_platform.register("decisions", DecisionsViewSet)
_platform.register("provider-credentials", ProviderCredentialsViewSet)

_deployment = SimpleRouter(trailing_slash=False)
_deployment.register("revisions", RevisionsViewSet, basename="deployment-revision")
_deployment.register("replicas", DeploymentReplicasViewSet, basename="deployment-replica")
_deployment.register("events", EventsViewSet, basename="deployment-event")

_tenant = SimpleRouter(trailing_slash=False)
_tenant.register("deployments", ServedModelsViewSet, basename="tenant-deployment")

urlpatterns = [
    *_platform.urls,
    path("models/<str:model>/runtime", ModelRuntimeViewSet.as_view({"get": "runtime"}), name="model-runtime"),
    path("deployments/<str:deployment>/", include(_deployment.urls)),
    path("tenants/<str:tenant>/", include(_tenant.urls)),
]
