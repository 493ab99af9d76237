"""Credentials of external providers. Write-only: the secret is encrypted at rest and never shown again."""

from django.core.validators import URLValidator
from django.db import models

from tenants.models import Identified


class ProviderCredential(Identified):
    """A secret for an external provider, encrypted with the platform's own keys (MultiFernet)."""

    name = models.CharField(max_length=120, unique=True)
    provider = models.CharField(max_length=40)
    base_url = models.CharField(max_length=200, blank=True, validators=[URLValidator(("https", "http"))])
    secret = models.BinaryField(editable=False)

    class Meta:
        ordering = ("name",)
        constraints = (
            models.CheckConstraint(
                condition=~models.Q(name="") & ~models.Q(provider=""),
                name="serving_providercredential_has_names",
                violation_error_code="name",
                violation_error_message="A credential needs a name and a provider.",
            ),
        )

    def __str__(self) -> str:
        return self.name
