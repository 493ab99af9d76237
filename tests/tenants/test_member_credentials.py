"""A member's credential opens for what it was made for, for minutes, and for nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.member_credentials import LIFETIME_S, MemberCredentialError, seal, unseal

NOW = 1_790_000_000.0
PEPPERS = {1: "old pepper", 2: "new pepper"}
BYTES = {number: pepper.encode() for number, pepper in PEPPERS.items()}
NAMES = st.from_regex(r"[A-Za-z0-9-]{1,64}", fullmatch=True)


@given(tenant=NAMES, member=NAMES, later=st.floats(0, LIFETIME_S - 1))
def test_it_says_whose_it_is_while_it_lives(tenant: str, member: str, later: float) -> None:
    text = seal(tenant=tenant, member=member, peppers=PEPPERS, now=NOW)
    found = unseal(text, peppers=BYTES, now=NOW + later)
    assert (found.tenant, found.member, found.expires_at) == (tenant, member, int(NOW) + LIFETIME_S)


@pytest.mark.parametrize("now", [NOW + LIFETIME_S, NOW + 86_400, NOW - 86_400])
def test_it_dies_after_minutes_and_is_not_taken_from_a_clock_far_off(now: float) -> None:
    text = seal(tenant="acme", member="ann", peppers=PEPPERS, now=NOW)
    with pytest.raises(MemberCredentialError, match="expired"):
        unseal(text, peppers=BYTES, now=now)


@given(data=st.data())
def test_no_other_character_anywhere_passes(data: st.DataObject) -> None:
    text = seal(tenant="acme", member="ann", peppers=PEPPERS, now=NOW)
    at = data.draw(st.integers(len("psm_"), len(text) - 1))
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=0x2FF).filter(lambda c: c != text[at]))
    with pytest.raises(MemberCredentialError):
        unseal(text[:at] + other + text[at + 1 :], peppers=BYTES, now=NOW)


@pytest.mark.parametrize("text", ["", "psm_", "psm_1.a.b.c.d", "psm_1.2.3", "psm_" + "9" * 5000, "psm_²." * 4])
def test_what_is_no_credential_is_refused_in_words(text: str) -> None:
    with pytest.raises(MemberCredentialError, match="malformed"):
        unseal(text, peppers=BYTES, now=NOW)


def test_the_newest_pepper_seals_and_those_that_are_gone_open_nothing() -> None:
    text = seal(tenant="acme", member="ann", peppers=PEPPERS, now=NOW)
    assert text.startswith("psm_2.")
    with pytest.raises(MemberCredentialError, match="not made by this installation"):
        unseal(text, peppers={1: BYTES[1]}, now=NOW)


@pytest.mark.parametrize("name", ["", "a.b", "a_b", "a b", "ä", "x" * 65])
def test_names_that_could_run_into_each_other_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="ids of letters"):
        seal(tenant=name, member="ann", peppers=PEPPERS, now=NOW)
