"""What a request is expected to cost, which limits it meets, and what a refusal tells the client.

Pure: the gateway brings records and learned figures in and carries the result out. ``Learned`` is a deterministic
object over its own state, updated with what finished requests really used.
"""

from __future__ import annotations

import datetime
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from capacity.policy.cost import IMAGE_TOKEN, CostProfile, token_costs, units_cost
from serving.gateway.records import LimitKind, LimitRecord
from serving.policy.images import ImageHabit

DEFAULT_OUTPUT_TOKENS = 256
"""Expected output of a key that has not finished a request yet and names no maximum."""
DEFAULT_BYTES_PER_TOKEN = 4.0
MESSAGE_TOKENS = 4
"""What a chat template adds per message, about."""
MIN_BYTES_PER_TOKEN, MAX_BYTES_PER_TOKEN = 0.5, 16.0
MEDIA_TOKENS = 512
"""Input tokens of sound or video, and of an image of a size that a deployment has not been seen with: at least."""

OUTPUT_QUANTILE = 0.9
_LEARN = 0.1
_NO_IMAGES = ImageHabit()


class Ask(NamedTuple):
    """A request's size as parsed. ``choices``: sequences to generate; ``prompts``: prompts in the request.

    ``text_bytes`` UTF-8 bytes of all prompts, ``token_ids`` tokens given as ids, ``max_output`` per sequence.
    ``cut_to``: tokens that the engine is asked to cut each prompt to; -1: to the model's length; None: it cuts none.
    ``media``: parts that hold an image, sound or video; ``images``: of each image among them its ``token_bound``.
    ``units``: what the request is known to use of modalities (rows, KiB) before it is served.
    """

    prompts: int
    choices: int
    text_bytes: int
    messages: int = 0
    token_ids: int = 0
    media: int = 0
    max_output: int | None = None
    echo: bool = False
    cut_to: int | None = None
    units: Mapping[str, float] | None = None
    images: tuple[int, ...] = ()


class Estimate(NamedTuple):
    """Tokens and MU that a request is expected to use.

    ``limit_tokens`` is what token limits reserve: the stated maximum of output where there is one, since only
    settlement may make debt. ``prefill_mu`` and ``decode_mu`` are engine work, for routing. ``image_tokens`` are among
    ``input_tokens``. ``units`` are all modality units, as a usage record has them.
    """

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    limit_tokens: int
    mu: float
    prefill_mu: float
    decode_mu: float
    image_tokens: int
    units: Mapping[str, float]


@dataclass(slots=True)
class Habit:
    """What one key's requests to one deployment have been like."""

    output_tokens: float = 0.0
    """Running ``OUTPUT_QUANTILE`` of output tokens per sequence; 0: nothing learned."""
    cached_share: float = 0.0
    """Mean share of input tokens found in the prefix cache."""
    bytes_per_token: float = 0.0
    """Mean UTF-8 bytes per input token; 0: nothing learned."""


