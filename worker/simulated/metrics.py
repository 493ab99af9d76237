"""vLLM's metrics by vLLM's names, in Prometheus' text format."""

from __future__ import annotations

import time
from bisect import bisect_left

from worker.simulated.profile import BLOCK, EngineProfile
from worker.simulated.scheduler import Scheduler, Sequence

_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)


class Histogram:
    """A Prometheus histogram with fixed bounds, in seconds."""

    __slots__ = ("bounds", "count", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.count += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        lines, running = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            running += count
            lines.append(f'{name}_bucket{{le="{bound}",{labels}}} {running}')
        lines.append(f"{name}_sum{{{labels}}} {self.total}")
        lines.append(f"{name}_count{{{labels}}} {self.count}")
        return lines


class Metrics:
    """What the engine tells about itself. Gauges are those of the last step: a frozen core shows old ones."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0
        self.started_at = time.time()
        self.rejected = 0
        self.ttft = Histogram(_SECONDS)
        self.inter_token = Histogram(_TOKEN_SECONDS)
        self.per_output_token = Histogram(_TOKEN_SECONDS)
        self.e2e = Histogram(_SECONDS)
        self.queue = Histogram(_SECONDS)
        self.prefill = Histogram(_SECONDS)
        self.decode = Histogram(_SECONDS)

    def observe_load(self, core: Scheduler) -> None:
        self.running = len(core.running)
        self.waiting = core.waiting
        self.kv_usage = core.cache.usage

    def observe_token(self, sequence: Sequence, now: float, *, is_last: bool) -> None:
        if sequence.outputs == 1:
            self.ttft.observe(now - sequence.arrived_at)
            self.queue.observe(sequence.scheduled_at - sequence.arrived_at)
            self.prefill.observe(now - sequence.scheduled_at)
        else:
            self.inter_token.observe(now - sequence.last_at)
        sequence.last_at = now
        if is_last:
            self.e2e.observe(now - sequence.arrived_at)
            self.decode.observe(now - sequence.first_at)
            if sequence.outputs > 1:
                self.per_output_token.observe((now - sequence.first_at) / (sequence.outputs - 1))

    def text(self, core: Scheduler, profile: EngineProfile, model: str) -> str:
        """Return the exposition. Labels are those of vLLM: engine and model_name."""
        name = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        labels = f'engine="0",model_name="{name}"'
        counters, cache = core.counters, core.cache
        lines: list[str] = []

        def single(metric: str, kind: str, value: float, more: str = "") -> None:
            lines.append(f"# TYPE {metric} {kind}")
            lines.append(f"{metric}{{{more}{labels}}} {value}")

        single("vllm:num_requests_running", "gauge", self.running)
        single("vllm:num_requests_waiting", "gauge", self.waiting)
        lines.append("# TYPE vllm:num_requests_waiting_by_reason gauge")
        for reason, value in (("capacity", self.waiting), ("deferred", 0)):
            lines.append(f'vllm:num_requests_waiting_by_reason{{{labels},reason="{reason}"}} {value}')
        single("vllm:kv_cache_usage_perc", "gauge", self.kv_usage)
        single("vllm:num_preemptions_total", "counter", counters.preemptions)
        single("vllm:prompt_tokens_total", "counter", counters.prompt_tokens)
        single("vllm:prompt_tokens_cached_total", "counter", counters.cached_tokens)
        single("vllm:generation_tokens_total", "counter", counters.generation_tokens)
        single("vllm:prefix_cache_queries_total", "counter", cache.queries)
        single("vllm:prefix_cache_hits_total", "counter", cache.hits)
        lines.append("# TYPE vllm:request_success_total counter")
        for reason, count in counters.finished.items():
            # Measured on vLLM: it has the series, and counts no request there whose client has left.
            value = 0 if reason == "abort" else count
            lines.append(f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {value}')
        single("vllm:admission_rejections_total", "counter", self.rejected, 'reason="max_num_queued_reqs",')
        blocks = profile.kv_tokens // BLOCK
        info = f'block_size="{BLOCK}",num_gpu_blocks="{blocks}",kv_cache_size_tokens="{blocks * BLOCK}",'
        single("vllm:cache_config_info", "gauge", 1, info)
        single("vllm:engine_sleep_state", "gauge", 1, 'sleep_state="awake",')
        for metric, histogram in (
            ("vllm:time_to_first_token_seconds", self.ttft),
            ("vllm:inter_token_latency_seconds", self.inter_token),
            ("vllm:request_time_per_output_token_seconds", self.per_output_token),
            ("vllm:e2e_request_latency_seconds", self.e2e),
            ("vllm:request_queue_time_seconds", self.queue),
            ("vllm:request_prefill_time_seconds", self.prefill),
            ("vllm:request_decode_time_seconds", self.decode),
        ):
            lines.extend(histogram.lines(metric, labels))
        lines.append("# TYPE process_start_time_seconds gauge")
        lines.append(f"process_start_time_seconds {self.started_at}")
        lines.append("# TYPE penstock_simulated_busy_seconds_total counter")
        lines.append(f"penstock_simulated_busy_seconds_total{{{labels}}} {counters.busy_ms / 1000}")
        return "\n".join(lines) + "\n"
