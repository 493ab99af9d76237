"""The bundled Valkey: files, arguments and readiness. ``python -m penstock.bundled_state --data DIR`` becomes it."""

from __future__ import annotations

from pathlib import Path


def command(data: Path) -> list[str]:
    """Prepare ``<data>/state`` and return the argument list that starts the server in the foreground."""
    raise NotImplementedError


def wait_ready(url: str, timeout_s: float) -> None:
    """Return when the server at ``url`` answers. Raises TimeoutError."""
    raise NotImplementedError


def agent_url(data: Path) -> str:
    """Broker URL (Celery/kombu form) for host agents on this machine: user ``agent``, which sees only ``agent:*``."""
    raise NotImplementedError
