"""The web role as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from penstock import roles
from penstock.secrets import ensure_secrets


@contextmanager
def web_role(folder: Path, **environment: str) -> Iterator[tuple[str, Path]]:
    """Start it as ``penstock up`` does, on a database without tables: its address and its log file."""
    data, log = folder / "data", folder / "web.log"
    ensure_secrets(data)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    role = roles.web_role(roles.Options(data=data, port=port))
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    with log.open("wb") as file:
        process = subprocess.Popen(role.argv, env=inherited | dict(role.env) | environment, stdout=file, stderr=file)
    try:
        base = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                httpx.get(f"{base}/sign-in/")
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield base, log
    finally:
        process.terminate()
        process.wait(60)
