"""Forms in the look of the house. What a service refuses stands at the field it speaks of."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from django import forms
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError

from tenants.api.fields import UNSTORABLE, is_storable
from tenants.api.parsers import TOO_DEEP, TORN, is_too_deep, is_torn

T = TypeVar("T")
_LONGEST_NAME, _LONGEST_VALUE = 100, 200
"""Of labels, in characters: as the REST API has it."""


class PageForm(forms.Form):
    """``auto_id`` keeps the ids of several forms of one page apart."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("label_suffix", "")
        kwargs.setdefault("auto_id", f"{type(self).__name__.lower()}-%s")
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            if not isinstance(field.widget, forms.CheckboxInput):
                field.widget.attrs.setdefault("class", "in")

    def attempt(self, call: Callable[[dict[str, Any]], T]) -> T | None:
        """``call`` with the cleaned values; None if they or the service refuse, with each reason at its field."""
        if not self.is_valid():
            return None
        try:
            return call(dict(self.cleaned_data))
        except ValidationError as error:
            for name, reasons in error.update_error_dict({}).items():
                at = name if name in self.fields else None
                told = reasons if at or name == NON_FIELD_ERRORS else [f"{name}: {one}" for one in _texts(reasons)]
                self.add_error(at, ValidationError(told))
            return None


def _texts(reasons: Any) -> list[str]:
    return ValidationError(reasons).messages


class LabelsField(forms.CharField):
    """Texts by name, one ``name=value`` a line."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("widget", forms.Textarea(attrs={"rows": 3, "spellcheck": "false", "class": "in mono"}))
        super().__init__(required=False, **kwargs)

    def to_python(self, value: Any) -> Any:
        found: dict[str, str] = {}
        for line in (super().to_python(value) or "").splitlines():
            if not line.strip():
                continue
            name, equals, text = line.partition("=")
            if not equals or not name.strip():
                raise ValidationError(f"“{line.strip()[:60]}” is no label: write one name=value a line, e.g. zone=a.")
            if len(name.strip()) > _LONGEST_NAME or len(text.strip()) > _LONGEST_VALUE or "\0" in line:
                raise ValidationError(
                    f"“{line.strip()[:60]}” is too long, or holds a NUL: a name has at most {_LONGEST_NAME} "
                    f"characters, a value {_LONGEST_VALUE}."
                )
            if name.strip() in found:
                raise ValidationError(f"{name.strip()} stands there twice: a host has one value for each name.")
            found[name.strip()] = text.strip()
        return found

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(f"{name}={text}" for name, text in value.items()) if isinstance(value, dict) else value


class JsonObjectField(forms.CharField):
    """A JSON object that the REST API would take too. Empty: none of its values."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("widget", forms.Textarea(attrs={"rows": 4, "spellcheck": "false", "class": "in mono"}))
        super().__init__(required=False, **kwargs)

    def to_python(self, value: Any) -> Any:
        text = (super().to_python(value) or "").strip()
        if not text:
            return {}
        try:
            found = json.loads(text, parse_constant=_no_constant)
        except RecursionError:
            raise ValidationError(TOO_DEEP) from None
        except ValueError as error:
            raise ValidationError(
                f'This is not JSON ({error}). Write an object, e.g. {{"max_model_len": 8192}}.'
            ) from None
        if not isinstance(found, dict):
            raise ValidationError('Write a JSON object, e.g. {"max_model_len": 8192}.')
        if is_too_deep(found):
            raise ValidationError(TOO_DEEP)
        if not is_storable(found):
            raise ValidationError(UNSTORABLE)
        if is_torn(json.dumps(found, ensure_ascii=False)):
            raise ValidationError(TORN)
        return found

    def prepare_value(self, value: Any) -> Any:
        return json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, dict) and value else value or ""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")
