"""``penstock join``: this machine becomes a host of an installation elsewhere, with an enrolment token. No Django."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from penstock.cli.remote import web
from penstock.cli.remote.api import Api
from penstock.cli.remote.nouns import Refused, told
from penstock.cli.remote.profile import Profile
from penstock.roles import Options

TOKEN_VARIABLE = "PENSTOCK_ENROLMENT_TOKEN"  # noqa: S105
_CONTENT = ("host_id", "name", "secret", "broker_url", "state_url")


def run(arguments: argparse.Namespace) -> int:
    return told(lambda: _join(arguments))


def _join(arguments: argparse.Namespace) -> int:
    from worker.gpus import AcceleratorInventory
    from worker.host import read_host

    url, data = arguments.url.rstrip("/"), arguments.data.expanduser().resolve()
    config = Options(data=data).agent_config
    if not web.is_address(url):
        raise Refused(f"{arguments.url!r} is not an address: give the console's, e.g. https://penstock.example.org")
    if config.exists():
        raise Refused(
            f"this machine is a host already: {config} says of which installation. Start its agent with "
            "'penstock up --only agent'; move the file away to join as another host"
        )
    token = _token()
    state = read_host()
    cards = [(one.name, one.memory_bytes) for one in AcceleratorInventory().read()]
    said = told_of_machine(arguments.name, cpu_model=state.cpu_model, memory_bytes=state.memory_bytes, cards=cards)
    # Before anything is asked: a secret that cannot be kept is lost, since it is told once.
    file = _reserve(config)
    try:
        with file:
            answer = Api(Profile(url, token)).post("/enrol", said)
            json.dump({name: answer[name] for name in _CONTENT}, file, indent=2)
            file.write("\n")
    except BaseException:
        config.unlink()
        raise
    print(f"{answer['name']} has joined {url}: {said['hardware']}; kept in {config}", file=sys.stderr)
    print(f"start its agent: penstock up --only agent --data {data}", file=sys.stderr)
    return 0


def told_of_machine(
    name: str, *, cpu_model: str, memory_bytes: int, cards: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """What the installation is told of this machine. ``cards``: name and memory in bytes of each accelerator."""
    host = re.sub(r"[^a-zA-Z0-9_-]+", "-", name or socket.gethostname().partition(".")[0]).strip("-").lower()[:60]
    if cards:
        # Hosts are of one kind of hardware: the first is taken for all.
        hardware, memory = cards[0]
        return {"name": host or "host", "hardware": hardware[:120], "memory_bytes": memory, "is_cpu": False}
    hardware = f"CPU ({cpu_model})" if cpu_model else "CPU"
    return {"name": host or "host", "hardware": hardware[:120], "memory_bytes": memory_bytes, "is_cpu": True}


def _reserve(path: Path) -> TextIO:
    """The agent's configuration, new and empty, readable by its owner alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise Refused(f"{path} cannot be written ({error.strerror}): name another folder with --data") from None
    return os.fdopen(descriptor, "w", encoding="utf-8")


def _token() -> str:
    """From the environment, so that it is in nobody's list of processes; else asked for."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token and sys.stdin.isatty():
        print("Make a join command on the console's page of hosts, and paste its token here.", file=sys.stderr)
        token = getpass.getpass("enrolment token: ").strip()
    elif not token:
        token = sys.stdin.readline().strip()
    if not token:
        raise Refused(f"no token was given: set {TOKEN_VARIABLE}, or pipe it in: penstock join URL < token-file")
    return token
