"""The agent's own configuration: ``agent.json`` in the agent's folder, written when a host is enrolled."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

CONFIG_VARIABLE = "PENSTOCK_AGENT_CONFIG"
ENVIRONMENTS_VARIABLE = "PENSTOCK_ENVIRONMENTS_DIR"


class ConfigError(ValueError):
    """The configuration is missing or unusable; the message says what to do."""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    host_id: str
    name: str
    secret: str
    broker_url: str
    state_url: str


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Who this agent is. ``folder`` holds everything it keeps; ``environments`` may be shared by several agents."""

    host_id: str
    name: str
    secret: bytes
    broker_url: str
    state_url: str
    folder: Path
    environments: Path

    @property
    def replicas(self) -> Path:
        return self.folder / "replicas"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def __repr__(self) -> str:
        return f"AgentConfig(host_id={self.host_id!r}, folder={str(self.folder)!r})"


def load_config(path: Path | None = None) -> AgentConfig:
    """Read ``path``, or the file that ``PENSTOCK_AGENT_CONFIG`` names. Raises ConfigError."""
    if path is None:
        named = os.environ.get(CONFIG_VARIABLE)
        if not named:
            raise ConfigError(f"no configuration: set {CONFIG_VARIABLE}, or start python -m worker --config FILE")
        path = Path(named)
    path = path.resolve()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        content = msgspec.json.decode(path.read_bytes(), type=_File)
        secret = bytes.fromhex(content.secret)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): enrol this host first") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigError(f"{path} is not an agent configuration: {error}") from error
    if mode & 0o077:
        raise ConfigError(f"{path} holds a secret but others may read it: run chmod 600 {path}")
    if len(secret) < 16:
        raise ConfigError(f"the secret in {path} is shorter than 16 bytes: enrol this host again")
    environments = os.environ.get(ENVIRONMENTS_VARIABLE)
    return AgentConfig(
        host_id=content.host_id,
        name=content.name,
        secret=secret,
        broker_url=content.broker_url,
        state_url=content.state_url,
        folder=path.parent,
        environments=Path(environments).expanduser().resolve() if environments else path.parent / "environments",
    )
