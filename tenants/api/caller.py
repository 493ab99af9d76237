"""Who is asking the REST API: a person, by session or access token, or an API key of a tenant."""

from __future__ import annotations

from dataclasses import dataclass

from rest_framework.request import Request

from tenants.audit import Actor
from tenants.models import ApiKey, Tenant, User
from tenants.permissions import can
from tenants.policy.roles import PLATFORM_ACTIONS, Action, scopes_allow


@dataclass(frozen=True)
class Caller:
    """Exactly one of ``user`` and ``key`` is set."""

    user: User | None = None
    key: ApiKey | None = None

    @property
    def actor(self) -> Actor:
        """As audit entries name them."""
        return self.user or f"API key {self.key}"

    @property
    def identity(self) -> str:
        """The same for every request of this caller."""
        return f"user:{self.user.pk}" if self.user else f"key:{self.key.pk}" if self.key else ""

    @property
    def is_operator(self) -> bool:
        return self.user is not None and self.user.is_operator

    def can(self, action: Action, tenant: Tenant | None = None) -> bool:
        """Whether the caller may do ``action``, in ``tenant`` where it is one of a tenant's."""
        if self.user is not None:
            return can(self.user, action, tenant)
        if self.key is None or action in PLATFORM_ACTIONS or tenant is None or tenant.pk != self.key.tenant_id:
            return False
        return scopes_allow(self.key.scopes, action)


def caller_of(request: Request) -> Caller | None:
    """The caller of an authenticated request, or None."""
    if isinstance(request.auth, ApiKey):
        return Caller(key=request.auth)
    return Caller(user=request.user) if isinstance(request.user, User) and request.user.is_active else None
