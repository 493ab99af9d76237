"""Forms of a deployment: how many replicas, and what they run."""

from __future__ import annotations

from typing import Any, Self

from django import forms

from penstock.web.operators.forms import JsonObjectField, PageForm
from serving.api.deployments import MOST_REPLICAS
from serving.api.revisions import MOST_AT_ONCE
from serving.models import Deployment, Revision


class ScaleForm(PageForm):
    """The bounds of the scale loop, or exactly so many replicas."""

    min_replicas = forms.IntegerField(label="At least", min_value=0, max_value=MOST_REPLICAS)
    max_replicas = forms.IntegerField(label="At most", min_value=0, max_value=MOST_REPLICAS)
    pinned_replicas = forms.IntegerField(
        label="Exactly",
        required=False,
        min_value=0,
        max_value=MOST_REPLICAS,
        help_text="Pins the number, whatever the load and the bounds. Empty: the scale loop decides between them.",
    )

    @classmethod
    def of(cls, row: Deployment) -> Self:
        return cls(initial=values_of(row))


def values_of(row: Deployment) -> dict[str, Any]:
    """What a form of the replicas' number is filled with."""
    names = ("min_replicas", "max_replicas", "pinned_replicas")
    return {name: getattr(row, name) for name in names}


class RevisionForm(PageForm):
    """What replicas run. Another revision means other replicas."""

    runtime = forms.ChoiceField(label="Runtime", choices=Revision.Runtime.choices)
    target_concurrency = forms.IntegerField(
        label="Requests at once per replica", min_value=1, max_value=MOST_AT_ONCE, initial=16
    )
    options = JsonObjectField(
        label="Options",
        help_text="Of the runtime, as JSON; tensor_parallel_size and host_labels say which host it needs.",
    )

    @classmethod
    def of(cls, current: Revision | None) -> Self:
        if current is None:
            return cls()
        names = ("runtime", "target_concurrency", "options")
        return cls(initial={name: getattr(current, name) for name in names})
