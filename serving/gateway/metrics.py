"""Prometheus metrics of one gateway process. The hot path adds to plain numbers; families are made when scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts per bucket and a sum, for one label set."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        running, rows = 0, []
        for bound, count in zip([*map(str, _SECONDS), "+Inf"], self.counts, strict=True):
            running += count
            rows.append((bound, float(running)))
        return rows


class ModelMetrics:
    """What the requests of one model added up to."""

    __slots__ = ("cached_tokens", "duration", "first_byte", "input_tokens", "mu", "output_tokens", "requests")

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        """By (outcome, status)."""
        self.input_tokens = self.cached_tokens = self.output_tokens = 0
        self.mu = 0.0
        self.first_byte = Histogram()
        self.duration = Histogram()


class Metrics:
    """Everything counts since the process started. ``model`` is a deployment's name: no client chooses a label."""

    def __init__(self, gauges: Callable[[], dict[str, float]]) -> None:
        """``gauges`` gives current values by metric name, read when scraped."""
        self._gauges = gauges
        self.models: defaultdict[str, ModelMetrics] = defaultdict(ModelMetrics)
        self.refusals: defaultdict[str, int] = defaultdict(int)
        """Requests answered before admission, by error code."""
        self.retries: defaultdict[str, int] = defaultdict(int)
        self.events = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """prometheus_client's collector interface."""
        models = self.models.items()
        yield _counter(
            "penstock_gateway_requests",
            "Admitted requests that ended.",
            "model outcome status",
            {(name, outcome, str(status)): n for name, m in models for (outcome, status), n in m.requests.items()},
        )
        yield _counter(
            "penstock_gateway_refusals",
            "Requests answered before admission.",
            "code",
            {(code,): n for code, n in self.refusals.items()},
        )
        tokens = {
            (name, kind): n
            for name, m in models
            for kind, n in (("input", m.input_tokens), ("cached", m.cached_tokens), ("output", m.output_tokens))
        }
        yield _counter("penstock_gateway_tokens", "Tokens by kind.", "model kind", tokens)
        yield _counter("penstock_gateway_mu", "Model units used.", "model", {(name,): m.mu for name, m in models})
        yield _counter(
            "penstock_gateway_retries",
            "Attempts made elsewhere after a replica's failure.",
            "model",
            {(name,): n for name, n in self.retries.items()},
        )
        yield _counter("penstock_gateway_stream_events", "Events relayed.", "", {(): self.events})
        first_byte = {name: m.first_byte for name, m in models if m.first_byte.total}
        yield _histogram("penstock_gateway_first_byte_seconds", "Arrival to first byte to the client.", first_byte)
        durations = {name: m.duration for name, m in models}
        yield _histogram("penstock_gateway_request_seconds", "Arrival to end.", durations)
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"penstock_gateway_{name}", name.replace("_", " "), value=value)


def _counter(name: str, text: str, labels: str, values: Mapping[Any, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels.split())
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _histogram(name: str, text: str, values: dict[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=["model"])
    for model, histogram in values.items():
        family.add_metric([model], buckets=histogram.buckets(), sum_value=histogram.total)
    return family
