"""The demo on an empty database, and the enrolment of this host. Both can be repeated: what is there stays."""

import datetime
import json
import os
import platform
import re
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from django.conf import settings
from django.db import transaction
from django.utils.text import slugify

from capacity.models import HardwareType, Host, Pool
from capacity.policy.profiles import REFERENCE_MU_PER_MIN, default_profile, simulated_options
from capacity.services import (
    hardware_type_get_or_create,
    host_enrol,
    host_secret_renew,
    model_create,
    pool_create,
    reservation_request,
)
from penstock.bundled_state import agent_url, socket_path
from penstock.loops.broker import broker_url
from penstock.machine import accelerators_here
from penstock.model_source import local_folder
from serving.services import deployment_create
from tenants.crypto import DecryptionError, decrypt
from tenants.models import Membership, Tenant, User
from tenants.services import (
    api_key_create,
    limit_set,
    membership_add,
    sign_in_link_create,
    tenant_create,
    user_create,
)

Engine = Literal["vllm", "simulated"]

ACTOR = "demo"
OPERATOR = "operator@demo.local"
LINK_VALID = datetime.timedelta(hours=24)
SIMULATED, TINY = "demo-sim", "demo-tiny"
TINY_PARAMETERS, TINY_CONTEXT_TOKENS = 100_000, 4096
"""Of the built-in tiny model (``worker/tiny_model.py``), near enough for a default price."""

_PEOPLE = {
    "Northwind Bank": (("ada@northwind.demo.local", "Ada Park"), ("ben@northwind.demo.local", "Ben Ortiz")),
    "Alder Health": (("cleo@alder.demo.local", "Cleo Marsh"), ("dev@alder.demo.local", "Dev Rao")),
}
_MODEST = {"requests_per_min": 120, "tokens_per_min": 60_000, "concurrency": 8}
"""Limits of the second tenant's key, so that they can be seen to hold."""


@dataclass(frozen=True)
class DemoTenant:
    """``api_key`` is shown here and never again."""

    slug: str
    name: str
    api_key: str


@dataclass(frozen=True)
class DemoResult:
    """What was made. ``is_new`` is False, and the rest empty, where the database had something in it already."""

    is_new: bool
    sign_in_token: str = ""
    tenants: tuple[DemoTenant, ...] = ()
    deployments: tuple[str, ...] = ()


def is_seeded() -> bool:
    """Whether the database holds anything that the demo would add to."""
    return User.objects.exists() or Tenant.objects.exists() or Pool.objects.exists()


@transaction.atomic
def seed_demo(*, engine: Engine, model: str = "") -> DemoResult:
    """On an empty database: an operator, two tenants with members and keys, two pools with a deployment each, and
    one tenant's wish for a reservation, which an operator can sell once there are replicas.

    ``engine`` ``vllm`` serves the built-in tiny model, or ``model`` (a folder or a hub id), on real vLLM beside the
    simulated deployment; ``simulated`` serves that second name on the simulated engine too. Only one of two seeds at
    once does anything: the operator's address is unique. Raises ValidationError for a model that cannot be named.
    """
    if is_seeded():
        return DemoResult(is_new=False)
    operator = user_create(email=OPERATOR, name="Demo operator", is_operator=True, actor=ACTOR)
    tenants = tuple(_seed_tenant(name, people) for name, people in _PEOPLE.items())
    hardware = this_hardware()
    names = (_seed_simulated(hardware), _seed_engine(hardware, engine=engine, model=model))
    _ask_for_a_reservation()
    token = sign_in_link_create(user=operator, actor=ACTOR, valid_for=LINK_VALID)
    return DemoResult(is_new=True, sign_in_token=token, tenants=tenants, deployments=names)


def operator_link() -> str:
    """A fresh one-time token for the demo's operator; empty where there is none, or they have set a password."""
    operator = User.objects.filter(email=OPERATOR, is_active=True).first()
    if operator is None or operator.has_usable_password():
        return ""
    return sign_in_link_create(user=operator, actor=ACTOR, valid_for=LINK_VALID)


def _seed_tenant(name: str, people: tuple[tuple[str, str], ...]) -> DemoTenant:
    tenant = tenant_create(name=name, slug=slugify(name), actor=ACTOR)
    roles = (Membership.Role.OWNER, Membership.Role.DEVELOPER)
    for (email, person), role in zip(people, roles, strict=True):
        user = user_create(email=email, name=person, actor=ACTOR)
        membership_add(tenant=tenant, user=user, role=role, actor=ACTOR)
    key, text = api_key_create(tenant=tenant, name="Demo key", scopes=("inference", "usage"), actor=ACTOR)
    if name == "Alder Health":
        for kind, value in _MODEST.items():
            limit_set(tenant=tenant, api_key=key, kind=kind, value=value, set_by="operator", actor=ACTOR)
    return DemoTenant(tenant.slug, name, text)


def _seed_simulated(hardware: HardwareType) -> str:
    """An engine that behaves like an 8B model on one large accelerator, at that model's default price."""
    profile = default_profile()
    model = model_create(name="Demo (simulated 8B)", slug=SIMULATED, artifact_kind="none", actor=ACTOR)
    pool = pool_create(
        name="Demo simulated", slug=SIMULATED, model=model, hardware_type=hardware, profile=profile, actor=ACTOR
    )
    deployment_create(
        pool=pool,
        name=SIMULATED,
        runtime="simulated",
        options={**simulated_options(profile), "max_model_len": 8192, "startup_s": 1.0},
        target_concurrency=32,
        min_replicas=1,
        max_replicas=4,
        cold_start_s=3.0,
        actor=ACTOR,
    )
    return SIMULATED


