"""What the simulated engine takes for each token, and what it has room for."""

from __future__ import annotations

from pathlib import Path

import msgspec


class ProfileError(ValueError):
    """The profile cannot be used; the message says what to change."""


class EngineProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Engine time in milliseconds per term, and limits. The defaults resemble an 8B model on one large GPU.

    A step takes ``max(step_floor_ms, work)``: reading the weights is the floor, and the work of its tokens adds up as
    ``base_ms`` per request, ``alpha_ms`` per prefilled token, ``epsilon_ms · (end² − start²)`` per prefilled chunk,
    ``beta_ms + gamma_ms · context`` per output token. Saturated, a request therefore takes exactly
    ``base + α·(input−cached) + ε·(input²−cached²) + β·output + γ·output·(input + output/2)``.
    """

    base_ms: float = 0.05
    alpha_ms: float = 0.05
    beta_ms: float = 0.2
    gamma_ms: float = 5e-5
    epsilon_ms: float = 8e-7
    step_floor_ms: float = 8.0
    kv_tokens: int = 131_072
    """KV-cache capacity in tokens, a multiple of ``BLOCK``."""
    max_model_len: int = 8192
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    long_prefill_token_threshold: int = 0
    """Longest chunk of one prompt in a step; 0: the whole budget."""
    mean_output_tokens: float = 150.0
    """Mean length of an answer that ends by itself (geometric)."""
    startup_s: float = 0.0
    """From the start of the process to ``/health`` 200: the load time of a model, to see cold starts."""


BLOCK = 16
"""Tokens per KV-cache block."""


def load_profile(text: str) -> EngineProfile:
    """Read a profile from JSON, or from the JSON file that ``text`` names. Raises ProfileError."""
    raw = text.strip()
    if raw and not raw.startswith("{"):
        try:
            raw = Path(raw).read_text()
        except OSError as error:
            raise ProfileError(f"cannot read the profile {text!r}: {error.strerror}") from error
    try:
        profile = msgspec.json.decode(raw or "{}", type=EngineProfile)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ProfileError(f"the profile is not valid: {error}") from error
    return check_profile(profile)


def check_profile(profile: EngineProfile) -> EngineProfile:
    """Return ``profile``. Raises ProfileError when its numbers make no engine."""
    times = (profile.base_ms, profile.alpha_ms, profile.beta_ms, profile.gamma_ms, profile.epsilon_ms)
    if min(*times, profile.step_floor_ms, profile.startup_s, profile.long_prefill_token_threshold) < 0:
        raise ProfileError("no time of the profile may be negative")
    if profile.step_floor_ms <= 0 and profile.beta_ms <= 0:
        raise ProfileError("step_floor_ms or beta_ms must be positive: a step has to take time")
    if min(profile.max_num_seqs, profile.max_num_batched_tokens) < 1 or profile.mean_output_tokens < 1:
        raise ProfileError("max_num_seqs, max_num_batched_tokens and mean_output_tokens must be at least 1")
    if profile.max_model_len < 2:
        raise ProfileError("max_model_len must be at least 2: one token in, one out")
    if profile.kv_tokens // BLOCK * BLOCK < profile.max_model_len:
        raise ProfileError(f"kv_tokens {profile.kv_tokens} cannot hold one request of {profile.max_model_len} tokens")
    return profile
