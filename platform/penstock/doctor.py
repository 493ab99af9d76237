"""``penstock doctor``: can this machine run an installation, and if not, what to do.

``penstock.machine.gather`` looks; ``judge`` and ``choose_engine`` decide from what it saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warn", "fail"]
GIB = 1024**3
MIN_GLIBC = (2, 28)
VLLM_MEMORY_BYTES = 3 * GIB
VLLM_DISK_BYTES = {"vllm-cpu": 6_000_000_000, "vllm-cuda": 20_000_000_000}
"""What the agent asks for before it builds the environment of that name (``worker.environments``)."""
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
    """What ``gather`` saw. Sizes in bytes, cores as the cgroup's quota allows (a fraction is possible).

    ``accelerators`` are those that the agent will see, by NVIDIA's management library; ``driver_accelerators`` those
    that the driver lists; ``left_out_accelerators`` says of those that no engine is given why.
    ``has_vllm_environment``: the one that vLLM would run in here is built.
    """

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
    driver_accelerators: tuple[str, ...]
    has_valkey: bool
    has_vllm_environment: bool
    ports: tuple[PortUse, ...]
    services: tuple[Service, ...]
    left_out_accelerators: tuple[str, ...] = ()

    @property
    def vllm_environment(self) -> str:
        """The environment in which the agent would run vLLM on this machine."""
        return vllm_environment(self.accelerators)

    @property
    def lacks_vllm_disk(self) -> bool:
        needed = VLLM_DISK_BYTES[self.vllm_environment]
        return not self.has_vllm_environment and self.environments_disk_free_bytes < needed


def vllm_environment(accelerators: Sequence[str]) -> str:
    """The name of vLLM's environment on a machine with these accelerators."""
    return "vllm-cuda" if accelerators else "vllm-cpu"


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
        found.append(f"its build is for x86_64, this is {facts.machine}")
    elif "avx2" not in facts.cpu_flags and not facts.accelerators:
        found.append("its CPU build needs AVX2")
    if facts.lacks_vllm_disk:
        needed, free = _gib(VLLM_DISK_BYTES[facts.vllm_environment]), _gib(facts.environments_disk_free_bytes)
        found.append(f"its environment {facts.vllm_environment} needs {needed} of disk, {free} are free")
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
    if facts.lacks_vllm_disk:
        needed = _gib(VLLM_DISK_BYTES[facts.vllm_environment])
        advice = f"Real vLLM needs {needed} for its environment {facts.vllm_environment} (PENSTOCK_ENVIRONMENTS_DIR)."
        return Finding("disk", "warn", detail, advice)
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
    if facts.left_out_accelerators:
        detail = ", ".join(facts.accelerators) or "none can be used"
        advice = f"Left out: {'; '.join(facts.left_out_accelerators)}."
        return Finding("accelerators", "warn", detail, advice)
    if facts.accelerators:
        return Finding("accelerators", "ok", ", ".join(facts.accelerators))
    if facts.driver_accelerators:
        detail = f"the driver lists {', '.join(facts.driver_accelerators)}, but its management library does not answer"
        advice = "Make nvidia-smi work (in a container: the driver's libnvidia-ml.so.1); else vLLM runs on the CPU."
        return Finding("accelerators", "warn", detail, advice)
    return Finding("accelerators", "ok", "none found: vLLM runs on the CPU")
