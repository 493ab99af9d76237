"""What every admin of the house is made of: operators only, writes through services, histories read-only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display

from tenants.models import User
from tenants.needed import StillNeeded

_Function = TypeVar("_Function", bound=Callable[..., Any])


def operator_of(request: HttpRequest) -> User:
    """The signed-in operator. The admin lets nobody else in."""
    assert isinstance(request.user, User)  # noqa: S101 (for the type checker; admin_view has checked)
    return request.user


class OperatorAdmin(ModelAdmin):
    """Operators may look at everything. What may be written, and how, is said by each admin."""

    list_per_page = 50
    show_full_result_count = False
    compressed_fields = True
    list_filter_submit = False
    actions: Sequence[Any] = ()

    def has_module_permission(self, request: HttpRequest) -> bool:
        return _is_operator(request)

    def has_view_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return _is_operator(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Asked by actions."""
        return _is_operator(request)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Without Django's bulk deletion: it goes past the services."""
        actions: dict[str, Any] = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions


class ServiceAdmin(OperatorAdmin):
    """Rows are added and changed by services: validated, audited, published.

    A subclass writes ``create`` and ``change``. ``shown_once`` is filled by ``create`` with what is never shown again.
    """

    can_add = True
    can_change = True
    fields_on_add: Sequence[str] = ()
    """Fields of the form for a new row; ``fields`` are those of a stored one."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.can_add and _is_operator(request)

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return self.can_change and _is_operator(request)

    def get_fields(self, request: HttpRequest, obj: models.Model | None = None) -> Sequence[Any]:
        if obj is None and self.fields_on_add:
            return self.fields_on_add
        fields: Sequence[Any] = super().get_fields(request, obj)
        return fields

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> Sequence[Any]:
        fields: Sequence[Any] = super().get_readonly_fields(request, obj)
        return () if obj is None and self.fields_on_add else fields

    def create(self, request: HttpRequest, data: dict[str, Any]) -> models.Model:
        """Make the row that the form describes, by a service."""
        raise NotImplementedError

    def change(self, request: HttpRequest, obj: Any, data: dict[str, Any]) -> None:
        """Apply what the form changed, by a service."""
        raise NotImplementedError

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm, change: bool) -> None:  # type: ignore[type-arg]
        if change:
            data = {name: form.cleaned_data[name] for name in form.changed_data}
            if data:
                self.change(request, type(obj)._default_manager.get(pk=obj.pk), data)
            return
        made = self.create(request, dict(form.cleaned_data))
        # The form's object takes the identity of the stored row: the admin goes on with it.
        obj.__dict__.update({name: value for name, value in made.__dict__.items() if name != "_state"})
        obj._state.adding = False
        obj._state.db = made._state.db

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Services have written relations too."""

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        """Inlines are for looking: what they hold is no part of a change."""
        return super().construct_change_message(request, form, None, add)

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        try:
            response: HttpResponse = super().changeform_view(request, object_id, form_url, extra_context)
        except ValidationError as error:
            for message in error.messages:
                messages.error(request, message)
            return HttpResponseRedirect(request.get_full_path())
        return response

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        secrets = getattr(request, "shown_once", None)
        if secrets:
            return shown_once(self, request, f"{obj} is made.", secrets)
        response: HttpResponse = super().response_add(request, obj, post_url_continue)
        return response


class HistoryAdmin(OperatorAdmin):
    """Read-only for everybody: what happened stays as it was written."""

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> Sequence[Any]:
        return [field.name for field in self.opts.concrete_fields]


class LookInline(TabularInline):
    """Rows of another model on this one's page, to be looked at; they are written on their own page."""

    extra = 0
    can_delete = False
    show_change_link = True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _is_operator(request)


def column(
    description: str, *, ordering: str | None = None, label: bool | str | dict[str, str] | None = None
) -> Callable[[_Function], _Function]:
    """A computed column of a list. ``label`` draws it as a badge, coloured by value where it is a mapping."""

    def decorate(function: _Function) -> _Function:
        return cast(_Function, display(description=description, ordering=ordering, label=label)(function))

    return decorate


def remember_secret(request: HttpRequest, label: str, text: str) -> None:
    """Have ``text`` shown on the page that answers this request; it enters no message and no session."""
    found = getattr(request, "shown_once", [])
    request.shown_once = [*found, {"label": label, "text": text}]  # type: ignore[attr-defined]


def shown_once(
    model_admin: OperatorAdmin, request: HttpRequest, explanation: str, secrets: Sequence[dict[str, str]]
) -> HttpResponse:
    """A page that is not stored by browser or proxy."""
    context = {
        **model_admin.admin_site.each_context(request),
        "title": "Shown once",
        "opts": model_admin.opts,
        "explanation": f"{explanation} Copy what follows now: it is not shown again.",
        "secrets": secrets,
        "back": list_url(model_admin),
    }
    response = TemplateResponse(request, "admin/penstock/shown_once.html", context)
    response.headers["Cache-Control"] = "no-store"
    return response


def confirmed(*, question: str, verb: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An action on selected rows that first names what will happen, and then runs on ``POST`` of that page.

    The function takes ``(admin, request, rows)`` and returns how many rows changed, or a response. A ValidationError
    undoes it for all of them.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @admin.action(description=verb, permissions=["operate"])
        def action(model_admin: Any, request: HttpRequest, queryset: models.QuerySet[Any]) -> HttpResponse | None:
            rows = list(queryset)
            if request.POST.get("confirmed") != "yes":
                context = {
                    **model_admin.admin_site.each_context(request),
                    "title": verb,
                    "opts": model_admin.opts,
                    "question": question,
                    "verb": verb,
                    "rows": rows,
                    "action": function.__name__,
                    "back": list_url(model_admin),
                }
                return TemplateResponse(request, "admin/penstock/confirm.html", context)
            try:
                # All rows or none: what a half-done action has made would never be shown.
                with transaction.atomic():
                    outcome = function(model_admin, request, rows)
            except ValidationError as error:
                for message in error.messages:
                    messages.error(request, message)
                return None
            except StillNeeded as error:
                messages.error(request, f"{error} {error.hint}")
                return None
            if isinstance(outcome, HttpResponse):
                return outcome
            messages.success(request, f"{verb}: {outcome} of {len(rows)} changed.")
            return None

        action.__name__ = function.__name__
        return action

    return decorate


def list_url(model_admin: OperatorAdmin) -> str:
    opts = model_admin.opts
    return reverse(f"{model_admin.admin_site.name}:{opts.app_label}_{opts.model_name}_changelist")


def _is_operator(request: HttpRequest) -> bool:
    return isinstance(request.user, User) and request.user.is_active and request.user.is_operator
