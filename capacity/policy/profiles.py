"""Default cost profiles, from model size and hardware alone, for pools that nobody has measured yet.

A roofline estimate of engine time per token, turned into model units (MU) so that one reference replica supplies
100 MU/min at its SLO-compliant knee. Good for ratios (output against input, long against short) within a factor of
about two; always marked uncalibrated. Calibration replaces it.

Sources
- Accelerator peaks: the makers' data sheets, dense bf16 (fp16 where there is no bf16), without sparsity.
- ``PREFILL_EFFICIENCY`` 0.32 and ``BANDWIDTH_EFFICIENCY`` 0.8: an 8B model on one H100 prefills about 20,000 tokens/s
  (16 GFLOP per token at 32 % of 989 TFLOP/s) and streams weights and KV cache at about 80 % of the peak bandwidth.
- ``STEP_OVERHEAD_S`` 1.6 ms a decode step and ``SEQUENCE_OVERHEAD_S`` 50 µs a sequence in it: host and sampling time
  of the same engine. ``KNEE_BATCH`` 48: its decode batch at the knee in simulation of mixed traffic. Together they give
  about 4 input tokens for an output token at 8B, the lower end of what Azure PTU charges (4:1 to 8:1).
- ``KNEE`` 0.62: the highest load at which TTFT and TPOT objectives still hold, as a share of saturated throughput
  (0.60 to 0.65 in simulation of mixed traffic).
- Architecture from size: Llama 3 configurations (1.2B, 8B, 70B, 405B): KV bytes per token grow like P^0.4 from
  131,072 at 8B, layers × hidden size like P^0.74 from 131,072 at 8B; both within a factor of two over that range.
- Classic models: CPU seconds of MLflow's scoring server with a scikit-learn classifier on one core, 1 to 5,000 rows.
- CPU: per-request engine time of vLLM on one AVX-512 core with a model of 0.1M parameters, 6 × 4 grid of lengths,
  non-negative fit on relative error (median error 9 %): pure overhead, to which the roofline of larger models is added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from capacity.policy.cost import KIB, MEDIA, ROW, CostProfile

KNEE = 0.62
"""Share of saturated throughput at which a replica still keeps its objectives."""

REFERENCE_MU_PER_MIN = 100.0
"""What one reference replica supplies at its knee, by definition of the unit."""

PREFILL_EFFICIENCY = 0.32
BANDWIDTH_EFFICIENCY = 0.8
STEP_OVERHEAD_S = 1.6e-3
SEQUENCE_OVERHEAD_S = 50e-6
KNEE_BATCH = 48
"""Sequences that share a decode step at the knee, where memory allows."""

DEFAULT_PARAMETERS = 8_030_000_000
"""Assumed where the size is unknown: the most served class of open models."""

DEFAULT_CONTEXT_TOKENS = 8192
CACHED_FACTOR = 0.1
"""Share of alpha for a cached token: others charge 0 (Azure PTU) to 0.25 (Alibaba PTU)."""

MIN_OUTPUT_RATIO = 2.0
"""Least price of an output token in input tokens (the weights of VTC), where decode is bound by compute too."""

ENCODER_SHARE = 0.5
"""Price of encoding a token of an image, of sound or video, in input tokens, beside its price as one. Most towers of
0.1B to 0.7B weights read 4 patches a token: 0.35 for Qwen2-VL 7B, 0.15 for InternVL2 8B, 1.8 for Qwen2-VL 2B."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What an engine runs on. ``flops`` per second dense in its serving type, ``bandwidth`` bytes/s, memory bytes."""

    name: str
    flops: float
    bandwidth: float
    memory_bytes: int
    is_cpu: bool = False


_GIB = 1 << 30

ACCELERATORS: tuple[Hardware, ...] = (
    Hardware("B200", 2250e12, 8.0e12, 180 * _GIB),
    Hardware("H200", 989e12, 4.8e12, 141 * _GIB),
    Hardware("H100", 989e12, 3.35e12, 80 * _GIB),
    Hardware("A100", 312e12, 2.04e12, 80 * _GIB),
    Hardware("MI300X", 1307e12, 5.3e12, 192 * _GIB),
    Hardware("L40S", 362e12, 0.864e12, 48 * _GIB),
    Hardware("L4", 121e12, 0.3e12, 24 * _GIB),
    Hardware("A10", 125e12, 0.6e12, 24 * _GIB),
    Hardware("RTX 4090", 165e12, 1.008e12, 24 * _GIB),
    Hardware("T4", 65e12, 0.32e12, 16 * _GIB),
)
"""Known accelerators (data sheets, SXM variants where there are several)."""

