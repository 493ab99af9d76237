"""How far a reservation's requests may be trusted to cost what requests like them have cost.

A request is charged its estimate, which its key's earlier requests have taught. Whoever has sent thousands of requests
with answers of a word, and now sends hundreds with long ones, is estimated at a word each: all would be admitted, and
use many times what was reserved before their debts stop the next. So what requests may take **beyond** their estimates
is bounded while they run. The **discount** of a request is what it can take within a minute at most (``most_mu``) less
its estimate. All discounts of a reservation's requests that have not ended are held against its **allowance**
(``allowance_mu``); a request for which that has no room is charged the most that it can take, and its discount is none.

A slot of a replica serves its supply ÷ its target concurrency in a minute: that is the most that one more answer can
take within one, however long it may become. So an owner who uses what it has reserved keeps as many slots busy as that
is worth, and needs half of its allowance, whatever its requests say of their length.

Gateways tell each other what they hold with every beat, and nobody is asked for a request: from one beat to the next
each may hold, in equal parts, what was free then. While anything of that is left, one more request is held whatever
its discount, so that a small reservation before many gateways is not charged by its largest requests. So one gateway
holds the allowance and one request at most. Several that fill it at the same moment may hold twice the allowance, and
one request each, since none sees at once what the others do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from capacity.policy.cost import CostProfile, tier_factor, token_costs, units_cost
from serving.gateway.records import ReplicaRecord
from serving.policy import admission
from serving.policy.admission import Ask, Estimate, Learned

_MINUTES = 2.0
_NOTHING = (0.0, 0)


def slot_mu(replicas: Iterable[ReplicaRecord]) -> float:
    """MU that a slot serves in a minute where all are busy, on average; infinite where nothing is known of any."""
    supply = slots = 0.0
    for replica in replicas:
        supply += replica.supply_mu_per_min
        slots += replica.target_concurrency
    return supply / slots if slots > 0.0 and supply > 0.0 else math.inf


def most_mu(
    ask: Ask,
    expected: Estimate,
    profile: CostProfile,
    learned: Learned,
    *,
    deployment: str,
    max_model_len: int | None,
    slot_mu: float,
) -> float:
    """What the request can take within a minute, in MU; at least what is ``expected``.

    Nothing of it is cached, its text is as dense as the deployment's, or as text usually is, and each of its sequences
    becomes as long as it may, and as a slot can make it in a minute (``slot_mu``).
    """
    dense = min(learned.ratio(deployment), admission.DEFAULT_BYTES_PER_TOKEN)
    input_tokens = max(
        expected.input_tokens,
        admission.input_tokens(ask, dense, image_tokens=expected.image_tokens, max_model_len=max_model_len),
    )
    ceiling = admission.output_ceiling(ask, expected.input_tokens, max_model_len)
    slots = slot_mu * ask.choices if ask.choices else 0.0
    decode, output_tokens = slots, 0
    if ceiling < math.inf:
        output_tokens = math.ceil(ceiling) * ask.choices
    cost = token_costs(profile, input_tokens=input_tokens, output_tokens=output_tokens)
    if ceiling < math.inf:
        decode = min(slots, cost.decode)
    if not decode < math.inf:
        # Neither a maximum nor a replica: nothing bounds it, and nothing serves it either.
        decode = expected.decode_mu
    factor = tier_factor(profile, input_tokens) if profile.long_input_tiers else 1.0
    extra = units_cost(profile, expected.units) if expected.units else 0.0
    return max(expected.mu, cost.total + factor * (decode - cost.decode) + extra)


def allowance_mu(mu_per_min: float, bucket_mu: float) -> float:
    """The allowance of a reservation whose bucket holds ``bucket_mu``: two minutes' worth, or that if it is more."""
    return max(_MINUTES * mu_per_min, bucket_mu)


class Hold:
    """A discount that is held until its request ends. ``release`` may be called again."""

    __slots__ = ("_discount", "_name", "_of")

    def __init__(self, of: Unsettled, name: str, discount: float) -> None:
        self._of: Unsettled | None = of
        self._name = name
        self._discount = discount

    def release(self) -> None:
        of, self._of = self._of, None
        if of is not None:
            of.release(self._name, self._discount)


class Unsettled:
    """The discounts of one gateway's requests by reservation, in MU, and what it knows of the others'."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._then: dict[str, float] = {}
        self._others: Mapping[str, float] = {}
        self._gateways = 1

    def tell(self) -> dict[str, float]:
        """What is held, for the other gateways: once for each beat."""
        return {name: held for name, (held, _) in self._sums.items()}

    def hear(self, others: Mapping[str, float], gateways: int) -> None:
        """What all others hold together, of ``gateways`` that there are with this one."""
        self._others, self._gateways = others, gateways
        self._then = self.tell()

    def room(self, name: str, allowance_mu: float, *, alone: int = 0) -> float:
        """How much more may be held for ``name``; while that is more than 0, one more request is. ``alone``: while
        nobody hears of anybody, how many gateways there are; each has an equal part then."""
        held = self._sums.get(name, _NOTHING)[0]
        if alone:
            return allowance_mu / alone - held
        then = self._then.get(name, 0.0)
        free = max(0.0, allowance_mu - self._others.get(name, 0.0) - then)
        return then + free / self._gateways - held

    def hold(self, name: str, discount: float) -> Hold:
        """Hold ``discount`` as well."""
        held, count = self._sums.get(name, _NOTHING)
        self._sums[name] = (held + discount, count + 1)
        return Hold(self, name, discount)

    def release(self, name: str, discount: float) -> None:
        """The request has ended."""
        held, count = self._sums[name]
        if count == 1:
            # So that no rounding is left behind.
            del self._sums[name]
        else:
            self._sums[name] = (max(0.0, held - discount), count - 1)
