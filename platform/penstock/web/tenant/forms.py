"""What the forms of the tenant's pages share: inputs in the house's look, and services' errors at their fields."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError

_PLAIN = (forms.CheckboxInput, forms.CheckboxSelectMultiple, forms.RadioSelect, forms.HiddenInput)


class PageForm(forms.Form):
    """Every input has the look; ``refused`` puts what a service raised beside the fields it speaks of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("label_suffix", "")
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            if not isinstance(field.widget, _PLAIN):
                field.widget.attrs.setdefault("class", "in")

    def refused(self, error: ValidationError) -> None:
        for name, errors in error.update_error_dict({}).items():
            known = name if name in self.fields or name == NON_FIELD_ERRORS else None
            self.add_error(None if known == NON_FIELD_ERRORS else known, errors)
