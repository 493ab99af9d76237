"""Does an engine still cost what its calibration says? Online regression of live times on those that it predicts.

Each minute an engine tells how long requests took to their first token and how far apart the further tokens came. The
curve of the calibration says how long both should take under this load: by interpolation between its levels, scaled to
the requests that really came. Observed over predicted is a scale that recursive least squares with forgetting follows:
1 while nothing has changed, 1.3 for an engine that has become 30 % slower.

Pure, over an explicit state that is plain JSON: production, tests and replay call the same function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from capacity.policy.cost import CostProfile, token_costs

Kind = Literal["ttft", "tpot"]
KINDS: tuple[Kind, ...] = ("tpot", "ttft")
_WORDS: Mapping[Kind, str] = {"tpot": "further tokens", "ttft": "first tokens"}
_P95_SIGMAS = 1.645


@dataclass(frozen=True, slots=True)
class Config:
    """``forgetting``: weight of the past per minute (0.9: about ten minutes are remembered). ``raise_at`` and
    ``clear_at`` bound the relative deviation of the scale, by kind: first tokens wait in a queue, and scatter more.

    ``least_minutes`` of evidence, and ``sigmas`` of its standard error, stand before an alarm; it must hold for
    ``hold_minutes``. A minute counts as evidence with ``least_samples`` or more, and up to ``most_load`` of the knee:
    beyond it requests queue, and their times say nothing of the engine.
    """

    forgetting: float = 0.9
    raise_at: Mapping[Kind, float] = field(default_factory=lambda: {"tpot": 0.15, "ttft": 0.35})
    clear_at: Mapping[Kind, float] = field(default_factory=lambda: {"tpot": 0.08, "ttft": 0.2})
    least_minutes: int = 6
    hold_minutes: int = 3
    sigmas: float = 3.0
    least_samples: Mapping[Kind, int] = field(default_factory=lambda: {"tpot": 100, "ttft": 10})
    most_load: float = 1.1
    outlier: float = 4.0
    """A minute that deviates by more than this factor is held to it: one pause must not outweigh an hour."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the calibration's curve: engine ms of work that a replica completed per minute, and mean times."""

    work_ms_per_min: float
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class Curve:
    """What a calibration predicts. ``times`` are its terms in engine ms; ``prefill_ms`` and ``decode_ms`` are those of
    the mean request of its mix, per request and per output token; ``knee_ms_per_min`` is the work at the knee."""

    times: CostProfile
    levels: tuple[Level, ...]
    prefill_ms: float
    decode_ms: float
    knee_ms_per_min: float


@dataclass(frozen=True, slots=True)
class Minute:
    """What the engines of a deployment did in a minute, all together. Sums of seconds, counts and tokens.

    ``replicas``: how many of them were measured; ``seconds``: over how long.
    """

    replicas: int
    seconds: float
    requests: float
    input_tokens: float
    cached_tokens: float
    output_tokens: float
    ttft_s: float
    ttft_count: float
    itl_s: float
    itl_count: float


@dataclass(frozen=True, slots=True)
class Channel:
    """One regression: ``scale`` observed per predicted, ``precision`` its weight, ``scatter`` the variance of the
    residuals' logarithms, ``minutes`` of evidence, ``over`` minutes in a row beyond the bound."""

    scale: float = 0.0
    precision: float = 0.0
    scatter: float = 0.0
    minutes: int = 0
    over: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """What is carried from minute to minute. ``calibration``: id of the one that it speaks of."""

    calibration: str = ""
    channels: Mapping[str, Channel] = field(default_factory=dict, hash=False)
    alarm: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, stored: Any, *, calibration: str) -> Memory:
        """From its JSON; a blank one where it is of another calibration or of another version."""
        try:
            if stored["calibration"] != calibration:
                return cls(calibration)
            channels = {str(name): Channel(**one) for name, one in stored["channels"].items()}
            return cls(calibration, channels, bool(stored["alarm"]))
        except (KeyError, TypeError, AttributeError):
            return cls(calibration)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``change``: the alarm was raised or cleared by this minute. ``scales``: observed per predicted, by kind, where
    there is enough evidence; ``reason`` says what it means, and what to do."""

    alarm: bool
    change: bool
    reason: str
    scales: Mapping[str, float]
    minutes: int


def observe(memory: Memory, curve: Curve, minute: Minute, config: Config | None = None) -> tuple[Memory, Verdict]:
    """Take one minute into account. A minute with too little to say leaves everything as it was."""
    config = config or Config()
    ratios = residuals(curve, minute, config)
    channels = dict(memory.channels)
    for kind, ratio in ratios.items():
        channels[kind] = _learn(channels.get(kind, Channel()), ratio, kind, config, alarm=memory.alarm)
    if memory.alarm:
        alarm = not all(_is_clear(channels[kind], kind, config) for kind in KINDS if kind in channels)
    else:
        alarm = any(channels[kind].over >= config.hold_minutes for kind in KINDS if kind in channels)
    following = replace(memory, channels=channels, alarm=alarm)
    return following, Verdict(
        alarm=alarm,
        change=alarm != memory.alarm,
        reason=_reason(channels, alarm, config),
        scales={kind: math.exp(one.scale) for kind, one in channels.items() if one.minutes >= config.least_minutes},
        minutes=max((one.minutes for one in channels.values()), default=0),
    )


def residuals(curve: Curve, minute: Minute, config: Config | None = None) -> dict[Kind, float]:
    """Return the logarithm of observed over predicted time by kind, for what the minute has enough of."""
    config = config or Config()
    if minute.requests <= 0 or minute.replicas <= 0 or minute.seconds <= 0 or not curve.levels:
        return {}
    mean = _Mean.of(minute)
    work = token_costs(
        curve.times,
        input_tokens=round(mean.inputs),
        cached_tokens=round(mean.cached),
        output_tokens=round(mean.outputs),
    ).total
    load = work * minute.requests * 60.0 / minute.seconds / minute.replicas
    if curve.knee_ms_per_min > 0 and load > config.most_load * curve.knee_ms_per_min:
        return {}
    prefill, decode = request_ms(curve.times, mean.inputs, mean.cached, mean.outputs)
    expected = {
        "ttft": _at(curve.levels, load, "ttft_ms") * _ratio(prefill, curve.prefill_ms),
        "tpot": _at(curve.levels, load, "tpot_ms") * _ratio(decode, curve.decode_ms),
    }
    seen = {"ttft": (minute.ttft_s, minute.ttft_count), "tpot": (minute.itl_s, minute.itl_count)}
    found: dict[Kind, float] = {}
    for kind in KINDS:
        total_s, count = seen[kind]
        if count >= config.least_samples[kind] and total_s > 0 and expected[kind] > 0:
            found[kind] = math.log(total_s / count * 1000.0 / expected[kind])
    return found


def request_ms(times: CostProfile, inputs: float, cached: float, outputs: float) -> tuple[float, float]:
    """Engine milliseconds of a request's prefill, its base included, and of each of its output tokens."""
    costs = token_costs(
        times, input_tokens=round(inputs), cached_tokens=round(cached), output_tokens=max(1, round(outputs))
    )
    return costs.total - costs.decode, costs.decode / max(1, round(outputs))


