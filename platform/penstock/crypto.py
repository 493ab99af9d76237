"""Renewal of the field keys: every secret at rest under the newest of ``PENSTOCK_FIELD_KEYS``.

Put a new key first and keep the old ones, restart, run ``manage.py rotate_field_keys``, then drop the old ones.
"""

from django.db import models, transaction
from django.utils import timezone

from capacity.models import Host
from serving.models import ProviderCredential
from tenants.audit import Actor, audit
from tenants.crypto import DecryptionError, reencrypt

_ENCRYPTED: tuple[tuple[type[models.Model], str], ...] = ((Host, "secret"), (ProviderCredential, "secret"))


def rotate_field_keys(*, actor: Actor) -> dict[str, int]:
    """Encrypt every stored secret anew; how many, by model. Safe to repeat.

    Raises DecryptionError with the names of those that no key opens, once all others are done.

    The secret of a removed host counts as long as it is kept: the host's last orders are sealed with it. One that is
    replaced meanwhile is left alone: it is under the newest key already.
    """
    counts: dict[str, int] = {}
    shut: list[str] = []
    for model, column in _ENCRYPTED:
        # The base manager sees removed rows as well; what is empty has been forgotten.
        rows = model._base_manager.exclude(**{column: b""}).order_by("pk")
        name = model._meta.label_lower
        counts[name] = 0
        for row in rows:
            try:
                counts[name] += _rotate(row, column, actor)
            except DecryptionError:
                shut.append(f"{model._meta.verbose_name} {row}")
    if shut:
        raise DecryptionError(
            f"no key in PENSTOCK_FIELD_KEYS opens the secrets of {', '.join(shut)}: add the key that they were made "
            "with, or renew them. All others are under the newest key"
        )
    return counts


@transaction.atomic
def _rotate(row: models.Model, column: str, actor: Actor) -> bool:
    stored = bytes(getattr(row, column))
    swapped = (
        type(row)
        ._base_manager.filter(pk=row.pk, **{column: stored})
        .update(**{column: reencrypt(stored), "updated_at": timezone.now()})
    )
    if swapped:
        audit(actor=actor, action=f"{row._meta.model_name}.rotate_field_key", target=row)
    return bool(swapped)
