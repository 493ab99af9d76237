"""Tokens with which hosts enrol themselves."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from capacity.models import EnrolmentToken
from capacity.services import enrolment_token_create, enrolment_token_revoke
from tenants.admin.base import ServiceAdmin, column, confirmed, operator_of, remember_secret


@admin.register(EnrolmentToken)
class EnrolmentTokenAdmin(ServiceAdmin):
    can_change = False
    list_display = ("name", "public_id", "hardware_type", "uses_left", "usable", "expires_at", "created_by")
    list_filter = ("hardware_type",)
    list_select_related = ("hardware_type", "created_by")
    search_fields = ("name", "public_id")
    fields = ("name", "public_id", "hardware_type", "labels", "uses_left", "expires_at", "revoked_at", "created_by")
    fields_on_add = ("name", "hardware_type", "labels", "uses_left", "expires_at")
    readonly_fields = fields
    actions = ("revoke",)

    @column("State", label={"Usable": "success", "Not usable": "danger"})
    def usable(self, token: EnrolmentToken) -> str:
        return "Usable" if token.is_usable else "Not usable"

    def create(self, request: HttpRequest, data: dict[str, Any]) -> EnrolmentToken:
        uses = data.pop("uses_left")
        token, text = enrolment_token_create(actor=operator_of(request), uses=uses, **data)
        remember_secret(request, f"Enrolment token {token.name}", text)
        return token

    @confirmed(
        question="Let no other host in with these tokens? It cannot be undone; hosts that are in stay.", verb="Revoke"
    )
    def revoke(self, request: HttpRequest, rows: list[EnrolmentToken]) -> int:
        return sum(enrolment_token_revoke(token=token, actor=operator_of(request)) for token in rows)
