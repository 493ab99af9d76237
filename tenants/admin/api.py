"""Access tokens of people, and what the REST API remembers of creations."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from tenants.admin.base import HistoryAdmin, ServiceAdmin, column, confirmed, operator_of, remember_secret
from tenants.models import AccessToken, IdempotentAnswer
from tenants.services import access_token_create, access_token_revoke


@admin.register(AccessToken)
class AccessTokenAdmin(ServiceAdmin):
    list_display = ("name", "public_part", "user", "state", "expires_at", "last_used_at")
    list_select_related = ("user",)
    search_fields = ("name", "public_id", "user__email")
    autocomplete_fields = ("user",)
    fields = ("user", "name", "public_part", "expires_at", "revoked_at", "last_used_at", "created_at")
    readonly_fields = fields
    fields_on_add = ("user", "name", "expires_at")
    actions = ("revoke",)

    @column("Token")
    def public_part(self, token: AccessToken) -> str:
        return f"pst_{token.public_id}_…"

    @column("State", label={"Usable": "success", "Expired": "warning", "Revoked": "danger"})
    def state(self, token: AccessToken) -> str:
        if token.revoked_at is not None:
            return "Revoked"
        return "Usable" if token.is_usable else "Expired"

    def create(self, request: HttpRequest, data: dict[str, Any]) -> AccessToken:
        token, text = access_token_create(actor=operator_of(request), **data)
        remember_secret(request, f"Access token {token.name} of {token.user}", text)
        return token

    @confirmed(question="Revoke these tokens? They are refused at once; it cannot be undone.", verb="Revoke")
    def revoke(self, request: HttpRequest, rows: list[AccessToken]) -> int:
        return sum(access_token_revoke(token=token, actor=operator_of(request)) for token in rows)


@admin.register(IdempotentAnswer)
class IdempotentAnswerAdmin(HistoryAdmin):
    list_display = ("created_at", "caller", "key", "status")
    search_fields = ("caller", "key")
    fields = ("created_at", "caller", "key", "fingerprint", "status")
