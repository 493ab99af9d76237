"""May it be removed, and if not, what to do."""

from hypothesis import given
from hypothesis import strategies as st

from capacity.policy.removal import may_remove_host

STATES = st.sampled_from(["active", "cordoned", "draining", "lost"])


@given(STATES, st.booleans(), st.integers(0, 9), st.booleans())
def test_nothing_that_runs_is_taken_from_a_host_that_is_there(
    state: str, has_reported: bool, holding: int, force: bool
) -> None:
    verdict = may_remove_host(state=state, has_reported=has_reported, holding=holding, force=force)
    is_gone = state == "lost" or not has_reported
    assert verdict.is_allowed == (holding == 0 or (is_gone and force))
    assert verdict.reason
    assert verdict.is_allowed or verdict.hint


def test_the_hint_says_the_next_step() -> None:
    def hint(state: str) -> str:
        return may_remove_host(state=state, has_reported=True, holding=2, force=False).hint

    assert hint("active").startswith("Drain it first")
    assert "when the last of them has stopped" in hint("draining")
    assert hint("lost").startswith("Force it")
