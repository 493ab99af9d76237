"""Credentials of external providers: written, never shown."""

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from unfold.widgets import UnfoldAdminPasswordWidget

from serving.models import ProviderCredential
from serving.services import provider_credential_remove, provider_credential_set
from tenants.admin.base import ServiceAdmin, confirmed, operator_of


class ProviderCredentialForm(forms.ModelForm):  # type: ignore[type-arg]
    new_secret = forms.CharField(
        required=False,
        strip=True,
        widget=UnfoldAdminPasswordWidget(render_value=False, attrs={"autocomplete": "new-password"}),
        help_text="Never shown again. Empty: the stored one stays.",
    )

    class Meta:
        model = ProviderCredential
        fields = ("name", "provider", "base_url")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if self.instance._state.adding and not cleaned.get("new_secret"):
            self.add_error("new_secret", "A new credential needs its secret.")
        return cleaned


@admin.register(ProviderCredential)
class ProviderCredentialAdmin(ServiceAdmin):
    form = ProviderCredentialForm
    list_display = ("name", "provider", "base_url", "updated_at")
    list_filter = ("provider",)
    search_fields = ("name", "provider")
    fields = ("name", "provider", "base_url", "new_secret", "updated_at")
    fields_on_add = ("name", "provider", "base_url", "new_secret")
    readonly_fields = ("name", "updated_at")
    actions = ("remove",)

    def create(self, request: HttpRequest, data: dict[str, Any]) -> ProviderCredential:
        return provider_credential_set(actor=operator_of(request), secret=data.pop("new_secret"), **data)

    def change(self, request: HttpRequest, obj: ProviderCredential, data: dict[str, Any]) -> None:
        secret = data.pop("new_secret", "")
        provider_credential_set(name=obj.name, actor=operator_of(request), secret=secret, **data)

    @confirmed(question="Forget these credentials? What uses them stops working.", verb="Remove")
    def remove(self, request: HttpRequest, rows: list[ProviderCredential]) -> int:
        for row in rows:
            provider_credential_remove(credential=row, actor=operator_of(request))
        return len(rows)
