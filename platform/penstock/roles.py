"""What each role of an installation runs: argument vectors, environments, and the order of start and stop.

The same vectors serve ``penstock up``, ``penstock up --only ROLE`` (systemd, containers) and the tests.
"""

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import psutil

from penstock import env
from penstock.supervisor import Role
from penstock.web.tenant.chat import MAX_FRAME

ROLES = ("state", "gateway", "web", "loops", "agent")
_OF_GATEWAYS = ("REDIS_URL", "PENSTOCK_KEY_PEPPERS", "PENSTOCK_TRUSTED_PROXIES")
STAGE_STATE, STAGE_LOOPS, STAGE_CONTROL, STAGE_GATEWAY = 0, 1, 2, 3
"""Stages stop from the highest to the lowest: gateways drain first and ship their journal, then pages and agent,
then the loops that write what was shipped, then the state."""


class RoleError(ValueError):
    """The role cannot be run as asked; the message says what to do."""


@dataclass(frozen=True)
class Options:
    """How an installation is run. Ports are TCP; ``data`` is absolute."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_port: int = 8080
    gateways: int = 1
    redis_url: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def agent_config(self) -> Path:
        return self.data / "agent" / "agent.json"

    @property
    def state_socket(self) -> Path:
        return self.data / "state" / "valkey.sock"

    @property
    def console_url(self) -> str:
        return f"http://{_url_host(self.host)}:{self.port}"

    @property
    def api_url(self) -> str:
        return f"http://{_url_host(self.host)}:{self.api_port}/v1"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _url_host(host: str) -> str:
    """A host that a browser on this machine can open: an unspecified address is reached by loopback of its version."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.version == 6:
        # A server on :: need not take IPv4.
        return "[::1]" if address.is_unspecified else f"[{host}]"
    return "127.0.0.1" if address.is_unspecified else host


def role_environment(options: Options) -> dict[str, str]:
    """What every role finds in its environment. A variable that a person has set goes first."""
    allowed = ["localhost", "127.0.0.1", "[::1]"]
    if not is_loopback(options.host):
        allowed += _own_names() if _is_unspecified(options.host) else [options.host]
    defaults = {
        "PENSTOCK_ALLOWED_HOSTS": ",".join(allowed),
        "PENSTOCK_CONSOLE_URL": options.console_url,
        "PENSTOCK_API_URL": options.api_url,
        "PENSTOCK_GATEWAY_URL": options.api_url,
    }
    fixed = {
        "PENSTOCK_DATA": str(options.data),
        "PENSTOCK_HOST": options.host,
        "PENSTOCK_PORT": str(options.port),
        "PENSTOCK_API_PORT": str(options.api_port),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }
    kept = {name: value for name, value in defaults.items() if not os.environ.get(name)}
    # A gateway does not read files that NAME_FILE names.
    read = {name: env.text(name) for name in _OF_GATEWAYS if os.environ.get(f"{name}_FILE")}
    return {**kept, **fixed, **read, **options.env}


def _celery_environment(options: Options) -> dict[str, str]:
    """Celery warns root, in ten lines, of pickled messages, which neither of our applications accepts."""
    return {**role_environment(options), "PYTHONWARNINGS": "ignore:You're running the worker with superuser"}


