"""Who gives which role, and who changes whose keys."""

from __future__ import annotations

import pytest

from tenants.policy.members import key_refusal, role_refusal, roles_given_by
from tenants.policy.roles import Action

EVERY = {"owner", "admin", "developer", "viewer"}


@pytest.mark.parametrize(
    ("role", "given"),
    [
        ("owner", EVERY),
        ("admin", EVERY - {"owner"}),
        ("developer", set()),
        ("viewer", set()),
        (None, set()),
        ("king", set()),
    ],
)
def test_which_roles_a_member_gives(role: str | None, given: set[str]) -> None:
    assert roles_given_by(role) == given


def test_a_refusal_says_whom_to_ask() -> None:
    assert "Owners and admins" in str(role_refusal(lambda action: False, "viewer"))
    admin = {Action.MEMBER_MANAGE}
    assert role_refusal(admin.__contains__, "viewer", "admin") is None
    assert "Ask an owner" in str(role_refusal(admin.__contains__, "viewer", "owner"))
    assert role_refusal(lambda action: True, "owner") is None


def test_keys_are_changed_by_whoever_made_them_and_by_whoever_manages_all() -> None:
    assert key_refusal(lambda action: False, is_own=True) is None
    assert key_refusal({Action.KEY_MANAGE}.__contains__, is_own=False) is None
    assert "Ask an admin" in str(key_refusal({Action.KEY_CREATE}.__contains__, is_own=False))
