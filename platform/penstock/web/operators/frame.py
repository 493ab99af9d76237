"""What the operators' pages share: their guard, the offer to undo, and the page that asks before an act that hurts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.forms import Form
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from penstock.web.access import UserRequest, operators_only
from penstock.web.shell import page
from tenants.needed import StillNeeded
from tenants.policy.roles import Action

P = ParamSpec("P")
View = Callable[Concatenate[UserRequest, P], HttpResponseBase]
Guarded = Callable[Concatenate[HttpRequest, P], HttpResponseBase]
_UNDO = "operators-undo"


def read_page(view: View[P]) -> Guarded[P]:
    """For those who may look at the platform."""
    return require_safe(operators_only(Action.PLATFORM_VIEW)(view))


def form_page(view: View[P]) -> Guarded[P]:
    """A form, or a question: for those who may change the platform."""
    return require_http_methods(["GET", "HEAD", "POST"])(operators_only(Action.PLATFORM_OPERATE)(view))


def act(view: View[P]) -> Guarded[P]:
    """An act without a question, because it can be undone or harms nobody."""
    return require_POST(operators_only(Action.PLATFORM_OPERATE)(view))


def show(
    request: UserRequest, template: str, context: Mapping[str, Any], *, current: str, status: int = 200
) -> HttpResponse:
    """A page in the operators' frame, with the offer to undo the last act, once."""
    undo = request.session.pop(_UNDO, None)
    return page(request, template, {"undo": undo, **context}, current=current, status=status)


def part(request: UserRequest, template: str, context: Mapping[str, Any]) -> HttpResponse:
    """A part of a page, for the page to put in place."""
    response = render(request, template, dict(context))
    response.headers["Cache-Control"] = "private, no-store"
    return response


def is_part(request: HttpRequest) -> bool:
    """Whether the page that is open asks for the part of it that moves."""
    return "HX-Request" in request.headers


def done(
    request: UserRequest, text: str, to: str, *, undo: str = "", fields: Mapping[str, object] | None = None
) -> HttpResponseRedirect:
    """Go to the path ``to`` and say there what was done; ``undo`` is the path to post ``fields`` to take it back."""
    if undo:
        plain = [[name, "" if value is None else str(value)] for name, value in (fields or {}).items()]
        request.session[_UNDO] = {"text": text, "path": undo, "fields": plain}
    else:
        messages.success(request, text)
    return redirect(to)


def refused(request: UserRequest, error: ValidationError | str, to: str) -> HttpResponseRedirect:
    """Go to the path ``to`` and say there why nothing was done."""
    messages.error(request, error if isinstance(error, str) else " ".join(error.messages))
    return redirect(to)


def ask(
    request: UserRequest,
    *,
    title: str,
    effects: Sequence[str],
    verb: str,
    back: str,
    current: str,
    of: str = "",
    form: Form | None = None,
    refusal: StillNeeded | None = None,
    obstacle: StillNeeded | None = None,
    first: tuple[str, str] | None = None,
) -> HttpResponse:
    """The question before an act that hurts: what will happen, and how to take it back. The button posts here.

    ``back`` is the path of the page that the question comes from, and ``of`` what that page is called.
    ``form`` holds what may be said with it. ``obstacle`` is what stands in the way before anybody has tried, and
    ``first`` the label and the path of what is to be done before, in the button's place. After a ``refusal`` the page
    says what stands in the way.
    """
    step = verb.removesuffix(of).rstrip()
    words = {"title": title, "effects": effects, "verb": verb, "step": step}
    context = {**words, "back": back, "of": of, "form": form, "refusal": refusal, "first": first}
    context |= {"barrier": refusal or obstacle}
    status = 409 if refusal else 400 if form is not None and form.is_bound else 200
    return show(request, "operators/ask.html", context, current=current, status=status)
