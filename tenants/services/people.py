"""Users, tenants and memberships."""

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify

from tenants.audit import Actor, audit, state_of
from tenants.changes import record_change
from tenants.models import Membership, SignInLink, Tenant, User
from tenants.services.limits import record_keys_of
from tenants.services.revocation import invitations_revoke_beyond, invitations_revoke_sent
from tenants.services.tokens import access_tokens_revoke


@transaction.atomic
def user_create(
    *, email: str, actor: Actor, name: str = "", password: str | None = None, is_operator: bool = False
) -> User:
    """A new user; without ``password`` they sign in by one-time link only. Raises ValidationError by field."""
    user = User(email=email.strip().lower(), name=name.strip(), is_operator=is_operator)
    if password is None:
        user.set_unusable_password()
    else:
        _check_password(password, user)
        user.set_password(password)
    user.full_clean()
    user.save(force_insert=True)
    audit(actor=actor, action="user.create", target=user, after=state_of(user))
    return user


@transaction.atomic
def user_set_password(*, user: User, password: str, actor: Actor) -> None:
    """Set a new password; every session, access token and open sign-in link of the user ends.

    Whoever got in by the old one may have left themselves another way in. Raises ValidationError if weak.
    """
    _check_password(password, user)
    user.set_password(password)
    user.save(update_fields=("password", "updated_at"))
    _void_links(user)
    access_tokens_revoke(user=user, actor=actor)
    audit(actor=actor, action="user.set_password", target=user)


@transaction.atomic
def user_set_active(*, user: User, is_active: bool, actor: Actor) -> bool:
    """Let a user in or keep them out, with an end to their access tokens, open sign-in links and open invitations.

    The invitations are those that they sent: whoever they let in by one of them would still come.

    Returns False if it was so already. The last active operator stays: raises ValidationError.
    """
    # Touching the operators' rows makes two who deactivate each other take turns.
    User.objects.filter(is_operator=True).update(updated_at=timezone.now())
    if not is_active and user.is_operator and not _other_operators(user):
        raise ValidationError("This is the last active operator: make another one first.")
    changed = User.objects.filter(pk=user.pk, is_active=not is_active).update(
        is_active=is_active, updated_at=timezone.now()
    )
    user.is_active = is_active
    if not is_active:
        _void_links(user)
        access_tokens_revoke(user=user, actor=actor)
    if changed or not is_active:
        invitations_revoke_sent(user=user, actor=actor)
    if changed:
        audit(actor=actor, action="user.activate" if is_active else "user.deactivate", target=user)
    return bool(changed)


@transaction.atomic
def tenant_create(*, name: str, actor: Actor, slug: str = "", owner: User | None = None) -> Tenant:
    """A new tenant, with ``owner`` as its first member. Raises ValidationError by field."""
    tenant = Tenant(name=name.strip(), slug=slug or slugify(name)[:60])
    tenant.full_clean()
    tenant.save(force_insert=True)
    audit(actor=actor, action="tenant.create", target=tenant, tenant_id=tenant.pk, after=state_of(tenant))
    record_change(kind="tenant", object_id=tenant.pk)
    if owner is not None:
        membership_add(tenant=tenant, user=owner, role=Membership.Role.OWNER, actor=actor)
    return tenant


@transaction.atomic
def tenant_update(
    *,
    tenant: Tenant,
    actor: Actor,
    name: str | None = None,
    slug: str | None = None,
    is_active: bool | None = None,
    best_effort: bool | None = None,
) -> Tenant:
    """Change what is given. An inactive tenant's keys are refused; one without ``best_effort`` stays inside what it
    has reserved. Raises ValidationError by field."""
    wanted = {"name": name, "slug": slug, "is_active": is_active, "best_effort": best_effort}
    given = {field: value for field, value in wanted.items() if value is not None}
    stored = tenant.take_turn()
    before = state_of(stored)
    for field, value in given.items():
        setattr(stored, field, value)
    stored.full_clean()
    stored.save(update_fields=(*given, "updated_at"))
    after = state_of(stored)
    if before != after:
        audit(actor=actor, action="tenant.update", target=stored, tenant_id=stored.pk, before=before, after=after)
        record_change(kind="tenant", object_id=stored.pk)
    tenant.refresh_from_db()
    return tenant


@transaction.atomic
def membership_add(*, tenant: Tenant, user: User, actor: Actor, role: str = Membership.Role.DEVELOPER) -> Membership:
    """Make ``user`` a member of ``tenant``. Raises ValidationError by field."""
    membership = Membership(tenant=tenant, user=user, role=role)
    membership.full_clean()
    membership.save(force_insert=True)
    audit(actor=actor, action="membership.add", target=membership, tenant_id=tenant.pk, after=state_of(membership))
    return membership


@transaction.atomic
def membership_change(*, membership: Membership, role: str, actor: Actor) -> Membership:
    """Give a member another role, and revoke the open invitations that they could not send in it.

    The last owner stays an owner. Raises ValidationError by field.
    """
    membership.tenant.take_turn()
    before = state_of(Membership.objects.get(pk=membership.pk))
    membership.role = role
    membership.full_clean()
    membership.save(update_fields=("role", "updated_at"))
    _require_owner(membership, before["role"])
    after = state_of(membership)
    if before != after:
        audit(
            actor=actor,
            action="membership.change",
            target=membership,
            tenant_id=membership.tenant_id,
            before=before,
            after=after,
        )
        invitations_revoke_beyond(membership=membership, role=role, actor=actor)
    return membership


@transaction.atomic
def membership_remove(*, membership: Membership, actor: Actor) -> bool:
    """End a membership, its limits, and the open invitations that the member sent. False if it had ended before.

    The last owner cannot leave: raises ValidationError.
    """
    membership.tenant.take_turn()
    stored = Membership.objects.select_related("tenant", "user").filter(pk=membership.pk).first()
    if stored is None:
        return False
    before = state_of(stored)
    audit(actor=actor, action="membership.remove", target=stored, tenant_id=stored.tenant_id, before=before)
    if stored.limits.exists():
        # They go with it: what the member's keys were held to holds no longer.
        record_change(kind="tenant", object_id=stored.tenant_id)
        record_keys_of(stored)
    Membership.objects.filter(pk=stored.pk).delete()
    _require_owner(stored, stored.role)
    invitations_revoke_beyond(membership=stored, role=None, actor=actor)
    return True


def _require_owner(membership: Membership, role_before: str) -> None:
    if role_before != Membership.Role.OWNER:
        return
    if not Membership.objects.filter(tenant_id=membership.tenant_id, role=Membership.Role.OWNER).exists():
        raise ValidationError({"role": "A tenant keeps at least one owner: make another member owner first."})


def _void_links(user: User) -> None:
    """Use up the links that nobody has used: what let the user in before must not let them in now."""
    now = timezone.now()
    SignInLink.objects.filter(user=user, used_at=None).update(used_at=now, updated_at=now)


def _other_operators(user: User) -> bool:
    return User.objects.filter(is_operator=True, is_active=True).exclude(pk=user.pk).exists()


def _check_password(password: str, user: User) -> None:
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise ValidationError({"password": error.messages}) from error
