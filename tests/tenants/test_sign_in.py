"""Sign-in by password, guessing, and who may do what."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from hypothesis import given
from hypothesis import strategies as st

from tenants.models import AuditEntry, Membership, SignInAttempt
from tenants.permissions import can, role_in, roles_of
from tenants.policy.roles import PLATFORM_ACTIONS, ROLES, Action, role_allows
from tenants.policy.sign_in import ACCOUNT_LIMIT, ADDRESS_LIMIT, PAIR_LIMIT, WINDOW_S, Failures, judge
from tenants.services import membership_add, user_set_active
from tenants.signin import WRONG, sign_in_by_password
from tests import factories

NOW = 1_800_000_000.0
PASSWORD = "a fine long one"


@pytest.fixture(autouse=True)
def _quick_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


times = st.lists(st.floats(NOW - 2 * WINDOW_S, NOW), max_size=60).map(tuple)


@given(times, times, times)
def test_a_pause_ends_when_it_says(account: Any, address: Any, pair: Any) -> None:
    failures = Failures(account=account, address=address, pair=pair)
    verdict = judge(failures, now=NOW)
    counts = [sum(time > NOW - WINDOW_S for time in kind) for kind in (pair, address, account)]
    assert verdict.allowed == all(
        count < limit for count, limit in zip(counts, (PAIR_LIMIT, ADDRESS_LIMIT, ACCOUNT_LIMIT), strict=True)
    )
    if not verdict.allowed:
        assert 0 < verdict.retry_after_s <= WINDOW_S
        assert judge(failures, now=NOW + verdict.retry_after_s + 1e-3).allowed
        assert not judge(failures, now=NOW + verdict.retry_after_s - 1e-3).allowed


def attempt(email: str, password: str, address: str = "192.0.2.1") -> Any:
    return sign_in_by_password(email=email, password=password, address=address)


@pytest.mark.django_db
def test_the_right_password_signs_in() -> None:
    person = factories.user(email="ada@example.org", password=PASSWORD)
    assert attempt("ADA@example.org ", PASSWORD).user == person
    assert AuditEntry.objects.filter(action="user.sign_in").count() == 1


@pytest.mark.django_db
def test_wrong_unknown_and_kept_out_sound_the_same() -> None:
    person = factories.user(email="ada@example.org", password=PASSWORD)
    messages = [attempt("ada@example.org", "wrong").message, attempt("nobody@example.org", "wrong").message]
    factories.user(email="linkonly@example.org")
    messages.append(attempt("linkonly@example.org", "").message)
    user_set_active(user=person, is_active=False, actor="t")
    messages.append(attempt("ada@example.org", PASSWORD).message)
    assert messages == [WRONG] * 4


@pytest.mark.django_db
def test_guessing_pauses_and_a_pause_is_not_prolonged_by_trying() -> None:
    factories.user(email="ada@example.org", password=PASSWORD)
    for _ in range(PAIR_LIMIT):
        assert attempt("ada@example.org", "wrong").message == WRONG
    refused = attempt("ada@example.org", PASSWORD)
    assert refused.user is None
    assert 0 < refused.retry_after_s <= WINDOW_S
    for _ in range(20):
        attempt("ada@example.org", "wrong")
    assert SignInAttempt.objects.count() == PAIR_LIMIT
    assert attempt("ada@example.org", PASSWORD, "198.51.100.7").user is not None


@pytest.mark.django_db
def test_one_address_cannot_try_many_accounts() -> None:
    for number in range(ADDRESS_LIMIT):
        assert attempt(f"guess{number}@example.org", "wrong").message == WRONG
    factories.user(email="ada@example.org", password=PASSWORD)
    assert attempt("ada@example.org", PASSWORD).user is None
    assert attempt("ada@example.org", PASSWORD, "198.51.100.7").user is not None


@pytest.mark.django_db
def test_success_is_no_failure() -> None:
    factories.user(email="ada@example.org", password=PASSWORD)
    for _ in range(3 * PAIR_LIMIT):
        assert attempt("ada@example.org", PASSWORD).user is not None


@pytest.mark.django_db
def test_no_address_and_no_e_mail_is_kept_in_clear() -> None:
    attempt("ada@example.org", "wrong", "192.0.2.77")
    kept = str(list(SignInAttempt.objects.values()))
    assert "ada" not in kept
    assert "192.0.2.77" not in kept


@pytest.mark.django_db
def test_addresses_cannot_be_found_by_trying_them_all(settings: Any) -> None:
    """What is kept depends on a secret: without it, no digest of an address can be made to compare with."""
    for settings.SECRET_KEY in ("one secret", "another secret"):
        attempt("ada@example.org", "wrong", "192.0.2.77")
    kept = list(SignInAttempt.objects.values_list("address", "account"))
    assert len({text for row in kept for text in row}) == 4


def test_higher_roles_cover_lower_ones() -> None:
    ladder = [ROLES[name] for name in ("viewer", "developer", "admin", "owner")]
    assert all(low < high for low, high in itertools.pairwise(ladder))
    assert not any(actions & PLATFORM_ACTIONS for actions in ladder)
    assert set(Action) == ladder[-1] | PLATFORM_ACTIONS
    assert not role_allows(None, Action.TENANT_VIEW)
    assert not role_allows("king", Action.TENANT_VIEW)


@pytest.mark.django_db
def test_members_act_in_their_own_tenant_only() -> None:
    mine, other, person = factories.tenant(), factories.tenant(), factories.user()
    membership_add(tenant=mine, user=person, role=Membership.Role.DEVELOPER, actor="t")
    assert can(person, Action.KEY_CREATE, mine)
    assert not can(person, Action.MEMBER_MANAGE, mine)
    assert not can(person, Action.TENANT_VIEW, other)
    assert not can(person, Action.PLATFORM_VIEW)
    assert not can(AnonymousUser(), Action.TENANT_VIEW, mine)
    with pytest.raises(ValueError, match="needs a tenant"):
        can(person, Action.KEY_VIEW)
    assert role_in(person, other) is None
    assert roles_of(person) == {mine: "developer"}


@pytest.mark.django_db
def test_operators_may_everything_until_they_are_kept_out() -> None:
    operator, other = factories.user(is_operator=True), factories.user(is_operator=True)
    assert all(can(operator, action, factories.tenant()) for action in Action)
    user_set_active(user=operator, is_active=False, actor=other)
    assert not can(operator, Action.PLATFORM_VIEW)
