"""Keys, limits, sign-in links and tries."""

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from tenants.admin.base import HistoryAdmin, ServiceAdmin, column, confirmed, operator_of, remember_secret, shown_once
from tenants.models import ApiKey, Limit, SignInAttempt, SignInLink
from tenants.selectors import limits_held
from tenants.services import api_key_create, api_key_revoke, api_key_rotate, api_key_update, limit_remove, limit_set


class UsableFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("usable", "Usable"), ("expired", "Expired"), ("revoked", "Revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        now = timezone.now()
        conditions = {
            "usable": Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=now)),
            "expired": Q(revoked_at=None, expires_at__lte=now),
            "revoked": Q(revoked_at__isnull=False),
        }
        chosen = conditions.get(self.value() or "")
        return queryset.filter(chosen) if chosen else queryset


@admin.register(ApiKey)
class ApiKeyAdmin(ServiceAdmin):
    list_display = ("name", "public_part", "tenant", "scope_list", "state", "expires_at", "last_used_at", "created_by")
    list_filter = (UsableFilter, "tenant")
    list_select_related = ("tenant", "created_by")
    search_fields = ("name", "public_id", "tenant__name")
    autocomplete_fields = ("tenant",)
    fields = (
        "tenant",
        "name",
        "public_part",
        "scopes",
        "models_allowed",
        "allowed_ips",
        "expires_at",
        "rotated_at",
        "revoked_at",
        "last_used_at",
        "created_by",
        "created_at",
    )
    readonly_fields = (
        "tenant",
        "public_part",
        "expires_at",
        "rotated_at",
        "revoked_at",
        "last_used_at",
        "created_by",
        "created_at",
    )
    fields_on_add = ("tenant", "name", "scopes", "models_allowed", "allowed_ips", "expires_at")
    actions = ("revoke", "rotate")

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"scopes": ["inference"], **super().get_changeform_initial_data(request)}

    @column("Key")
    def public_part(self, key: ApiKey) -> str:
        return f"mu_{key.public_id}_…"

    @column("Scopes")
    def scope_list(self, key: ApiKey) -> str:
        return ", ".join(key.scopes)

    @column("State", label={"Usable": "success", "Expired": "warning", "Revoked": "danger"})
    def state(self, key: ApiKey) -> str:
        if key.revoked_at is not None:
            return "Revoked"
        return "Usable" if key.is_usable else "Expired"

    def create(self, request: HttpRequest, data: dict[str, Any]) -> ApiKey:
        key, text = api_key_create(actor=operator_of(request), **data)
        remember_secret(request, f"API key {key.name} of {key.tenant}", text)
        return key

    def change(self, request: HttpRequest, obj: ApiKey, data: dict[str, Any]) -> None:
        api_key_update(key=obj, actor=operator_of(request), **data)

    @confirmed(question="Revoke these keys? They are refused within 2 seconds; it cannot be undone.", verb="Revoke")
    def revoke(self, request: HttpRequest, rows: list[ApiKey]) -> int:
        return sum(api_key_revoke(key=key, actor=operator_of(request)) for key in rows)

    @confirmed(question="Make new keys in place of these? The old ones go on for one day.", verb="Rotate")
    def rotate(self, request: HttpRequest, rows: list[ApiKey]) -> HttpResponse:
        made = [api_key_rotate(key=key, actor=operator_of(request)) for key in rows]
        secrets = [{"label": f"API key {key.name} of {key.tenant}", "text": text} for key, text in made]
        return shown_once(self, request, "The new keys.", secrets)


@admin.register(Limit)
class LimitAdmin(ServiceAdmin):
    list_display = ("tenant", "api_key", "member", "kind", "value", "model", "set_by", "holds")
    list_filter = ("set_by", "kind", "tenant")
    list_select_related = ("tenant", "api_key", "member__user", "member__tenant")
    search_fields = ("tenant__name", "api_key__name", "member__user__email", "model")
    autocomplete_fields = ("tenant", "api_key", "member")
    fields = ("tenant", "api_key", "member", "kind", "model", "value", "set_by", "holds")
    readonly_fields = ("tenant", "api_key", "member", "kind", "model", "set_by", "holds")
    fields_on_add = ("tenant", "api_key", "member", "kind", "model", "value", "set_by")
    actions = ("remove",)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"set_by": Limit.SetBy.OPERATOR, **super().get_changeform_initial_data(request)}

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        found = super().get_changelist_instance(request)
        limits_held(found.result_list)
        return found

    @column("Holds", label={"Holds": "success", "The smaller one beside it holds": "warning"})
    def holds(self, limit: Limit) -> str:
        return "Holds" if limit.is_in_force else "The smaller one beside it holds"

    def create(self, request: HttpRequest, data: dict[str, Any]) -> Limit:
        return limit_set(actor=operator_of(request), **data)

    def change(self, request: HttpRequest, obj: Limit, data: dict[str, Any]) -> None:
        limit_set(
            tenant=obj.tenant,
            api_key=obj.api_key,
            member=obj.member,
            kind=obj.kind,
            model=obj.model,
            set_by=obj.set_by,
            value=data["value"],
            actor=operator_of(request),
        )

    @confirmed(
        question="Remove these limits? What they held back is free, as far as none beside them holds.", verb="Remove"
    )
    def remove(self, request: HttpRequest, rows: list[Limit]) -> int:
        return sum(limit_remove(limit=limit, actor=operator_of(request)) for limit in rows)


@admin.register(SignInLink)
class SignInLinkAdmin(HistoryAdmin):
    list_display = ("user", "created_at", "expires_at", "used_at")
    list_select_related = ("user",)
    search_fields = ("user__email",)
    fields = ("user", "created_at", "expires_at", "used_at")


@admin.register(SignInAttempt)
class SignInAttemptAdmin(HistoryAdmin):
    list_display = ("at", "succeeded", "short_account", "short_address")
    list_filter = ("succeeded",)

    @column("Account (digest)")
    def short_account(self, attempt: SignInAttempt) -> str:
        return attempt.account[:12]

    @column("Address (digest)")
    def short_address(self, attempt: SignInAttempt) -> str:
        return attempt.address[:12]
