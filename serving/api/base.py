"""What the views below ``/deployments/{deployment}`` stand on."""

from __future__ import annotations

import uuid
from typing import TypeVar

from django.db import models
from django.http import Http404

from serving.models import Deployment
from tenants.api.base import ApiViewSet

_Row = TypeVar("_Row", bound=models.Model)
_NONE = "There is no such deployment. GET /api/v1/deployments lists them with their ids."


class DeploymentPartViewSet(ApiViewSet[_Row]):
    """What belongs to the deployment whose id is in the address."""

    _deployment: Deployment | None = None

    @property
    def deployment(self) -> Deployment:
        if self._deployment is None:
            self._deployment = _find(self.kwargs["deployment"])
        return self._deployment


def _find(identifier: str) -> Deployment:
    """By id. Raises Http404."""
    try:
        found = Deployment.everything.filter(pk=uuid.UUID(identifier)).first()
    except ValueError:
        found = None
    if found is None:
        raise Http404(_NONE)
    return found
