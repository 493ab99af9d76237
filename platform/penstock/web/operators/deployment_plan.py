"""What a new deployment of a model would be: everything that nobody has to say, chosen with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from django.core.exceptions import ValidationError
from django.db.models import Q
from django.utils.text import slugify

from capacity.models import Accelerator, HardwareType, Host, Model, Pool
from capacity.policy import cost
from capacity.policy.profiles import default_profile, scoring_profile
from capacity.selectors import profile_in_force, reference_mu_per_min
from capacity.services.pools import hardware_of
from capacity.usage.reads import terms_of
from penstock.demo import TINY_CONTEXT_TOKENS, TINY_PARAMETERS
from penstock.loops.placing import weights_bytes
from penstock.web.console_data import HOST_SILENT_S
from penstock.web.figures import seconds_between
from penstock.web.operators.hosts import HOLDING
from serving.artifacts import look_at
from serving.models import Deployment, Replica, Revision
from serving.policy.model_size import parameters_from_name
from serving.policy.proposal import HardwareView, Proposal, accelerators_needed, propose_hardware
from serving.policy.runtime import Choice, choose

BUILT_IN = {
    "tiny": "Built-in tiny model, to try things out on a CPU",
    "simulated": "No model: a simulated engine, labelled so wherever it appears",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
EXAMPLE_INPUT, EXAMPLE_OUTPUT = 1000, 300
"""Tokens of the request whose price is shown."""
EXAMPLE_ROWS, EXAMPLE_KIB = 100, 4
"""Of the request to a classic model."""


@dataclass(frozen=True)
class Source:
    """What the one required field names. ``model`` is set where it is known here already."""

    kind: str
    value: str
    name: str
    model: Model | None = None
    parameters: int | None = None
    context_tokens: int | None = None
    size_reason: str = ""

    @cached_property
    def choice(self) -> Choice:
        """The runtime that fits its files, as far as they are seen from here."""
        return choose(look_at(self.kind, self.value))

    @property
    def needs_accelerator(self) -> bool:
        """Whether a CPU would be too slow for anything but a trial."""
        is_small = self.kind in (Model.Artifact.NONE, Model.Artifact.TINY)
        return not is_small and self.choice.runtime != Revision.Runtime.MLFLOW


@dataclass(frozen=True)
class Plan:
    """What would be made. ``accelerators`` of one replica; prices in MU; ``requests_per_min`` of one replica."""

    source: Source
    source_reason: str
    name: str
    name_reason: str
    pool: Pool | None
    pool_reason: str
    hardware: HardwareType | None
    hardware_reason: str
    accelerators: int
    example_mu: float
    example_words: str
    replica_mu_per_min: float
    price_reason: str

    @property
    def runtime(self) -> str:
        return str(Revision.Runtime(self.source.choice.runtime).label)

    @property
    def requests_per_min(self) -> float:
        return self.replica_mu_per_min / self.example_mu if self.example_mu else 0.0


def source_of(text: str) -> Source:
    """What ``text`` names: a model that is known, a built-in, a folder, or a hub id. Raises ValidationError."""
    known = Model.objects.filter(Q(slug=text) | Q(name__iexact=text)).first()
    if known is not None:
        return _known(known)
    if text == "tiny":
        made = Source("tiny", "", "Tiny model", None, TINY_PARAMETERS, TINY_CONTEXT_TOKENS, "as it is built")
    elif text == "simulated":
        made = Source("none", "", "Simulated")
    elif text.startswith("/"):
        value = text.rstrip("/")
        made = _sized("path", value, value.rpartition("/")[2])
    elif _HUB_ID.fullmatch(text):
        made = _sized("hub", text, text.rpartition("/")[2])
    else:
        raise ValidationError(
            f"“{text[:80]}” is no model that is known here. Write a hub id such as Qwen/Qwen3-8B, the folder of a "
            "model's weights on the hosts (it begins with /), or one that the field offers."
        )
    same = Model.objects.filter(artifact_kind=made.kind, artifact_value=made.value).first()
    return _known(same) if same is not None else made


def _known(model: Model) -> Source:
    size = model.parameters or parameters_from_name(model.artifact_value or model.name)
    reason = "as it was entered" if model.parameters else "read from its name" if size else ""
    return Source(
        model.artifact_kind, model.artifact_value, model.name, model, size, model.context_tokens, size_reason=reason
    )


def _sized(kind: str, value: str, name: str) -> Source:
    size = parameters_from_name(value)
    return Source(kind, value, name or value, None, size, None, size_reason="read from its name" if size else "")


def plan_for(text: str, now: datetime) -> Plan:
    """The plan for the model that ``text`` names. Raises ValidationError where it names none."""
    source = source_of(text)
    pool = Pool.objects.filter(model=source.model).order_by("created_at").first() if source.model else None
    kinds = hardware_views(now)
    proposal = propose_hardware(
        kinds, weights_bytes=weights_bytes(source.parameters), needs_accelerator=source.needs_accelerator
    )
    name, name_reason = _free_name(source)
    profile = profile_in_force(pool_id=pool.pk, at=now) if pool else None
    if pool is not None and profile is not None:
        hardware: HardwareType | None = profile.hardware_type
        hardware_reason = f"the pool is priced on it, version {profile.version}"
        terms = terms_of(profile)
        price_reason = "measured" if profile.calibrated else "uncalibrated: a default from model size and hardware"
    else:
        hardware = HardwareType.objects.filter(slug=proposal.slug).first() if proposal.slug else _any_hardware()
        hardware_reason = proposal.reason
        is_classic = source.choice.runtime == Revision.Runtime.MLFLOW
        on = hardware_of(hardware) if hardware else None
        terms = (
            scoring_profile()
            if is_classic
            else default_profile(parameters=source.parameters, context_tokens=source.context_tokens, hardware=on)
        )
        what = "its server alone" if is_classic else "model size and hardware"
        price_reason = f"uncalibrated: a default from {what}, until it is measured"
    accelerators = _accelerators(source, proposal, kinds, hardware)
    example, example_words = _example(terms)
    return Plan(
        source=source,
        source_reason=_source_reason(source),
        name=name,
        name_reason=name_reason,
        pool=pool,
        pool_reason="it sells this model already" if pool else "a new one, open to every tenant",
        hardware=hardware,
        hardware_reason=hardware_reason,
        accelerators=accelerators,
        example_mu=example,
        example_words=example_words,
        replica_mu_per_min=reference_mu_per_min(profile),
        price_reason=price_reason,
    )


def hardware_views(now: datetime) -> list[HardwareView]:
    """Each kind of hardware with what takes replicas now: active hosts that report."""
    kinds = list(HardwareType.objects.all())
    hosts = {
        host.pk: host.hardware_type_id
        for host in Host.objects.filter(state=Host.State.ACTIVE)
        if (age_s := seconds_between(host.last_report_at, now)) is not None and age_s <= HOST_SILENT_S
    }
    held = {
        (host_id, index)
        for host_id, indices in Replica.objects.filter(host__in=hosts, state__in=HOLDING).values_list(
            "host_id", "accelerators"
        )
        for index in indices
    }
    there: dict[object, list[bool]] = {}
    memory: dict[object, int] = {}
    for one in Accelerator.objects.filter(host__in=hosts, is_healthy=True):
        kind_id = hosts[one.host_id]
        there.setdefault(kind_id, []).append((one.host_id, one.index) not in held)
        memory[kind_id] = min(memory.get(kind_id, one.memory_bytes), one.memory_bytes)
    return [
        HardwareView(
            slug=kind.slug,
            name=kind.name,
            is_cpu=kind.is_cpu,
            memory_bytes=memory.get(kind.pk, kind.memory_bytes),
            hosts=sum(kind_id == kind.pk for kind_id in hosts.values()),
            accelerators=len(there.get(kind.pk, ())),
            free=sum(there.get(kind.pk, ())),
        )
        for kind in kinds
    ]


def _example(terms: cost.CostProfile) -> tuple[float, str]:
    """The price of a typical request, and what it is: one that has no price for tokens is priced by rows."""
    if not terms.alpha and not terms.beta:
        units = cost.invocation_units(rows=EXAMPLE_ROWS, body_bytes=EXAMPLE_KIB * 1024)
        return cost.request_cost(terms, input_tokens=0, units=units), f"{EXAMPLE_ROWS} rows in {EXAMPLE_KIB} KiB"
    words = f"{EXAMPLE_INPUT:,} input and {EXAMPLE_OUTPUT:,} output tokens"
    return cost.request_cost(terms, input_tokens=EXAMPLE_INPUT, output_tokens=EXAMPLE_OUTPUT), words


def _accelerators(source: Source, proposal: Proposal, kinds: list[HardwareView], hardware: HardwareType | None) -> int:
    """Of one replica, on the hardware that was chosen, which need not be the one that was proposed."""
    if hardware is None or hardware.slug == proposal.slug:
        return proposal.accelerators
    own = next(kind for kind in kinds if kind.slug == hardware.slug)
    size = weights_bytes(source.parameters)
    return accelerators_needed(own, weights_bytes=size, needs_accelerator=source.needs_accelerator)


def _any_hardware() -> HardwareType | None:
    return HardwareType.objects.order_by("is_cpu", "created_at").first()


def _source_reason(source: Source) -> str:
    known = "known here" if source.model else "new here"
    where = {
        "tiny": "built on each host from nothing",
        "none": "no weights: its answers are made up",
        "path": f"weights in {source.value} on each host that runs it",
        "hub": f"weights of {source.value}, downloaded by the hosts that run it",
    }[source.kind]
    size = f"; {_parameters(source.parameters)} parameters, {source.size_reason}" if source.parameters else ""
    return f"{known}; {where}{size}"


def _parameters(count: int) -> str:
    """As people write it: ``8 B``, ``135 M``."""
    size, unit = next((size, unit) for size, unit in ((1e9, " B"), (1e6, " M"), (1, "")) if count >= size)
    return f"{count / size:,.0f}{unit}" if unit == "" else f"{count / size:.3g}{unit}"


def _free_name(source: Source) -> tuple[str, str]:
    """The name that clients send: the model's, with a number where it is taken."""
    base = re.sub(r"[^a-z0-9._-]+", "-", source.name.lower()).strip("-.") or "model"
    taken = set(Deployment.objects.filter(name__startswith=base).values_list("name", flat=True))
    if base not in taken:
        return base, "the model's name; clients send it as model"
    number = next(count for count in range(2, len(taken) + 3) if f"{base}-{count}" not in taken)
    return f"{base}-{number}", f"{base} is taken; clients send this as model"


def free_slug(rows: type[Model] | type[Pool], name: str) -> str:
    """A slug for ``name`` that no row has."""
    base = slugify(name)[:70] or "model"
    taken = set(rows.objects.filter(slug__startswith=base).values_list("slug", flat=True))
    return next(
        slug for slug in (base, *(f"{base}-{count}" for count in range(2, len(taken) + 3))) if slug not in taken
    )