REFERENCE_ACCELERATOR = ACCELERATORS[2]

CPU_FLOPS_PER_CORE = 60e9
CPU_BANDWIDTH = 20e9
"""One AVX-512 core at about 2 GHz sustaining 32 FLOP a cycle; two DDR4 channels shared by the cores of a small host."""

CPU_BASE_S = 0.13e-3
CPU_ALPHA_S = 2.63e-6
CPU_BETA_S = 0.124e-3
CPU_GAMMA_S = 8.87e-8
CPU_EPSILON_S = 1.55e-9
"""Measured overhead of one core: s per request, input token, output token, output × context token, input token²."""

SCORING_BASE_S = 4.5e-3
SCORING_ROW_S = 5e-6
SCORING_KIB_S = 0.2e-3
"""Measured on one core, scoring a classic model: s per request, row, and KiB of the request's body, which is parsed and
made into a table. What the model itself takes comes on top, and differs most: calibrate it, or set a price."""


def hardware_from_report(name: str, *, memory_bytes: int = 0, cores: int | None = None) -> Hardware:
    """Return the hardware an agent or an operator names, e.g. ``NVIDIA H100 80GB HBM3`` or a CPU with its ``cores``.

    ``cores`` set means that the engine runs on the CPU. An unknown accelerator is taken for an A10: the smallest
    common serving card, so that a guess is sold too low rather than too high. ``memory_bytes`` overrides the table.
    """
    if cores is not None:
        memory = memory_bytes or 4 * _GIB
        return Hardware(name or "CPU", max(1, cores) * CPU_FLOPS_PER_CORE, CPU_BANDWIDTH, memory, is_cpu=True)
    words = re.sub(r"[^A-Z0-9]+", " ", name.upper())
    for known in ACCELERATORS:
        if re.search(rf"\b{re.escape(known.name)}\b", words):
            return Hardware(name, known.flops, known.bandwidth, memory_bytes or known.memory_bytes)
    fallback = next(known for known in ACCELERATORS if known.name == "A10")
    return Hardware(name or fallback.name, fallback.flops, fallback.bandwidth, memory_bytes or fallback.memory_bytes)


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """Engine seconds of one saturated replica: per request, input token, output token, output × context, input²."""

    base_s: float
    alpha_s: float
    beta_s: float
    gamma_s: float
    epsilon_s: float
    batch: int


