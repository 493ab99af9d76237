"""How fast the owner of a reservation has back what was lent, and what that depends on.

A replica finishes the prompts that it has taken, whatever comes after. So what best effort may have pending bounds how
long an owner waits. Engine time is MU by what a replica supplies at its knee.
"""

from __future__ import annotations

import math

from capacity.policy.cost import CostProfile, token_costs
from capacity.policy.profiles import DEFAULT_CONTEXT_TOKENS, KNEE

CHEAPEST_MS = 150.0
"""Pending prefill of the least busy replica from which on nothing of best effort is added."""
BACKLOG_MS = 2_000.0
"""Pending best-effort prefill a replica, on average over a deployment."""
EXCHANGE_S = 0.2
"""Within this all gateways know of an owner: a period of one's heartbeat, and one of the others'."""
LONGEST_S = 10.0
"""No owner is kept waiting for longer: what is lent is ended before, however long its prompt."""


def engine_ms(mu: float, supply_mu_per_min: float) -> float:
    """The engine time that ``mu`` takes of a replica which supplies so much at its knee, with nothing beside it."""
    return mu * ms_per_mu(supply_mu_per_min)


def ms_per_mu(supply_mu_per_min: float) -> float:
    """Raises ValueError where a replica supplies nothing."""
    if not supply_mu_per_min > 0.0:
        raise ValueError(f"a replica must supply more than 0 MU/min, not {supply_mu_per_min}")
    return 60_000.0 * KNEE / supply_mu_per_min


def deadline_s(profile: CostProfile, *, context_tokens: int | None, supply_mu_per_min: float) -> float:
    """Seconds within which an owner has what it has bought, however much of it was lent: stated per pool.

    Gateways tell each other, and what best effort has pending at a replica is read: at most the backlog, or one prompt
    that fills the context, on top of what may be pending when it is admitted. Rounded up to tenths; ``LONGEST_S`` at
    most.
    """
    largest = token_costs(profile, input_tokens=context_tokens or DEFAULT_CONTEXT_TOKENS).prefill
    longest_ms = max(BACKLOG_MS, engine_ms(largest, supply_mu_per_min))
    # Bounded first: of a price in absurd units it is infinite.
    return math.ceil(10 * min(LONGEST_S, EXCHANGE_S + (CHEAPEST_MS + longest_ms) / 1000)) / 10
