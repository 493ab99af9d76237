"""One pool that every tenant may use: all that most of the tenant's pages need."""

from django.utils import timezone

from capacity.models import HardwareType, Model, Pool
from serving.models import Deployment, Revision
from tests.web.seed import pool


def open_pool() -> Pool:
    """``chat-32b``, which every tenant may use, with one deployment on the simulated runtime."""
    hardware = HardwareType.objects.create(slug="cpu", name="CPU", is_cpu=True)
    model = Model.objects.create(slug="m", name="M", artifact_kind="none")
    made = pool("chat-32b", model, hardware, calibrated=True, now=timezone.now())
    deployment = Deployment.objects.create(pool=made, name="chat-32b", min_replicas=1, max_replicas=1)
    Revision.objects.create(deployment=deployment, number=1, runtime="simulated", target_concurrency=8)
    return made
