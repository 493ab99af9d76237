"""A gateway's configuration: command line, environment, and the secrets of the data folder. No Django settings."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


_TUNABLE: dict[str, type[int] | type[float]] = {
    "header_s": float,
    "body_s": float,
    "connect_s": float,
    "idle_s": float,
    "total_s": float,
    "queue_s": float,
    "drain_s": float,
    "keep_alive_s": float,
    "queue_max": int,
    "max_body": int,
}
"""Fields that ``PENSTOCK_GATEWAY_<FIELD>`` overrides."""


class ConfigError(ValueError):
    """The gateway cannot start like this; the message says what to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Times in seconds, sizes in bytes.

    ``header_s`` bounds reading a request's headers, ``body_s`` reading its body,
    ``connect_s`` reaching a replica, ``idle_s`` silence of a replica inside a stream, ``total_s`` the whole request,
    ``queue_s`` waiting for a free slot, ``drain_s`` finishing what runs after SIGTERM. ``gateways`` is how many the
    installation has, 0 when only the shared state knows.
    """

    data: Path
    host: str
    port: int
    name: str
    state_url: str
    peppers: Mapping[int, bytes]
    gateways: int = 0
    metrics_token: str = ""
    currency: str = "USD"
    trusted_proxies: tuple[Network, ...] = ()
    header_s: float = 20.0
    body_s: float = 60.0
    connect_s: float = 2.0
    idle_s: float = 120.0
    total_s: float = 600.0
    queue_s: float = 10.0
    queue_max: int = 256
    drain_s: float = 20.0
    keep_alive_s: float = 75.0
    upstream_keep_alive_s: float = 4.0
    max_body: int = 20 * 1024 * 1024
    max_answer: int = 64 * 1024 * 1024
    access_log: bool = True

    def shown(self) -> dict[str, Any]:
        """The effective configuration without its secrets."""
        hidden = {"peppers", "metrics_token", "state_url"}
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in hidden}


def load_config(
    *,
    data: Path,
    host: str,
    port: int,
    name: str,
    gateways: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read the configuration. Raises ConfigError when a value is unusable or no key pepper can be found."""
    env = os.environ if environment is None else environment
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ConfigError(f"--name must be 1 to 64 letters, digits, - or _, not {name!r}")
    if gateways < 0:
        raise ConfigError(f"--gateways must be 0 (not known) or how many the installation has, not {gateways}")
    tuned: dict[str, Any] = {}
    for field, kind in _TUNABLE.items():
        value = _number(env, f"PENSTOCK_GATEWAY_{field.upper()}")
        if value is not None:
            tuned[field] = kind(value)
    return Config(
        data=data,
        host=host,
        port=port,
        name=name,
        gateways=gateways,
        state_url=env.get("REDIS_URL") or f"unix://{data / 'state' / 'valkey.sock'}",
        peppers=_peppers(env, data),
        metrics_token=_text(env, "PENSTOCK_METRICS_TOKEN"),
        currency=env.get("PENSTOCK_CURRENCY") or "USD",
        trusted_proxies=_networks(env.get("PENSTOCK_TRUSTED_PROXIES", "")),
        access_log=env.get("PENSTOCK_ACCESS_LOG", "yes").lower() not in ("no", "off", "false", "0"),
        **tuned,
    )


def _text(env: Mapping[str, str], name: str) -> str:
    if file := env.get(f"{name}_FILE"):
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{name}_FILE names {file}, which cannot be read: {error.strerror}") from error
    return env.get(name, "")


def _number(env: Mapping[str, str], name: str) -> float | None:
    text = env.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be a number, not {text!r}") from error
    if not 0 < value < 1e12:
        raise ConfigError(f"{name} must be above 0, not {text}")
    return value


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"PENSTOCK_TRUSTED_PROXIES must list networks in CIDR form: {error}") from error


def _peppers(env: Mapping[str, str], data: Path) -> dict[int, bytes]:
    text = _text(env, "PENSTOCK_KEY_PEPPERS")
    path = data / "secrets.json"
    try:
        raw = json.loads(text) if text else json.loads(path.read_text(encoding="utf-8"))["key_peppers"]
        peppers = {int(number): str(value).encode() for number, value in raw.items()}
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: run `penstock up` once, or set PENSTOCK_KEY_PEPPERS") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # The value itself may be in the message of a parse error, and it is a secret.
        raise ConfigError("the key peppers cannot be read: a JSON object of number and value is expected") from error
    if not peppers:
        raise ConfigError("there is no key pepper: run `penstock up` once, or set PENSTOCK_KEY_PEPPERS")
    return peppers


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(part) for part in value]
    return value if isinstance(value, (int, float, str, bool)) else str(value)
