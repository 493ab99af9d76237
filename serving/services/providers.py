"""Credentials of external providers: written, never read back to a person."""

from django.core.exceptions import ValidationError
from django.db import transaction

from serving.models import ProviderCredential
from tenants.audit import Actor, audit, state_of
from tenants.crypto import encrypt


@transaction.atomic
def provider_credential_set(
    *, name: str, provider: str, actor: Actor, secret: str = "", base_url: str = ""
) -> ProviderCredential:
    """Set the credential of this name; an empty ``secret`` keeps the stored one. Raises ValidationError by field."""
    credential = ProviderCredential.objects.filter(name=name).first()
    before = state_of(credential) if credential else None
    if credential is None:
        if not secret:
            raise ValidationError({"secret": "A new credential needs its secret."})
        credential = ProviderCredential(name=name)
    credential.provider = provider
    credential.base_url = base_url
    if secret:
        credential.secret = encrypt(secret.encode())
    credential.full_clean()
    credential.save()
    after = {**state_of(credential), "new_value_given": bool(secret)}
    audit(actor=actor, action="provider_credential.set", target=credential, before=before, after=after)
    return credential


@transaction.atomic
def provider_credential_remove(*, credential: ProviderCredential, actor: Actor) -> None:
    """Forget the credential."""
    audit(actor=actor, action="provider_credential.remove", target=credential, before=state_of(credential))
    credential.delete()