def _ask_for_a_reservation() -> None:
    """Something to sell: half of what one replica supplies. It is only asked for, since nothing is up yet to sell."""
    reservation_request(
        tenant=Tenant.objects.get(slug="alder-health"),
        pool=Pool.objects.get(slug=SIMULATED),
        mu_per_min=REFERENCE_MU_PER_MIN / 2,
        note="Answers to patients, who wait for them.",
        actor=User.objects.get(email=_PEOPLE["Alder Health"][0][0]),
    )


def _seed_engine(hardware: HardwareType, *, engine: Engine, model: str) -> str:
    artifact = artifact_of(model)
    served = model_create(
        name=artifact.name,
        slug=slugify(artifact.name)[:80],
        artifact_kind=artifact.kind,
        artifact_value=artifact.value,
        parameters=None if model else TINY_PARAMETERS,
        context_tokens=None if model else TINY_CONTEXT_TOKENS,
        actor=ACTOR,
    )
    pool = pool_create(name=f"Demo {artifact.name}", model=served, hardware_type=hardware, actor=ACTOR)
    # The tiny model writes tool calls as well as any: in whatever form the engine is told to hold it to.
    options: dict[str, Any] = {} if model else {"tool_call_parser": "hermes"}
    if engine == "simulated":
        options = simulated_options(default_profile(parameters=served.parameters, context_tokens=served.context_tokens))
    deployment_create(
        pool=pool,
        name=artifact.name,
        runtime=engine,
        options=options,
        target_concurrency=16,
        min_replicas=1,
        max_replicas=1,
        actor=ACTOR,
    )
    return artifact.name


@dataclass(frozen=True)
class Artifact:
    """What ``--model`` names: a kind of ``capacity.models.Model.Artifact``, its value, and the name it is served as."""

    kind: str
    value: str
    name: str


def artifact_of(model: str) -> Artifact:
    """``""`` is the built-in tiny model; a path or an existing folder is local weights, anything else a hub id."""
    if not model:
        return Artifact("tiny", "", TINY)
    folder = local_folder(model)
    value = str(folder or model)
    name = re.sub(r"[^a-z0-9._-]+", "-", value.rstrip("/").rpartition("/")[2].lower()).strip("-.") or "model"
    return Artifact("path" if folder else "hub", value, name)


def this_hardware() -> HardwareType:
    """The hardware type of this machine: its accelerators' if there are any, else its CPU."""
    accelerators, _ = accelerators_here()
    if accelerators:
        one = accelerators[0]
        return hardware_type_get_or_create(name=one.name, memory_bytes=one.memory_bytes, actor=ACTOR)
    return hardware_type_get_or_create(
        name=f"CPU ({_cpu_model()})"[:120],
        slug="cpu",
        is_cpu=True,
        memory_bytes=psutil.virtual_memory().total,
        actor=ACTOR,
    )


@transaction.atomic
def local_host_enrol(data: Path) -> Host:
    """Enrol this machine and write ``<data>/agent/agent.json`` (mode 0600) for its agent.

    A host that is enrolled keeps its secret, unless the file is gone or the secret cannot be opened any more.
    """
    host = _known_host(data)
    if host is None:
        labels = {"zone": "local", "machine": platform.machine()}
        host, secret = host_enrol(name=_host_name(), hardware_type=this_hardware(), labels=labels, actor=ACTOR)
    else:
        secret = _kept_secret(host) or host_secret_renew(host=host, actor=ACTOR)
    _write_agent_config(data, host, secret)
    return host


def _known_host(data: Path) -> Host | None:
    """This machine's row: the one its agent's file names, else the one of its name. A container's name may change."""
    try:
        host_id = json.loads((data / "agent" / "agent.json").read_text(encoding="utf-8"))["host_id"]
        known = Host.objects.filter(pk=uuid.UUID(str(host_id))).first()
    except (OSError, ValueError, LookupError, TypeError):
        known = None
    return known or Host.objects.filter(name=_host_name()).first()


def _kept_secret(host: Host) -> bytes:
    try:
        return decrypt(host.secret)
    except DecryptionError:
        return b""


def _agent_addresses(data: Path) -> dict[str, str]:
    """The bundled state has a user of its own for agents; a server of somebody else's is used as it is given."""
    if f"unix://{socket_path(data.resolve())}" != settings.REDIS_URL:
        return {"broker_url": broker_url(settings.REDIS_URL), "state_url": settings.REDIS_URL}
    broker = agent_url(data)
    return {"broker_url": broker, "state_url": broker.replace("redis+socket://", "unix://", 1)}


def _write_agent_config(data: Path, host: Host, secret: bytes) -> None:
    folder = data / "agent"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = {"host_id": str(host.pk), "name": host.name, "secret": secret.hex(), **_agent_addresses(data)}
    temporary = folder / "agent.json.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(content, file, indent=2)
        file.write("\n")
    os.replace(temporary, folder / "agent.json")


def _host_name() -> str:
    return slugify(socket.gethostname())[:60] or "local"


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return found[1].strip() if found else platform.processor() or platform.machine()
