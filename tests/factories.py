"""Rows for tests, made by the services that production uses."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db import connection

from capacity.models import HardwareType, Host, Model, Pool
from capacity.services import hardware_type_get_or_create, host_enrol, model_create, pool_create
from capacity.usage.lines import AdmitLine, Attempt, EndLine, Usage, UsageBatch
from serving.models import Deployment, Replica
from serving.services import deployment_create, replica_create
from tenants.models import ApiKey, Tenant, User
from tenants.services import api_key_create, tenant_create, user_create

ACTOR = "a test"
_numbers = itertools.count(1)


def user(**fields: Any) -> User:
    return user_create(email=fields.pop("email", f"person{next(_numbers)}@example.org"), actor=ACTOR, **fields)


def tenant(**fields: Any) -> Tenant:
    return tenant_create(name=fields.pop("name", f"Tenant {next(_numbers)}"), actor=ACTOR, **fields)


def api_key(of: Tenant | None = None, **fields: Any) -> tuple[ApiKey, str]:
    return api_key_create(tenant=of or tenant(), name=fields.pop("name", "key"), actor=ACTOR, **fields)


def hardware() -> HardwareType:
    return hardware_type_get_or_create(name="CPU", is_cpu=True, actor=ACTOR)


def host(**fields: Any) -> Host:
    name = fields.pop("name", f"host-{next(_numbers)}")
    return host_enrol(name=name, hardware_type=hardware(), actor=ACTOR, **fields)[0]


def model(**fields: Any) -> Model:
    return model_create(**{"name": f"Model {next(_numbers)}", "artifact_kind": "tiny", "actor": ACTOR, **fields})


def pool(**fields: Any) -> Pool:
    return pool_create(model=fields.pop("model", None) or model(), hardware_type=hardware(), actor=ACTOR, **fields)


def deployment(**fields: Any) -> Deployment:
    of = fields.pop("pool", None) or pool()
    name = fields.pop("name", f"served-{next(_numbers)}")
    return deployment_create(pool=of, name=name, actor=ACTOR, **{"runtime": "simulated", **fields})


def replica(of: Deployment | None = None, **fields: Any) -> Replica:
    served = of or deployment()
    return replica_create(
        deployment=served, revision=served.revisions.get(is_current=True), reason="wanted", actor=ACTOR, **fields
    )


@dataclass
class Traffic:
    """Makes pairs of journal lines of one tenant, key, pool and deployment. Times are UNIX seconds."""

    tenant: str = ""
    key: str = ""
    pool: str = ""
    deployment: str = ""

    def __post_init__(self) -> None:
        for name in ("tenant", "key", "pool", "deployment"):
            setattr(self, name, getattr(self, name) or str(uuid.uuid4()))

    def pair(self, ended_at: float, **fields: Any) -> tuple[AdmitLine, EndLine]:
        request_id = str(fields.pop("id", None) or uuid.uuid4())
        duration_s = fields.pop("duration_s", 1.5)
        admitted_at = ended_at - duration_s
        usage = fields.pop("usage", None) or Usage(input_tokens=100, cached_tokens=40, output_tokens=20)
        admit = AdmitLine(
            id=request_id,
            at=admitted_at,
            tenant=self.tenant,
            key=self.key,
            pool=self.pool,
            deployment=self.deployment,
            revision=str(uuid.UUID(int=7)),
            model="demo-sim",
            dialect="chat",
            profile_version=1,
            estimated_mu=2.0,
            estimated=Usage(input_tokens=90, output_tokens=30),
            service_class=fields.pop("service_class", "best_effort"),
            client_request_id=fields.pop("client_request_id", ""),
            stream=fields.pop("stream", True),
        )
        replica_id = str(uuid.UUID(int=9))
        end = EndLine(
            id=request_id,
            at=ended_at,
            outcome=fields.pop("outcome", "completed"),
            status=fields.pop("status", 200),
            usage=usage,
            actual_mu=fields.pop("mu", 1.25),
            replica=replica_id,
            attempts=(Attempt(replica=replica_id, started_at=admitted_at, ended_at=ended_at),),
            first_byte_at=fields.pop("first_byte_at", admitted_at + duration_s / 3),
            **fields,
        )
        return admit, end


def batch(*pairs: tuple[AdmitLine, EndLine], **fields: Any) -> UsageBatch:
    newest = max((end.at for _, end in pairs), default=time.time())
    return UsageBatch(
        **{
            "gateway": "gw-1",
            "segment": "gw-1.1",
            "sequence": 1,
            "watermark": newest + 0.001,
            "pairs": pairs,
            **fields,
        }
    )


def race(*calls: Callable[[], Any]) -> list[Any]:
    """Run ``calls`` at the same moment, each in a thread and on a database connection of its own.

    Returns each call's result, or the exception that it raised.
    """
    barrier = threading.Barrier(len(calls))
    outcomes: list[Any] = [None] * len(calls)

    def run(index: int, call: Callable[[], Any]) -> None:
        try:
            connection.ensure_connection()
            if connection.vendor == "sqlite":
                # One at a time writes: on a busy machine the last of many waits longer than a person would.
                with connection.cursor() as cursor:
                    cursor.execute("PRAGMA busy_timeout = 90000")
            barrier.wait(60)
            outcomes[index] = call()
        except Exception as error:
            outcomes[index] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(index, call)) for index, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    return outcomes
