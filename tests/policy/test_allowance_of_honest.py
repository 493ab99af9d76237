"""Owners who use what they have reserved never meet their allowance, however long their requests say they may become.

Requests of real kinds: lengths from a lognormal, short ones with a rare very long one among them, and work that turns
from short answers to long ones. What is decided is compared with what estimates alone would decide.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random  # noqa: TID251
from typing import NamedTuple

import pytest

from bench.fairness.till import Till, share_of
from capacity.policy.cost import CostProfile, request_cost
from serving.gateway.demands import Granted
from serving.gateway.standing import Share
from serving.policy import allowance
from serving.policy.admission import Ask, Learned, estimate

CONTEXT = 32_768
SLOTS, SUPPLY = 32, 100.0
SLOT_MU = SUPPLY / SLOTS
TOKEN_S = 0.04
"""At the knee a token takes 40 ms, so that a slot serves 1500 of them in a minute."""
BETA = SLOT_MU / (60.0 / TOKEN_S)
PROFILE = CostProfile(version=1, base=0.0, alpha=BETA / 30, beta=BETA, gamma=0.0, epsilon=0.0, cached_factor=0.1)
PROMPT_TOKENS = 400
BEAT_S = 0.1

Lengths = Callable[[Random, float], int]


def lognormal(dice: Random, now: float) -> int:
    """A median of 180 tokens; one in a hundred has 1200 and more."""
    return max(1, min(4096, round(dice.lognormvariate(5.2, 0.8))))


def bimodal(dice: Random, now: float) -> int:
    """A word or two; one in fifty fills thousands of tokens."""
    return dice.randint(1500, 4000) if dice.random() < 0.02 else dice.randint(2, 12)


CHANGES_AT = 30.0


def turning(dice: Random, now: float) -> int:
    """Labels at first, then essays."""
    return dice.randint(2, 8) if now < CHANGES_AT else dice.randint(600, 1000)


class Sent(NamedTuple):
    at: float
    mu: float
    estimated: float
    is_reserved: bool


def send(
    lengths: Lengths,
    *,
    part: float,
    seconds: float,
    max_output: int | None,
    has_allowance: bool,
    mu_per_min: float = 4 * SUPPLY,
    gateways: int = 1,
    seed: int = 1,
) -> list[Sent]:
    """A tenant who sends at random moments what costs ``part`` of its MU/min, to the first of ``gateways``."""
    now = 0.0
    dice = Random(seed)
    till = Till(lambda: now * 1000, gateways)
    share = share_of("r", mu_per_min, PROFILE, slot_mu=SLOT_MU)
    learned = Learned()
    ask = Ask(prompts=1, choices=1, text_bytes=PROMPT_TOKENS * 4, max_output=max_output)
    running: list[tuple[float, int, int, Granted]] = []
    sent: list[Sent] = []
    beaten = 0.0
    for number in range(1_000_000):
        output = lengths(dice, now)
        cost = request_cost(PROFILE, input_tokens=PROMPT_TOKENS, output_tokens=output)
        # As much work in each minute, of whatever kind.
        now += dice.expovariate(1.0) * cost / (mu_per_min * part / 60)
        if now > seconds:
            break
        present = now
        while running and running[0][0] <= present:
            now, _, ended, granted = heapq.heappop(running)
            learned.note("k", "d", ask, input_tokens=PROMPT_TOKENS, cached_tokens=0, output_tokens=ended)
            till.settle(granted, request_cost(PROFILE, input_tokens=PROMPT_TOKENS, output_tokens=ended))
        now = present
        while beaten < now:
            till.beat()
            beaten += BEAT_S
        answer, estimated = _ask(till, share, ask, learned, has_allowance=has_allowance)
        if isinstance(answer, Granted):
            heapq.heappush(running, (now + 0.2 + output * TOKEN_S, number, output, answer))
        sent.append(Sent(now, cost, estimated, isinstance(answer, Granted)))
    return sent


def _ask(till: Till, share: Share, ask: Ask, learned: Learned, *, has_allowance: bool) -> tuple[object, float]:
    expected = estimate(ask, PROFILE, learned, key="k", deployment="d", max_model_len=CONTEXT)
    most = allowance.most_mu(ask, expected, PROFILE, learned, deployment="d", max_model_len=CONTEXT, slot_mu=SLOT_MU)
    return till.charge(share, expected.mu, most if has_allowance else expected.mu).answer, expected.mu


@pytest.mark.parametrize(
    ("lengths", "max_output", "gateways"),
    [(lognormal, None, 1), (lognormal, 4096, 4), (bimodal, None, 4), (bimodal, 4096, 1)],
)
def test_steady_owners_are_admitted_as_if_estimates_were_believed(
    lengths: Lengths, max_output: int | None, gateways: int
) -> None:
    """Also where all that they send comes to one of four gateways."""

    def told(*, has_allowance: bool) -> list[Sent]:
        return send(
            lengths,
            part=0.8,
            seconds=150.0,
            max_output=max_output,
            has_allowance=has_allowance,
            mu_per_min=2 * SUPPLY,
            gateways=gateways,
        )

    believed, held = told(has_allowance=False), told(has_allowance=True)
    assert held == believed
    assert sum(one.is_reserved for one in held) > 0.9 * len(held) > 500


def test_work_that_turns_from_short_to_long_is_admitted_as_before() -> None:
    """Estimates follow within a minute and a half. None of it meets the allowance, though the context is all that
    bounds its answers."""

    def told(*, has_allowance: bool) -> list[Sent]:
        seconds = CHANGES_AT + 180.0
        return send(turning, part=0.8, seconds=seconds, max_output=None, has_allowance=has_allowance)

    believed, held = told(has_allowance=False), told(has_allowance=True)
    assert held == believed
    later = [one for one in held if one.at > CHANGES_AT + 90.0]
    assert all(0.75 * one.mu < one.estimated < 1.8 * one.mu for one in later)
    assert sum(one.is_reserved for one in later) > 0.75 * len(later)