def _is_unspecified(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def _own_names() -> list[str]:
    """The names and addresses by which other machines may call this one."""
    addresses = [a.address for group in psutil.net_if_addrs().values() for a in group]
    names = [socket.gethostname(), socket.getfqdn()]
    for address in addresses:
        try:
            found = ip_address(address)
        except ValueError:
            continue
        if not found.is_link_local:
            names.append(f"[{found}]" if found.version == 6 else str(found))
    return sorted(set(names))


def _python(*arguments: str) -> tuple[str, ...]:
    # -P: the caller's folder must not come first on the import path.
    return (sys.executable, "-P", "-m", *arguments)


def state_role(options: Options) -> Role:
    argv = _python("penstock.bundled_state", "--data", str(options.data))
    return Role("state", argv, role_environment(options), stage=STAGE_STATE, grace_s=5)


def gateway_role(options: Options, number: int) -> Role:
    name = f"gateway-{number}"
    argv = _python("serving.gateway.server", "--data", str(options.data), "--host", options.host)
    argv += ("--port", str(options.api_port), "--name", name)
    if options.gateways and not options.redis_url:
        # A state of one's own that others may share too: only it knows how many gateways there are.
        argv += ("--gateways", str(options.gateways))
    return Role(name, argv, role_environment(options), stage=STAGE_GATEWAY, grace_s=12)


def web_role(options: Options) -> Role:
    argv = _python("uvicorn", "penstock.asgi:application", "--host", options.host, "--port", str(options.port))
    argv += ("--lifespan", "on", "--no-server-header", "--timeout-graceful-shutdown", "3", "--log-level", "warning")
    argv += ("--ws-max-size", str(MAX_FRAME), "--ws-per-message-deflate", "false")
    if sys.platform != "win32":
        argv += ("--loop", "uvloop", "--http", "httptools")
    return Role("web", argv, role_environment(options), stage=STAGE_CONTROL, grace_s=6)


def loops_role(options: Options) -> Role:
    argv = _python("celery", "--quiet", "-A", "penstock.celery", "worker", "--without-gossip", "--without-mingle")
    argv += ("--without-heartbeat", "--loglevel", "WARNING", "--hostname", f"loops-{options.port}@%h")
    return Role("loops", argv, _celery_environment(options), stage=STAGE_LOOPS, grace_s=8)


def agent_role(options: Options) -> Role:
    argv = _python("worker", "--config", str(options.agent_config))
    return Role("agent", argv, _celery_environment(options), stage=STAGE_CONTROL, grace_s=6)


def stop_engines_role(options: Options) -> Role:
    """A short-lived process that stops every engine of the local agent."""
    argv = _python("worker", "--config", str(options.agent_config), "--stop-engines")
    return Role("agent", argv, role_environment(options))


def setup_role(options: Options, *arguments: str) -> Role:
    """``penstock setup``: migrations, static files and the demo, in a process that ends."""
    argv = _python("penstock", "setup", "--data", str(options.data), "--json", *arguments)
    return Role("setup", argv, role_environment(options))


def role_named(name: str, options: Options, *, instance: int = 1) -> Role:
    """The role that ``--only NAME`` runs. Raises RoleError."""
    if name == "state":
        if options.redis_url:
            raise RoleError("REDIS_URL is set: that server is the shared state, and the bundled one is not needed")
        return state_role(options)
    if name == "gateway":
        # Each by itself: nobody here knows how many there are.
        return gateway_role(replace(options, gateways=0), instance)
    if name == "web":
        return web_role(options)
    if name == "loops":
        return loops_role(options)
    if name == "agent":
        if not options.agent_config.exists():
            raise RoleError(
                f"{options.agent_config} is missing: enrol this host first (`penstock setup` enrols the local host)"
            )
        return agent_role(options)
    raise RoleError(f"there is no role {name!r}; the roles are {', '.join(ROLES)}")


def agent_processes(data: Path) -> dict[int, str]:
    """What the agent of this data folder started and that runs now: pid → replica id (empty: builders, downloads).

    They carry the agent's folder in their environment (``worker.processes``), and outlive the agent on purpose. An
    engine's children that rewrote their environment are known by their session.
    """
    folder = str(data / "agent")
    found: dict[int, str] = {}
    sessions: dict[int, list[int]] = {}
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            sessions.setdefault(os.getsid(process.pid), []).append(process.pid)
            environment = process.environ()
        except (psutil.Error, OSError):
            continue
        if environment.get("PENSTOCK_AGENT_DIR") == folder:
            found[process.pid] = environment.get("PENSTOCK_REPLICA_ID", "")
    for leader in [pid for pid in found if pid in sessions]:
        for pid in sessions[leader]:
            found.setdefault(pid, found[leader])
    return found
