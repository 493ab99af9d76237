"""Which tenant a page is of, who looks at it, and what they may do there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.http.response import HttpResponseBase

from penstock.web.access import UserRequest, signed_in, tenant_or_404
from penstock.web.shell import page
from tenants.models import Tenant, User
from tenants.policy.roles import ROLES, Action, role_allows

P = ParamSpec("P")


@dataclass(frozen=True)
class Place:
    """``role`` is ``operator`` for operators who are no members."""

    tenant: Tenant
    user: User
    role: str

    def may(self, action: Action) -> bool:
        return self.user.is_operator or role_allows(self.role, action)

    @property
    def rights(self) -> dict[str, bool]:
        """What the page may offer, by the action's name with ``_``, for templates."""
        return {action.name.lower(): self.may(action) for action in Action}


def who_may(action: Action) -> str:
    """The roles that cover ``action``, in words: ``an owner or admin``."""
    roles = [role for role in reversed(ROLES) if role_allows(role, action)]
    return " or ".join((", ".join(roles[:-1]), roles[-1])) if len(roles) > 1 else roles[0]


def in_tenant(
    action: Action, *, why: str = ""
) -> Callable[[Callable[Concatenate[UserRequest, Place, P], HttpResponseBase]], Callable[..., HttpResponseBase]]:
    """Only for members who may do ``action``. Others' tenants do not exist; a role that is too small is told ``why``.

    The view gets the ``Place`` instead of the slug in its URL.
    """

    def guard(
        view: Callable[Concatenate[UserRequest, Place, P], HttpResponseBase],
    ) -> Callable[..., HttpResponseBase]:
        @wraps(view)
        def guarded(request: UserRequest, /, slug: str, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            tenant, role = tenant_or_404(request.user, slug, Action.TENANT_VIEW)
            place = Place(tenant, request.user, role)
            if not place.may(action):
                raise PermissionDenied(
                    why or f"Your role in {tenant} is {role}, which does not cover this. Ask {who_may(action)} of it."
                )
            return view(request, place, *args, **kwargs)

        return signed_in(guarded)

    return guard


def tenant_page(
    request: UserRequest, place: Place, template: str, context: dict[str, Any], *, current: str, status: int = 200
) -> HttpResponse:
    """A page inside the tenant's frame."""
    shared = {"role": place.role, "may": place.rights}
    return page(request, template, {**shared, **context}, current=current, tenant=place.tenant, status=status)
