"""Hardware types and hosts."""

import secrets
from collections.abc import Mapping

from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify

from capacity.models import HardwareType, Host
from capacity.policy.removal import Verdict, may_remove_host
from capacity.selectors import replicas_holding
from tenants.audit import Actor, audit, state_of
from tenants.crypto import encrypt
from tenants.needed import Reference, StillNeeded

SECRET_BYTES = 32


@transaction.atomic
def hardware_type_get_or_create(
    *, name: str, actor: Actor, is_cpu: bool = False, memory_bytes: int = 0, slug: str = ""
) -> HardwareType:
    """The hardware type of this name, made if there is none. ``memory_bytes`` of one accelerator.

    Raises ValidationError by field.
    """
    slug = slug or slugify(name)[:60]
    known = HardwareType.objects.filter(slug=slug).first()
    if known is not None:
        return known
    hardware = HardwareType(slug=slug, name=name, is_cpu=is_cpu, memory_bytes=memory_bytes)
    hardware.full_clean()
    hardware.save(force_insert=True)
    audit(actor=actor, action="hardware_type.create", target=hardware, after=state_of(hardware))
    return hardware


@transaction.atomic
def host_enrol(
    *, name: str, hardware_type: HardwareType, actor: Actor, labels: Mapping[str, str] | None = None
) -> tuple[Host, bytes]:
    """A new host and the secret its agent signs with, which is kept encrypted. Raises ValidationError by field."""
    secret = secrets.token_bytes(SECRET_BYTES)
    host = Host(name=name, hardware_type=hardware_type, labels=dict(labels or {}), secret=encrypt(secret))
    host.full_clean()
    host.save(force_insert=True)
    audit(actor=actor, action="host.enrol", target=host, after=state_of(host))
    return host, secret


@transaction.atomic
def host_secret_renew(*, host: Host, actor: Actor) -> bytes:
    """A new secret for a host whose old one may be known: within 2 s its agent is refused until it has the new one."""
    secret = secrets.token_bytes(SECRET_BYTES)
    host.secret = encrypt(secret)
    Host.objects.filter(pk=host.pk).update(secret=host.secret, updated_at=timezone.now())
    audit(actor=actor, action="host.renew_secret", target=host)
    return secret


@transaction.atomic
def host_labels_set(*, host: Host, labels: Mapping[str, str], actor: Actor) -> Host:
    """Replace the labels that placement asks for; what runs goes on. Raises ValidationError by field."""
    stored = host.take_turn()
    before = state_of(stored)
    stored.labels = dict(labels)
    stored.full_clean()
    stored.save(update_fields=("labels", "updated_at"))
    after = state_of(stored)
    if before != after:
        audit(actor=actor, action="host.set_labels", target=stored, before=before, after=after)
    host.refresh_from_db()
    return host


def host_cordon(*, host: Host, actor: Actor, reason: str = "") -> bool:
    """Place nothing new on the host; what runs goes on, also what a drain had not stopped yet.

    Returns False unless it was active or draining. ``reason`` is for people.
    """
    return _swap(host, (Host.State.ACTIVE, Host.State.DRAINING), Host.State.CORDONED, "host.cordon", actor, reason)


def host_drain(*, host: Host, actor: Actor, reason: str = "") -> bool:
    """Empty the host: nothing new is placed on it, and the loops replace its replicas elsewhere, then stop them.

    Returns False unless it was active or cordoned. ``reason`` is for people. ``host_uncordon`` takes it back.
    """
    return _swap(host, (Host.State.ACTIVE, Host.State.CORDONED), Host.State.DRAINING, "host.drain", actor, reason)


def host_uncordon(*, host: Host, actor: Actor) -> bool:
    """Place replicas on the host again. Returns False unless it was cordoned or draining."""
    return _swap(host, (Host.State.CORDONED, Host.State.DRAINING), Host.State.ACTIVE, "host.uncordon", actor, "")


def host_removal(*, host: Host, force: bool = False) -> tuple[Verdict, StillNeeded | None]:
    """Whether the host may be removed as things are, and what ``host_remove`` raises where it may not."""
    holding = replicas_holding(host)
    verdict = may_remove_host(
        state=host.state, has_reported=host.last_report_at is not None, holding=len(holding), force=force
    )
    if verdict.is_allowed:
        return verdict, None
    named = [Reference("replica", str(pk), deployment) for pk, deployment in holding]
    reason = f"{host.name} cannot be removed: {verdict.reason}"
    return verdict, StillNeeded(reason, hint=verdict.hint, references=named)


@transaction.atomic
def host_remove(*, host: Host, actor: Actor, force: bool = False) -> bool:
    """Take the host out for good: its agent is refused from now on, its name is free, its history stays.

    The loops fail over what it still held and tell its agent to stop everything. Returns False if somebody removed it
    before. Raises StillNeeded while replicas hold a part of it, unless its agent is gone and ``force`` is given.
    """
    try:
        # Placement takes the same turn: nothing sits down on the host in between.
        stored = host.take_turn()
    except Host.DoesNotExist:
        return False
    verdict, refusal = host_removal(host=stored, force=force)
    if refusal is not None:
        raise refusal
    before = state_of(stored)
    stored.accelerators.all().delete()
    stored.removed_at = timezone.now()
    stored.save(update_fields=("removed_at", "updated_at"))
    after = {"removed_at": stored.removed_at, "reason": verdict.reason}
    audit(actor=actor, action="host.remove", target=stored, before=before, after=after)
    host.removed_at = stored.removed_at
    return True


@transaction.atomic
def _swap(host: Host, before: tuple[Host.State, ...], new: Host.State, action: str, actor: Actor, reason: str) -> bool:
    now = timezone.now()
    changes = {"state": new, "state_since": now, "state_reason": reason.strip()[:200]}
    for old in before:
        if Host.objects.filter(pk=host.pk, state=old).update(**changes, updated_at=now):
            break
    else:
        return False
    for name, value in changes.items():
        setattr(host, name, value)
    told = {"state": new, "reason": changes["state_reason"]} if reason else {"state": new}
    audit(actor=actor, action=action, target=host, before={"state": old}, after=told)
    return True
