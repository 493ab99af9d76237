"""Permission of the REST API: the table of roles decides, views only say what they need."""

from __future__ import annotations

from typing import Any

from rest_framework import permissions
from rest_framework.request import Request

from tenants.api.caller import caller_of


class MayAct(permissions.BasePermission):
    """Asks the table of roles for what the view says it requires. An action that says nothing is open to nobody."""

    def has_permission(self, request: Request, view: Any) -> bool:
        caller = caller_of(request)
        if caller is None:
            return False
        if view.action in (None, "metadata"):  # methods that are not allowed, and OPTIONS, which never is
            return True
        return bool(view.may(caller, view.required[view.action]))


class IsCaller(permissions.BasePermission):
    """Any caller: for what speaks of nobody but the caller."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return caller_of(request) is not None


class IsPerson(permissions.BasePermission):
    """A person, not an API key: for what is a person's own."""

    message = "An API key has no access tokens: they belong to people. Sign in, or send a person's access token."

    def has_permission(self, request: Request, view: Any) -> bool:
        caller = caller_of(request)
        return caller is not None and caller.user is not None
