"""What operators can do from the console."""

from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_POST

from penstock.web.access import UserRequest, operators_only
from serving.models import Deployment
from serving.services import deployment_retry
from tenants.policy.roles import Action


@require_POST
@operators_only(Action.PLATFORM_OPERATE)
def retry(request: UserRequest, deployment_id: UUID) -> HttpResponse:
    """Let the failed replicas of a deployment start again."""
    deployment = get_object_or_404(Deployment, pk=deployment_id)
    deployment_retry(deployment=deployment, actor=request.user)
    messages.success(request, f"{deployment.name}: failed replicas start again.")
    return redirect("console")
