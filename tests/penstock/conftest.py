"""A shared state to publish to, and something to publish."""

from datetime import timedelta

import pytest
from django.utils import timezone

from capacity.models import CostProfile, HardwareType, Host, Model, Pool
from serving.gateway.state import connect
from serving.models import Deployment, Replica, Revision
from tenants.changes import record_change


@pytest.fixture
def state(settings, state_url, db):
    settings.REDIS_URL = state_url
    client = connect(state_url)
    yield client
    client.close()


@pytest.fixture
def served(db):
    """A pool with a price, a deployment with a revision, and two ready replicas."""
    cpu = HardwareType.objects.create(slug="cpu", name="CPU", is_cpu=True)
    host = Host.objects.create(name="h", hardware_type=cpu, secret=b"x")
    model = Model.objects.create(slug="m", name="M", artifact_kind="none")
    pool = Pool.objects.create(slug="p", name="P", model=model)
    CostProfile.objects.create(
        pool=pool,
        version=1,
        hardware_type=cpu,
        effective_from=timezone.now() - timedelta(days=1),
        alpha=0.001,
        beta=0.02,
        long_input_tiers=[[8000, 2.0]],
    )
    deployment = Deployment.objects.create(pool=pool, name="demo")
    revision = Revision.objects.create(deployment=deployment, number=1, runtime="simulated", target_concurrency=7)
    replicas = [
        Replica.objects.create(
            deployment=deployment,
            revision=revision,
            host=host,
            state="ready",
            state_since=timezone.now(),
            address=f"http://127.0.0.1:{9000 + i}",
            max_model_len=1000 * (2 - i),
        )
        for i in range(2)
    ]
    for kind, thing in (("pool", pool), ("deployment", deployment), *(("replica", r) for r in replicas)):
        record_change(kind=kind, object_id=thing.pk)
    return pool, deployment, revision, replicas