def mean_of(percentiles: Mapping[str, float]) -> float:
    """The mean of times of which ``p50`` and ``p95`` are known, taken for log-normal. 0 without a median."""
    median, high = percentiles.get("p50", 0.0), percentiles.get("p95", 0.0)
    if median <= 0:
        return 0.0
    sigma = math.log(high / median) / _P95_SIGMAS if high > median else 0.0
    return median * math.exp(min(sigma, 1.5) ** 2 / 2)


@dataclass(frozen=True, slots=True)
class _Mean:
    inputs: float
    cached: float
    outputs: float

    @classmethod
    def of(cls, minute: Minute) -> _Mean:
        inputs = max(0.0, minute.input_tokens / minute.requests)
        cached = min(max(0.0, minute.cached_tokens / minute.requests), inputs)
        return cls(inputs, cached, max(0.0, minute.output_tokens / minute.requests))


def _ratio(live: float, calibrated: float) -> float:
    return live / calibrated if live > 0 and calibrated > 0 else 1.0


def _at(levels: Sequence[Level], load: float, name: str) -> float:
    """The curve at ``load``: straight lines between the levels, and on through the lowest two below these.

    Below, never under half of the lowest level: that line is a guess.
    """
    rows = sorted((one.work_ms_per_min, getattr(one, name)) for one in levels if getattr(one, name) > 0)
    if not rows:
        return 0.0
    if len(rows) == 1 or load >= rows[-1][0]:
        return float(rows[-1][1] if load >= rows[-1][0] else rows[0][1])
    index = next((i for i, (at, _) in enumerate(rows) if at > load), len(rows) - 1)
    (low, below), (high, above) = rows[max(0, index - 1)], rows[max(1, index)]
    slope = (above - below) / (high - low) if high > low else 0.0
    return float(max(below + slope * (load - low), 0.5 * rows[0][1]))


def _learn(channel: Channel, ratio: float, kind: Kind, config: Config, *, alarm: bool) -> Channel:
    """Recursive least squares of a constant, with forgetting: each minute weighs less than the one after it."""
    bound = math.log(config.outlier)
    seen = min(bound, max(-bound, ratio))
    precision = config.forgetting * channel.precision + 1.0
    error = seen - channel.scale
    gain = 1.0 / precision
    scale = channel.scale + gain * error
    scatter = (1.0 - gain) * (channel.scatter + gain * error * error)
    learnt = Channel(scale, precision, scatter, channel.minutes + 1, channel.over)
    is_over = _is_over(learnt, kind, config)
    return replace(learnt, over=learnt.over + 1 if is_over and not alarm else 0)


def _is_over(channel: Channel, kind: Kind, config: Config) -> bool:
    if channel.minutes < config.least_minutes:
        return False
    return abs(channel.scale) - config.sigmas * _standard_error(channel, config) > 0 and abs(
        channel.scale
    ) >= math.log1p(config.raise_at[kind])


def _is_clear(channel: Channel, kind: Kind, config: Config) -> bool:
    return abs(channel.scale) <= math.log1p(config.clear_at[kind])


def _standard_error(channel: Channel, config: Config) -> float:
    """Of the scale's logarithm: as many minutes as are remembered have averaged their scatter."""
    remembered = channel.precision * (1.0 + config.forgetting) / 2.0
    return math.sqrt(channel.scatter / max(1.0, remembered))


def _reason(channels: Mapping[str, Channel], alarm: bool, config: Config) -> str:
    told = [kind for kind in KINDS if kind in channels and channels[kind].minutes >= config.least_minutes]
    if not told:
        most = max((one.minutes for one in channels.values()), default=0)
        return f"{most} of {config.least_minutes} minutes of evidence: nothing can be said yet"
    parts = [f"{_WORDS[kind]} take {math.exp(channels[kind].scale):.2f} times as long" for kind in told]
    text = f"{' and '.join(parts)} as the calibration predicts for this load"
    if not alarm:
        return text
    slower = max(channels[kind].scale for kind in told) > 0
    meaning = "the price is too low for what the engine costs now" if slower else "the price is too high"
    return f"{text}: {meaning}, and less or more can be sold than is there. Calibrate again"
