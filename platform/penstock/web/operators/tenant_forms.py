"""Forms of a tenant: its name, its people, its limits."""

from __future__ import annotations

from django import forms

from penstock.web.operators.forms import PageForm
from tenants.models import Limit, Membership

_MOST = 2**63 - 1


class TenantForm(PageForm):
    name = forms.CharField(label="Name", max_length=120)
    slug = forms.SlugField(
        label="Slug", max_length=60, help_text="In addresses and the API. Old addresses stop working."
    )


class NewTenantForm(PageForm):
    """A name is enough."""

    name = forms.CharField(
        label="Name", max_length=120, widget=forms.TextInput(attrs={"placeholder": "Northwind Bank"})
    )
    slug = forms.SlugField(
        label="Slug", max_length=60, required=False, help_text="In addresses and the API. Empty: made from the name."
    )
    owner = forms.EmailField(
        label="E-mail address of its owner",
        required=False,
        help_text="You get a one-time link for them on the next page. Penstock sends no mail.",
    )


class InviteForm(PageForm):
    email = forms.EmailField(label="E-mail address")
    role = forms.ChoiceField(label="Role", choices=Membership.Role.choices, initial=Membership.Role.DEVELOPER)


class RoleForm(PageForm):
    role = forms.ChoiceField(label="Role", choices=Membership.Role.choices)


class LimitForm(PageForm):
    kind = forms.ChoiceField(label="Limit", choices=Limit.Kind.choices)
    value = forms.IntegerField(
        label="At most",
        min_value=1,
        max_value=_MOST,
        help_text="Per day and month: of the calendar (UTC). Money in whole units of the currency.",
    )
    model = forms.CharField(
        label="For", max_length=200, required=False, help_text="A served name. Empty: all models together."
    )
    set_by = forms.ChoiceField(choices=Limit.SetBy.choices, required=False, widget=forms.HiddenInput)

    def clean_set_by(self) -> str:
        """The operator's, where nothing is said: the tenant's own is set here to take its removal back."""
        return self.cleaned_data["set_by"] or Limit.SetBy.OPERATOR