def engine_times(*, parameters: int | None, context_tokens: int | None, hardware: Hardware | None) -> EngineTimes:
    """Estimate engine seconds by roofline; unknown inputs fall back to the module's defaults.

    Models that one accelerator cannot hold are taken as sharded over as many as needed, perfectly: the replica is the
    whole group.
    """
    size = parameters or DEFAULT_PARAMETERS
    context = context_tokens or DEFAULT_CONTEXT_TOKENS
    unit = hardware or REFERENCE_ACCELERATOR
    weights = 2.0 * size
    shards = max(1, -(-int(weights * 1.2) // unit.memory_bytes))
    flops = shards * unit.flops * PREFILL_EFFICIENCY
    bandwidth = shards * unit.bandwidth * BANDWIDTH_EFFICIENCY
    relative = size / DEFAULT_PARAMETERS
    kv_bytes = 131_072 * relative**0.4
    width = 131_072 * relative**0.74
    # A quarter of the context is a typical live sequence; what memory is left beside weights bounds the batch.
    free = max(0.0, 0.9 * shards * unit.memory_bytes - weights)
    batch = max(1, min(KNEE_BATCH, int(free / (kv_bytes * context / 4))))
    if unit.is_cpu:
        # The KV product is part of the measured overhead for tiny models; larger ones add what they stream.
        return EngineTimes(
            base_s=CPU_BASE_S,
            alpha_s=CPU_ALPHA_S + 2.0 * size / flops,
            beta_s=CPU_BETA_S + weights / bandwidth / batch,
            gamma_s=CPU_GAMMA_S + kv_bytes / bandwidth,
            epsilon_s=CPU_EPSILON_S + 2.0 * width / flops,
            batch=batch,
        )
    alpha_s = 2.0 * size / flops
    return EngineTimes(
        # A request costs tokenisation, scheduling and detokenisation: about as much as one step's overhead per batch.
        base_s=STEP_OVERHEAD_S / batch,
        alpha_s=alpha_s,
        beta_s=(weights / bandwidth + STEP_OVERHEAD_S) / batch + SEQUENCE_OVERHEAD_S,
        gamma_s=kv_bytes / bandwidth,
        # Attention over the prompt: 4 · layers · hidden FLOP per pair of tokens, half of the pairs (causal mask).
        epsilon_s=2.0 * width / flops,
        batch=batch,
    )


def engine_ms_per_mu(replica_mu_per_min: float = REFERENCE_MU_PER_MIN) -> float:
    """Engine milliseconds that one MU takes on a replica supplying ``replica_mu_per_min`` at its knee.

    A minute of engine time yields ``replica_mu_per_min / KNEE`` when saturated. Raises ValueError unless positive.
    """
    if replica_mu_per_min <= 0:
        raise ValueError(f"a replica must supply more than 0 MU/min, got {replica_mu_per_min}")
    return 60_000.0 * KNEE / replica_mu_per_min


def default_profile(
    *,
    parameters: int | None = None,
    context_tokens: int | None = None,
    hardware: Hardware | None = None,
    version: int = 1,
) -> CostProfile:
    """Return the uncalibrated profile of a model on ``hardware`` (None: one H100): 100 MU/min at the knee.

    ``parameters`` counts weights, ``context_tokens`` is the longest sequence; None where unknown.
    """
    times = engine_times(parameters=parameters, context_tokens=context_tokens, hardware=hardware)
    per_second = 1e3 / engine_ms_per_mu()
    alpha = times.alpha_s * per_second
    return CostProfile(
        version=version,
        base=times.base_s * per_second,
        alpha=alpha,
        beta=max(times.beta_s, MIN_OUTPUT_RATIO * times.alpha_s) * per_second,
        gamma=max(times.gamma_s, 2.0 * times.epsilon_s) * per_second,
        epsilon=times.epsilon_s * per_second,
        cached_factor=CACHED_FACTOR,
        modalities=dict.fromkeys(MEDIA.values(), ENCODER_SHARE * alpha),
        calibrated=False,
    )


def scoring_profile(*, version: int = 1) -> CostProfile:
    """Return the uncalibrated profile of a classic model behind MLflow's scoring server, on a core of a CPU.

    MU per request, per row (``row``) and per KiB of body (``kib``): it knows no tokens.
    """
    per_second = 1e3 / engine_ms_per_mu()
    return CostProfile(
        version=version,
        base=SCORING_BASE_S * per_second,
        alpha=0.0,
        beta=0.0,
        gamma=0.0,
        epsilon=0.0,
        cached_factor=1.0,
        modalities={ROW: SCORING_ROW_S * per_second, KIB: SCORING_KIB_S * per_second},
        calibrated=False,
    )


def simulated_options(profile: CostProfile, *, replica_mu_per_min: float = REFERENCE_MU_PER_MIN) -> dict[str, float]:
    """Return the engine terms of ``worker.simulated`` under which one replica supplies ``replica_mu_per_min``.

    Keys ``base_ms alpha_ms beta_ms gamma_ms epsilon_ms`` in engine milliseconds: the simulated engine then saturates at
    ``replica_mu_per_min / KNEE`` of this very profile, whatever the shape of the traffic.
    """
    ms = engine_ms_per_mu(replica_mu_per_min)
    return {
        "base_ms": profile.base * ms,
        "alpha_ms": profile.alpha * ms,
        "beta_ms": profile.beta * ms,
        "gamma_ms": profile.gamma * ms,
        "epsilon_ms": profile.epsilon * ms,
    }
