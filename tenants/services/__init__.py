"""Writes of this app: keyword-only, atomic, each with its audit entry and its line in the change log."""

from tenants.services.answers import idempotent_answers_delete_old
from tenants.services.invitations import (
    InvitationError,
    InvitationForAccountError,
    invitation_accept,
    invitation_account,
    invitation_create,
    invitation_find,
)
from tenants.services.keys import (
    api_key_create,
    api_key_revoke,
    api_key_rotate,
    api_key_update,
    api_key_used,
    api_keys_mark_used,
)
from tenants.services.limits import limit_remove, limit_set
from tenants.services.links import SignInLinkError, sign_in_link_create, sign_in_link_redeem
from tenants.services.people import (
    membership_add,
    membership_change,
    membership_remove,
    tenant_create,
    tenant_update,
    user_create,
    user_set_active,
    user_set_password,
)
from tenants.services.revocation import invitation_revoke
from tenants.services.tokens import access_token_create, access_token_revoke, access_token_used

__all__ = [
    "InvitationError",
    "InvitationForAccountError",
    "SignInLinkError",
    "access_token_create",
    "access_token_revoke",
    "access_token_used",
    "api_key_create",
    "api_key_revoke",
    "api_key_rotate",
    "api_key_update",
    "api_key_used",
    "api_keys_mark_used",
    "idempotent_answers_delete_old",
    "invitation_accept",
    "invitation_account",
    "invitation_create",
    "invitation_find",
    "invitation_revoke",
    "limit_remove",
    "limit_set",
    "membership_add",
    "membership_change",
    "membership_remove",
    "sign_in_link_create",
    "sign_in_link_redeem",
    "tenant_create",
    "tenant_update",
    "user_create",
    "user_set_active",
    "user_set_password",
]
