"""May it be removed, and if not, what to do."""

from hypothesis import given
from hypothesis import strategies as st

from capacity.policy.removal import may_remove_deployment, may_remove_host, may_remove_model, may_remove_pool

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


@given(st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_what_something_refers_to_stays_and_says_what_to_do(one: int, other: int, is_confirmed: bool) -> None:
    verdicts = {
        may_remove_pool(deployments=one, reservations=other): one == other == 0,
        may_remove_pool(deployments=0, reservations=other, holding=one): one == other == 0,
        may_remove_model(pools=one): one == 0,
        may_remove_deployment(holding=one, is_confirmed=is_confirmed): one == 0 or is_confirmed,
        may_remove_deployment(holding=one, is_confirmed=True, reservations=other): other == 0,
    }
    for verdict, is_allowed in verdicts.items():
        assert verdict.is_allowed is is_allowed
        assert verdict.reason
        assert bool(verdict.hint) is not is_allowed
    assert str(one) in may_remove_model(pools=one).reason or one == 0