class Learned:
    """Habits by key and deployment, least recently used forgotten beyond ``size``."""

    def __init__(self, size: int = 50_000) -> None:
        self._size = size
        self._habits: OrderedDict[tuple[str, str], Habit] = OrderedDict()
        self._bytes_per_token: dict[str, float] = {}
        self._images: dict[str, ImageHabit] = {}

    def habit(self, key: str, deployment: str) -> Habit | None:
        return self._habits.get((key, deployment))

    def ratio(self, deployment: str) -> float:
        """Bytes per token of a deployment, or the default: for keys that have no ratio of their own."""
        return self._bytes_per_token.get(deployment) or DEFAULT_BYTES_PER_TOKEN

    def knows(self, deployment: str) -> bool:
        """Whether the deployment's bytes per token have been measured or seen."""
        return deployment in self._bytes_per_token

    def seed(self, deployment: str, bytes_per_token: float) -> None:
        """Take a measured ratio for a deployment of which nothing is known yet."""
        ratio = min(MAX_BYTES_PER_TOKEN, max(MIN_BYTES_PER_TOKEN, bytes_per_token))
        self._bytes_per_token.setdefault(deployment, ratio)

    def image_tokens(self, deployment: str, bounds: Iterable[int]) -> int:
        """Input tokens that images of these bounds are expected to become at most."""
        habit = self._images.get(deployment) or _NO_IMAGES
        return sum(habit.expected(bound, MEDIA_TOKENS) for bound in bounds)

    def note_images(self, deployment: str, ask: Ask, tokens: int) -> None:
        """Take in how many tokens the engine counted of the request's images: of several, where they are of a size."""
        count = len(ask.images)
        if count and tokens > 0 and ask.images.count(ask.images[0]) == count:
            self._images.setdefault(deployment, ImageHabit()).note(ask.images[0], -(-tokens // count))

    def note(
        self, key: str, deployment: str, ask: Ask, *, input_tokens: int, cached_tokens: int, output_tokens: int
    ) -> None:
        """Take in what a completed request used. Token counts are the engine's, over all prompts and sequences."""
        habit = self._habits.get((key, deployment))
        if habit is None:
            habit = self._habits[(key, deployment)] = Habit()
            if len(self._habits) > self._size:
                self._habits.popitem(last=False)
        else:
            self._habits.move_to_end((key, deployment))
        habit.output_tokens = _quantile_step(habit.output_tokens, output_tokens / max(1, ask.choices))
        if input_tokens > 0:
            share = min(1.0, cached_tokens / input_tokens)
            habit.cached_share += _LEARN * (share - habit.cached_share)
        text_tokens = input_tokens - ask.token_ids - MESSAGE_TOKENS * ask.messages
        # Of a prompt that was cut, the engine counts less than its bytes were.
        if ask.media == 0 and ask.cut_to is None and ask.text_bytes >= 16 and text_tokens > 0:
            ratio = min(MAX_BYTES_PER_TOKEN, max(MIN_BYTES_PER_TOKEN, ask.text_bytes / text_tokens))
            habit.bytes_per_token = _mean_step(habit.bytes_per_token, ratio)
            self._bytes_per_token[deployment] = _mean_step(self._bytes_per_token.get(deployment, 0.0), ratio)


def _mean_step(mean: float, value: float) -> float:
    return value if not mean else mean + _LEARN * (value - mean)


def _quantile_step(quantile: float, value: float) -> float:
    """One step of a running quantile (Robbins–Monro): up by p, down by 1 − p, so that it settles where P(x ≤ q) = p."""
    if not quantile:
        return max(1.0, value)
    step = max(1.0, 0.1 * quantile)
    moved = quantile + step * OUTPUT_QUANTILE if value > quantile else quantile - step * (1 - OUTPUT_QUANTILE)
    # Never step past the observation itself: a steady workload is learned exactly.
    return max(1.0, min(moved, value) if value > quantile else max(moved, value))


def estimate(
    ask: Ask, profile: CostProfile, learned: Learned, *, key: str, deployment: str, max_model_len: int | None
) -> Estimate:
    """Return what the request is expected to use. ``max_model_len`` is the context of one sequence, in tokens."""
    habit = learned.habit(key, deployment)
    ratio = (habit.bytes_per_token if habit is not None else 0.0) or learned.ratio(deployment)
    image_tokens = learned.image_tokens(deployment, ask.images)
    others = _other_tokens(ask, ratio)
    input_tokens = _cut(ask, others + image_tokens, max_model_len)
    most = ask.max_output
    ceiling = output_ceiling(ask, input_tokens, max_model_len)
    if habit is not None and habit.output_tokens:
        expected = min(ceiling, habit.output_tokens)
    else:
        # Nothing learned: a stated maximum is the best guess there is.
        expected = min(ceiling, DEFAULT_OUTPUT_TOKENS) if most is None else ceiling
    output_tokens = math.ceil(expected) * ask.choices
    reserved = math.ceil((expected if most is None else ceiling) * ask.choices)
    cached = int(input_tokens * habit.cached_share) if habit is not None else 0
    cost = token_costs(profile, input_tokens=input_tokens, cached_tokens=cached, output_tokens=output_tokens)
    # Of a prompt that is cut, or fills the context, the text is not the images'.
    image_tokens = max(0, min(image_tokens, input_tokens - others))
    units = ask.units or ({IMAGE_TOKEN: float(image_tokens)} if image_tokens else {})
    # Rows, bytes and images are read as a prompt is: work that is all there when the request comes.
    extra = units_cost(profile, units) if units else 0.0
    total, prefill = cost.total + extra, cost.prefill + extra
    return Estimate(
        input_tokens, cached, output_tokens, input_tokens + reserved, total, prefill, cost.decode, image_tokens, units
    )


def _other_tokens(ask: Ask, ratio: float) -> int:
    """Input tokens of all but images, at ``ratio`` bytes a token."""
    text = ask.token_ids + ask.text_bytes / ratio + MESSAGE_TOKENS * ask.messages
    return math.ceil(text) + MEDIA_TOKENS * (ask.media - len(ask.images))


def _cut(ask: Ask, tokens: int, max_model_len: int | None) -> int:
    """What the engine reads of an input of ``tokens``."""
    tokens = max(ask.prompts, tokens)
    if ask.cut_to is not None and ask.cut_to >= 0:
        tokens = min(tokens, max(1, ask.cut_to) * max(1, ask.prompts))
    return tokens if max_model_len is None else min(tokens, max_model_len * ask.prompts)


def input_tokens(ask: Ask, ratio: float, *, image_tokens: int, max_model_len: int | None) -> int:
    """Input tokens where ``ratio`` bytes are one, and images are ``image_tokens``."""
    return _cut(ask, _other_tokens(ask, ratio) + image_tokens, max_model_len)


def output_ceiling(ask: Ask, input_tokens: int, max_model_len: int | None) -> float:
    """Tokens that each sequence can have at most: as asked, and as the context has room; infinite: nobody says."""
    ceiling: float = math.inf if ask.max_output is None else ask.max_output
    if max_model_len is None:
        return ceiling
    return min(ceiling, max(1, max_model_len - input_tokens // max(1, ask.prompts)))


def untold_units(expected: Estimate, *, input_tokens: int) -> Mapping[str, float]:
    """Modality units of a request of whose input the engine counted ``input_tokens``, and did not say of what.

    What text is not expected to take is the images', as far as they are expected to.
    """
    if not expected.image_tokens:
        return {}
    left = input_tokens - (expected.input_tokens - expected.image_tokens)
    return {IMAGE_TOKEN: float(min(max(0, left), expected.image_tokens))}


def applicable(limits: Iterable[LimitRecord], *models: str) -> tuple[LimitRecord, ...]:
    """The limits that speak of one of ``models``: a model's name, and that of an adapter on it."""
    return tuple(limit for limit in limits if not limit.model or limit.model in models)


Meter = Literal[0, 1, 2]
"""What of a request a limit counts: its place in what ``metered`` returns."""
TOKENS: Meter = 0
MU: Meter = 1
MONEY: Meter = 2
METER: dict[LimitKind, Meter] = {
    "tokens_per_min": TOKENS,
    "mu_per_min": MU,
    "mu_per_day": MU,
    "mu_per_month": MU,
    "money_per_day": MONEY,
    "money_per_month": MONEY,
}
"""Other kinds count requests."""


def metered(*, tokens: int, mu: float, money: float) -> tuple[float, float, float]:
    """What a request takes of limits in tokens, MU and money."""
    return float(tokens), mu, money


def actual_amounts(limits: Iterable[LimitRecord], *, tokens: int, mu: float, money: float) -> Mapping[str, float]:
    """What the request really took of each limit of tokens, MU or money, by limit id. Other kinds are as estimated."""
    amounts = metered(tokens=tokens, mu=mu, money=money)
    return {limit.id: amounts[METER[limit.kind]] for limit in limits if limit.kind in METER}


class Refusal(NamedTuple):
    """A 429 in words: message, OpenAI's error ``type``, and the seconds to wait."""

    message: str
    type: str
    retry_after_s: float


_UNITS: dict[LimitKind, str] = {
    "requests_per_min": "requests per minute",
    "tokens_per_min": "tokens per minute",
    "mu_per_min": "model units (MU) per minute",
    "mu_per_day": "model units (MU) per day",
    "mu_per_month": "model units (MU) per month",
    "money_per_day": "per day",
    "money_per_month": "per month",
}
_LONGEST_S = 3600.0


def refusal(limit: LimitRecord, *, asked: float, remaining: float, retry_after_s: float, currency: str = "") -> Refusal:
    """Turn a limit that stands in the way into what the client is told. ``currency`` is what money is counted in.

    Bounds the wait to 1 ms .. 1 h, but for a budget: that comes back when its day or month is over.
    """
    wait_s = max(0.001, retry_after_s if limit.is_budget else min(_LONGEST_S, retry_after_s))
    scope = f" for model '{limit.model}'" if limit.model else ""
    left = amount_left(limit, remaining)
    if limit.kind == "concurrency":
        text = f"Limit of {limit.value:g} concurrent requests{scope} reached. Try again in {wait_s:.3g} s."
        return Refusal(text, "requests", wait_s)
    unit = f"{currency} {_UNITS[limit.kind]}".strip() if limit.kind.startswith("money_") else _UNITS[limit.kind]
    state = f"of {limit.value:g} {unit}{scope} reached: {left} left, {asked:.6g} asked for."
    if limit.is_budget:
        until = datetime.datetime.fromtimestamp(limit.ends_at, datetime.UTC)
        text = f"Budget {state} It is renewed on {until:%Y-%m-%d at %H:%M} UTC; trying again before does not help."
        return Refusal(text, EXHAUSTED, wait_s)
    text = f"Rate limit {state} Try again in {wait_s:.3g} s."
    return Refusal(text, "requests" if limit.kind == "requests_per_min" else "tokens", wait_s)


EXHAUSTED = "insufficient_quota"
"""OpenAI's word for a budget that is used up: its clients do not take it for a limit that passes."""


def is_fine(limit: LimitRecord) -> bool:
    """Whether less than one of its unit matters: of MU and money."""
    return limit.kind.startswith(("mu_", "money_"))


def amount_left(limit: LimitRecord, remaining: float) -> str:
    """What is left, never rounded up: in whole ones, of MU and money in thousandths."""
    if is_fine(limit):
        return f"{math.floor(max(0.0, remaining) * 1000) / 1000:.10g}"
    return f"{max(0, math.floor(remaining))}"


def limit_headers(limits: Iterable[LimitRecord]) -> dict[str, str]:
    """``x-ratelimit-limit-*``: the tightest limit of each kind that holds for the request."""
    tightest: dict[LimitKind, float] = {}
    for limit in limits:
        tightest[limit.kind] = min(limit.value, tightest.get(limit.kind, math.inf))
    return {f"x-ratelimit-limit-{_HEADER[kind]}": _stated(value) for kind, value in tightest.items()}


def _stated(value: float) -> str:
    """A limit as it was set: half an MU, or a budget of 1.5, is not rounded to what nobody may use."""
    return f"{value:.0f}" if value % 1.0 == 0.0 else f"{value:.10g}"


def header_names(limit: LimitRecord) -> tuple[str, str]:
    """Of what remains, and of the time until all does; the latter empty for what does not refill by time."""
    name = _HEADER[limit.kind]
    refills = limit.kind != "concurrency" and not limit.is_budget
    return f"x-ratelimit-remaining-{name}", f"x-ratelimit-reset-{name}" if refills else ""


def refusal_headers(limit: LimitRecord, *, remaining: float, retry_after_s: float) -> dict[str, str]:
    """``x-ratelimit-remaining-*`` and ``-reset-*`` of the limit that stands in the way; and its kind, as the reason.

    Of a budget also that another try does not help, in the words that OpenAI's clients obey.
    """
    name = _HEADER[limit.kind]
    headers = {
        f"x-ratelimit-remaining-{name}": amount_left(limit, remaining),
        f"x-ratelimit-reset-{name}": f"{max(0.001, retry_after_s):.3f}s",
        "x-penstock-reason": limit.kind,
    }
    return headers | {"x-should-retry": "false"} if limit.is_budget else headers


_HEADER: dict[LimitKind, str] = {
    "requests_per_min": "requests",
    "tokens_per_min": "tokens",
    "mu_per_min": "mu",
    "concurrency": "concurrency",
    "mu_per_day": "mu-day",
    "mu_per_month": "mu-month",
    "money_per_day": "money-day",
    "money_per_month": "money-month",
}
