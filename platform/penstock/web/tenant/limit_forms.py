"""The form of a plain limit, of the tenant, of a member or of one key."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError

from penstock.web.access import UserRequest
from penstock.web.dashboard_data import usable_models
from penstock.web.limit_words import held_instead, left_over
from penstock.web.tenant.forms import PageForm
from penstock.web.tenant.place import Place
from tenants.models import ApiKey, Limit, Membership
from tenants.policy.limits import ASK_OPERATOR, limit_refusal, set_by_whom
from tenants.services import limit_remove, limit_set

_MOST = 2**63 - 1


class LimitForm(PageForm):
    kind = forms.ChoiceField(label="Limit", choices=Limit.Kind.choices)
    value = forms.IntegerField(
        label="At most", min_value=1, max_value=_MOST, widget=forms.NumberInput(attrs={"inputmode": "numeric"})
    )
    model = forms.ChoiceField(label="For", required=False)

    def __init__(self, *args: Any, place: Place, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = [row.name for row in usable_models(place.tenant)]
        choices = [("", "every model"), *((name, name) for name in names)]
        self.fields["model"].choices = choices  # type: ignore[attr-defined]


class MemberField(forms.ModelChoiceField):  # type: ignore[type-arg]
    def label_from_instance(self, obj: Membership) -> str:
        return obj.user.email


class MemberLimitForm(LimitForm):
    """``member`` is whose it is; nobody: the tenant's as a whole."""

    member = MemberField(label="Of", queryset=Membership.objects.none(), required=False, empty_label="the whole tenant")

    def __init__(self, *args: Any, place: Place, **kwargs: Any) -> None:
        super().__init__(*args, place=place, **kwargs)
        field = cast("MemberField", self.fields["member"])
        field.queryset = place.tenant.memberships.select_related("user").order_by("user__email")


def limit_saved(request: UserRequest, place: Place, form: LimitForm, *, api_key: ApiKey | None = None) -> bool:
    """Set what the form says and tell the person; False, with errors in the form, where it cannot be.

    An operator sets the operator's limit, everybody else the tenant's own.
    """
    if not form.is_valid():
        return False
    try:
        limit = limit_set(
            tenant=place.tenant,
            api_key=api_key,
            set_by=set_by_whom(is_operator=request.user.is_operator),
            actor=request.user,
            **form.cleaned_data,
        )
    except ValidationError as error:
        form.refused(error)
        return False
    of = f" for {limit.model}" if limit.model else ""
    who = limit.member.user.email if limit.member else api_key.name if api_key else place.tenant
    text = f"{who}: at most {limit}{of}, within two seconds."
    if instead := held_instead(limit):
        messages.warning(request, text + instead)
    else:
        messages.success(request, text)
    return True


def limit_ended(request: UserRequest, limit: Limit, *, of: str = "") -> None:
    """Remove the limit and tell the person. Raises PermissionDenied where it is the operator's and they are none."""
    if refusal := limit_refusal(limit.set_by, is_operator=request.user.is_operator):
        raise PermissionDenied(f"{refusal} {ASK_OPERATOR}")
    left = left_over(limit)
    if limit_remove(limit=limit, actor=request.user):
        messages.success(request, f"The limit of {limit} is removed{of}.{left}")
