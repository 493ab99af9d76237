"""Prometheus metrics of one gateway process. The hot path adds to plain numbers; families are made when scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from serving.gateway.demands import PHASES, Phase

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


class ClassMetrics:
    """What the requests of one model and service class added up to."""

    __slots__ = ("admitted", "mu", "refusals", "wait")

    def __init__(self) -> None:
        self.admitted = 0
        self.mu = 0.0
        self.refusals: defaultdict[str, int] = defaultdict(int)
        """Requests that got no place on a replica, by reason."""
        self.wait = Histogram()
        """Waits for a place of those who got one."""


class ModelMetrics:
    """What the requests of one model added up to."""

    __slots__ = (
        "cached_tokens",
        "classes",
        "claw_back",
        "claw_backs_late",
        "duration",
        "first_byte",
        "input_tokens",
        "made_way",
        "mu",
        "output_tokens",
        "requests",
    )

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        """By (outcome, status)."""
        self.input_tokens = self.cached_tokens = self.output_tokens = 0
        self.mu = 0.0
        self.first_byte = Histogram()
        self.duration = Histogram()
        self.classes: defaultdict[str, ClassMetrics] = defaultdict(ClassMetrics)
        self.claw_back = Histogram()
        """How long owners of reservations had found no room."""
        self.claw_backs_late = 0
        """How often that was longer than the pool says."""
        self.made_way = 0
        """How often a best-effort prompt that was being read was put back for an owner."""


class Metrics:
    """Everything counts since the process started. ``model`` is a deployment's name: no client chooses a label."""

    def __init__(self, gauges: Callable[[], dict[str, float]], phase: Callable[[], Phase]) -> None:
        """``gauges`` gives current values by metric name, ``phase`` by whose word limits hold, read when scraped."""
        self._gauges = gauges
        self._phase = phase
        self.models: defaultdict[str, ModelMetrics] = defaultdict(ModelMetrics)
        self.refusals: defaultdict[str, int] = defaultdict(int)
        """Requests answered before admission, by error code."""
        self.limit_refusals: defaultdict[str, int] = defaultdict(int)
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
        yield from self._by_class()
        yield _counter(
            "penstock_gateway_limit_refusals",
            "Requests that a limit stood in the way of, by its kind.",
            "kind",
            {(kind,): n for kind, n in self.limit_refusals.items()},
        )
        phases = GaugeMetricFamily("penstock_gateway_limits", "1 for by whose word limits hold now.", labels=["by"])
        now = self._phase()
        for phase in PHASES:
            phases.add_metric([phase], float(phase == now))
        yield phases
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"penstock_gateway_{name}", name.replace("_", " "), value=value)

    def _by_class(self) -> Iterator[Metric]:
        found = {(name, word): c for name, m in self.models.items() for word, c in m.classes.items()}
        yield _counter(
            "penstock_gateway_class_admitted",
            "Requests that got a place on a replica.",
            "model class",
            {key: c.admitted for key, c in found.items()},
        )
        yield _counter(
            "penstock_gateway_class_mu",
            "Model units used.",
            "model class",
            {key: c.mu for key, c in found.items()},
        )
        yield _counter(
            "penstock_gateway_class_refusals",
            "Requests that got no place on a replica.",
            "model class reason",
            {(*key, reason): n for key, c in found.items() for reason, n in c.refusals.items()},
        )
        waits = {key: c.wait for key, c in found.items()}
        text = "Wait for a place on a replica."
        yield _histogram("penstock_gateway_class_wait_seconds", text, waits, labels="model class")
        returns = {name: m.claw_back for name, m in self.models.items() if m.claw_back.total}
        text = "How long owners of reservations had found no room."
        yield _histogram("penstock_gateway_claw_back_seconds", text, returns)
        yield _counter(
            "penstock_gateway_claw_backs_late",
            "How often that was longer than the pool's deadline.",
            "model",
            {(name,): m.claw_backs_late for name, m in self.models.items() if m.claw_back.total},
        )
        yield _counter(
            "penstock_gateway_made_way",
            "How often a long best-effort prompt was put back in the queue for an owner, before its first token.",
            "model",
            {(name,): m.made_way for name, m in self.models.items() if m.made_way},
        )


def _counter(name: str, text: str, labels: str, values: Mapping[Any, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels.split())
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _histogram(name: str, text: str, values: Mapping[Any, Histogram], labels: str = "model") -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels.split())
    for key, histogram in values.items():
        family.add_metric([key] if isinstance(key, str) else list(key), histogram.buckets(), histogram.total)
    return family
