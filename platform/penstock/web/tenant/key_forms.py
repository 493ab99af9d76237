"""Forms of the pages of API keys."""

from __future__ import annotations

import datetime
import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone

from penstock.web.dashboard_data import usable_models
from penstock.web.tenant.forms import PageForm
from penstock.web.tenant.place import Place
from tenants.keys import MOST_NETWORKS, SCOPES, network_errors
from tenants.models import ApiKey
from tenants.policy.roles import scopes_beyond

SCOPE_LABELS = {
    "inference": "inference: send requests to models",
    "usage": "usage: read this tenant's usage",
    "manage": "manage: the tenant's part of the REST API",
}
ENDS = (
    ("", "never"),
    ("1", "after 1 day"),
    ("7", "after 7 days"),
    ("30", "after 30 days"),
    ("90", "after 90 days"),
    ("365", "after 1 year"),
)
OVERLAPS = (
    ("0", "none: the old key is revoked at once"),
    ("3600", "1 hour"),
    ("86400", "1 day"),
    ("604800", "7 days"),
    ("2592000", "30 days"),
)
_SEPARATORS = re.compile(r"[\s,;]+")


class _KeyForm(PageForm):
    name = forms.CharField(max_length=120, help_text="Where it is used, e.g. checkout-service.")
    scopes = forms.MultipleChoiceField(widget=forms.CheckboxSelectMultiple, error_messages={"required": "Choose one."})
    models_allowed = forms.MultipleChoiceField(
        label="Allowed models",
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="None ticked: every model that is open to the tenant, also later ones.",
    )
    allowed_ips = forms.CharField(
        label="Allowed networks",
        required=False,
        max_length=MOST_NETWORKS * 50,
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "192.0.2.0/24\n2001:db8::/32"}),
        help_text="In CIDR form, one a line. Empty: from everywhere.",
    )

    def __init__(self, *args: Any, place: Place, key: ApiKey | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        held = key.scopes if key else []
        self.beyond = scopes_beyond(held, place.may)
        """Scopes of the key that the person may not give to a key."""
        mine = [scope for scope in SCOPES if not scopes_beyond([scope], place.may) or scope in held]
        self.fields["scopes"].choices = [(scope, SCOPE_LABELS[scope]) for scope in mine]  # type: ignore[attr-defined]
        names = [row.name for row in usable_models(place.tenant)]
        known = [*names, *(name for name in (key.models_allowed if key else []) if name not in names)]
        self.fields["models_allowed"].choices = [(name, name) for name in known]  # type: ignore[attr-defined]
        self._place = place

    def clean_allowed_ips(self) -> list[str]:
        networks = [part for part in _SEPARATORS.split(self.cleaned_data["allowed_ips"]) if part]
        if errors := network_errors(networks):
            raise ValidationError(errors)
        return networks

    def clean_scopes(self) -> list[str]:
        scopes: list[str] = self.cleaned_data["scopes"]
        if too_much := scopes_beyond(scopes, self._place.may):
            raise ValidationError(f"Your role does not cover {', '.join(too_much)}: ask an owner or admin.")
        return scopes

    def given(self) -> dict[str, Any]:
        """As the services take it."""
        return {name: self.cleaned_data[name] for name in ("name", "scopes", "models_allowed", "allowed_ips")}


class NewKeyForm(_KeyForm):
    ends = forms.ChoiceField(label="Expires", choices=ENDS, required=False)
    ends_on = forms.DateField(
        label="or at the end of",
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}),
        help_text="In UTC. When it is set, it holds instead of the period.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("initial", {"scopes": ["inference"], "ends": ""})
        super().__init__(*args, **kwargs)

    def clean_ends_on(self) -> datetime.date | None:
        day: datetime.date | None = self.cleaned_data["ends_on"]
        if day is not None and day < timezone.now().date():
            raise ValidationError("This day is over: choose today or a later one.")
        return day

    def given(self) -> dict[str, Any]:
        day, days = self.cleaned_data.get("ends_on"), self.cleaned_data.get("ends")
        expires_at = None
        if day is not None:
            expires_at = datetime.datetime.combine(day, datetime.time(23, 59, 59), datetime.UTC)
        elif days:
            expires_at = timezone.now() + datetime.timedelta(days=int(days))
        return super().given() | {"expires_at": expires_at}


class EditKeyForm(_KeyForm):
    def __init__(self, *args: Any, key: ApiKey, **kwargs: Any) -> None:
        kwargs["initial"] = {
            "name": key.name,
            "scopes": key.scopes,
            "models_allowed": key.models_allowed,
            "allowed_ips": "\n".join(key.allowed_ips),
        }
        super().__init__(*args, key=key, **kwargs)


class RotateForm(PageForm):
    overlap_s = forms.ChoiceField(label="The old key works on for", choices=OVERLAPS, initial="86400")

    @property
    def overlap(self) -> datetime.timedelta:
        return datetime.timedelta(seconds=int(self.cleaned_data["overlap_s"]))
