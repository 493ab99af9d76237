"""Credentials of external providers: written, never read back to a person."""

from django.core.exceptions import ValidationError
from django.db import transaction

from serving.models import ProviderCredential
from tenants.audit import Actor, audit, state_of
from tenants.crypto import encrypt


@transaction.atomic
def provider_credential_set(
    *, name: str, actor: Actor, provider: str | None = None, secret: str = "", base_url: str | None = None
) -> ProviderCredential:
    """Set what is given of the credential of this name, new or stored; an empty ``secret`` is none.

    A new one needs provider and secret. Raises ValidationError by field.
    """
    known = ProviderCredential.objects.filter(name=name).only("pk").first()
    if known is None and not secret:
        raise ValidationError({"secret": "A new credential needs its secret."})
    credential = known.take_turn() if known else ProviderCredential(name=name)
    before = state_of(credential) if known else None
    given: dict[str, object] = {"provider": provider, "base_url": base_url}
    given = {column: value for column, value in given.items() if value is not None}
    if secret:
        given["secret"] = encrypt(secret.encode())
    for column, value in given.items():
        setattr(credential, column, value)
    credential.full_clean()
    # Only what is given: a secret that is encrypted anew meanwhile must not fall back to an older key.
    credential.save(update_fields=(*given, "updated_at") if known else None)
    after = {**state_of(credential), "new_value_given": bool(secret)}
    audit(actor=actor, action="provider_credential.set", target=credential, before=before, after=after)
    return credential


@transaction.atomic
def provider_credential_remove(*, credential: ProviderCredential, actor: Actor) -> None:
    """Forget the credential."""
    audit(actor=actor, action="provider_credential.remove", target=credential, before=state_of(credential))
    credential.delete()
