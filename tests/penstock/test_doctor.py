"""What the doctor says about machines good and bad, and about this one."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement

from penstock import doctor, machine
from penstock.doctor import GIB, Facts, PortUse, Service
from penstock.roles import Options
from worker.environments import RECIPES
from worker.gpus import AcceleratorInventory
from worker.spec import AcceleratorReport

GOOD = Facts(
    python=(3, 11, 7),
    glibc=(2, 36),
    machine="x86_64",
    cpu_flags=frozenset({"avx2"}),
    cores=4,
    memory_bytes=16 * GIB,
    memory_available_bytes=12 * GIB,
    data=Path("/srv/data"),
    data_disk_free_bytes=50 * GIB,
    environments_disk_free_bytes=50 * GIB,
    data_error="",
    data_file_system="ext4",
    data_is_old=False,
    data_mode=0o700,
    socket_path_bytes=40,
    open_files=65536,
    accelerators=(),
    driver_accelerators=(),
    has_valkey=True,
    has_vllm_environment=False,
    ports=(PortUse(8000, "web", "--port"), PortUse(8080, "gateway", "--api-port")),
    services=(),
)


def test_a_good_machine_has_nothing_to_complain_of() -> None:
    assert doctor.worst(doctor.judge(GOOD)) == "ok"
    assert doctor.choose_engine("auto", GOOD) == ("vllm", "")


@pytest.mark.parametrize(
    ("change", "name", "status"),
    [
        ({"python": (3, 10, 1)}, "python", "fail"),
        ({"glibc": (2, 27)}, "glibc", "warn"),
        ({"glibc": None}, "glibc", "warn"),
        ({"cores": 0.5}, "cpu", "warn"),
        ({"memory_available_bytes": GIB // 2}, "memory", "fail"),
        ({"memory_available_bytes": 2 * GIB}, "memory", "warn"),
        ({"data_disk_free_bytes": GIB // 4}, "disk", "fail"),
        ({"environments_disk_free_bytes": 5 * GIB}, "disk", "warn"),
        ({"data_error": "is a file, not a folder"}, "data folder", "fail"),
        ({"data_file_system": "nfs4"}, "data folder", "warn"),
        ({"data_mode": 0o755}, "data folder", "warn"),
        ({"socket_path_bytes": 108}, "data folder", "fail"),
        ({"open_files": 1024}, "open files", "warn"),
        ({"has_valkey": False}, "shared state", "fail"),
        ({"ports": (PortUse(8000, "web", "--port", taken_by="nginx (pid 7)"),)}, "port 8000", "fail"),
        ({"ports": (PortUse(80, "web", "--port", error="ports below 1024"),)}, "port 80", "fail"),
        ({"services": (Service("redis", "redis://h", "refused"),)}, "redis", "fail"),
        ({"services": (Service("postgresql", "postgres://h", "refused"),)}, "postgresql", "fail"),
    ],
)
def test_each_fault_is_found_and_says_what_to_do(change: dict[str, object], name: str, status: str) -> None:
    findings = doctor.judge(replace(GOOD, **change))  # type: ignore[arg-type]
    bad = [finding for finding in findings if finding.status != "ok"]
    assert [(finding.name, finding.status) for finding in bad] == [(name, status)]
    assert bad[0].advice


def test_a_configured_redis_makes_the_bundled_one_needless() -> None:
    facts = replace(GOOD, has_valkey=False, services=(Service("redis", "redis://h"),))
    assert doctor.worst(doctor.judge(facts)) == "ok"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"glibc": (2, 27)}, "glibc"),
        ({"machine": "aarch64"}, "x86_64"),
        ({"cpu_flags": frozenset()}, "AVX2"),
        ({"environments_disk_free_bytes": 5 * GIB}, "disk"),
        ({"memory_available_bytes": 2 * GIB}, "memory"),
    ],
)
def test_vllm_is_left_out_where_it_cannot_run_and_the_reason_is_told(change: dict[str, object], word: str) -> None:
    engine, reason = doctor.choose_engine("auto", replace(GOOD, **change))  # type: ignore[arg-type]
    assert engine == "simulated"
    assert word in reason
    assert doctor.choose_engine("vllm", replace(GOOD, **change))[0] == "vllm"  # type: ignore[arg-type]


def test_an_environment_that_is_there_needs_no_disk() -> None:
    facts = replace(GOOD, environments_disk_free_bytes=GIB, has_vllm_environment=True)
    assert doctor.choose_engine("auto", facts) == ("vllm", "")


GPU = replace(GOOD, accelerators=("NVIDIA H200",), driver_accelerators=("NVIDIA H200",), cpu_flags=frozenset())


def test_a_machine_with_an_accelerator_needs_the_disk_of_its_own_environment() -> None:
    assert doctor.choose_engine("auto", GPU) == ("vllm", "")
    tight = replace(GPU, environments_disk_free_bytes=12 * GIB)
    engine, reason = doctor.choose_engine("auto", tight)
    assert engine == "simulated"
    assert "vllm-cuda needs 18.6 GiB of disk, 12.0 GiB are free" in reason
    assert "vllm-cuda" in next(f.advice for f in doctor.judge(tight) if f.name == "disk")
    assert doctor.choose_engine("auto", replace(GOOD, environments_disk_free_bytes=12 * GIB)) == ("vllm", "")


def test_the_disk_that_is_asked_for_is_what_the_agent_will_ask_for() -> None:
    needed = {name: recipe.minimum_free_bytes for name, recipe in RECIPES.items()}
    assert {name: needed[name] for name in doctor.VLLM_DISK_BYTES} == doctor.VLLM_DISK_BYTES


def test_an_accelerator_that_the_agent_cannot_see_is_told_with_what_to_do() -> None:
    facts = replace(GOOD, driver_accelerators=("NVIDIA H200",))
    (finding,) = [finding for finding in doctor.judge(facts) if finding.status != "ok"]
    assert (finding.name, finding.status) == ("accelerators", "warn")
    assert "nvidia-smi" in finding.advice
    assert doctor.choose_engine("auto", facts) == ("vllm", "")


class FakeNvml(ModuleType):
    """NVIDIA's management library on a machine with three devices, one of which has fallen off the bus."""

    class NVMLError(Exception):
        pass

    names: tuple[object, ...] = ("NVIDIA H200", None, b"NVIDIA L4")
    split: tuple[int, ...] = ()

    def nvmlInit(self) -> None:
        if not self.names:
            raise self.NVMLError("no driver")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if self.names[index] is None:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, handle: int) -> object:
        return self.names[handle]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    nvmlMemory_v2 = 2
    NVML_DEVICE_MIG_ENABLE = 1

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        return [int(handle in self.split), 0]

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int) -> SimpleNamespace:
        return SimpleNamespace(total=141 * GIB, used=0)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=0)


def test_the_doctor_sees_the_accelerators_that_the_agent_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found, left_out = machine.accelerators_here()
    assert [each.name for each in found] == ["NVIDIA H200", "NVIDIA L4"]
    assert left_out == ("accelerator 1 does not answer (GPU is lost): see the kernel's log",)
    assert found == AcceleratorInventory().read()
    fake.names = ()
    assert machine.accelerators_here() == ((), ()) == (AcceleratorInventory().read(), ())


def test_accelerators_that_no_engine_is_given_are_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml("pynvml")
    fake.names, fake.split = ("NVIDIA H200",), (0,)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found, left_out = machine.accelerators_here()
    seen = replace(GOOD, accelerators=tuple(each.name for each in found), left_out_accelerators=left_out)
    (judged,) = [each for each in doctor.judge(seen) if each.name == "accelerators"]
    assert judged.status == "warn"
    assert judged.detail == "none can be used"
    assert "NVIDIA H200 (0) is split by MIG: 'nvidia-smi -i 0 -mig 0' makes it whole" in judged.advice


def test_the_drivers_own_listing_needs_no_library(tmp_path: Path) -> None:
    for number, text in enumerate(("Model: \t\t NVIDIA H200\nIRQ: 5\n", "garbled")):
        (tmp_path / f"0000:{number}").mkdir()
        (tmp_path / f"0000:{number}" / "information").write_text(text)
    assert machine.driver_accelerator_names(tmp_path) == ("NVIDIA H200", "NVIDIA GPU")


def test_the_agents_library_comes_with_every_installation() -> None:
    required = [Requirement(line) for line in metadata.requires("penstock") or []]
    assert any(each.name == "nvidia-ml-py" and each.marker is None for each in required)


def test_only_the_environment_that_will_be_used_counts_as_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS_DIR", str(tmp_path))
    one = AcceleratorReport(index=0, name="NVIDIA H200", uuid="GPU-0", memory_bytes=141 * GIB)
    monkeypatch.setattr(machine, "accelerators_here", lambda: ((one,), ()))
    options = Options(data=tmp_path / "data", port=0, api_port=0)
    for name, is_built in (("vllm-cpu-0123", False), ("vllm-cuda-0123", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "penstock-ready.json").write_text("{}")
        assert machine.gather(options).has_vllm_environment is is_built


def test_simulated_stays_simulated() -> None:
    assert doctor.choose_engine("simulated", GOOD)[0] == "simulated"


def test_this_machine_is_seen_as_it_is(tmp_path: Path) -> None:
    facts = machine.gather(Options(data=tmp_path / "new" / "folder", port=0, api_port=0))
    assert facts.python == sys.version_info[:3]
    assert 0 < facts.memory_available_bytes <= facts.memory_bytes
    assert facts.data_error == ""
    assert not facts.data_is_old
    assert not (tmp_path / "new").exists()


def test_a_file_in_place_of_the_data_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    facts = machine.gather(Options(data=tmp_path / "data", port=0, api_port=0))
    assert "file" in facts.data_error


def test_a_taken_port_names_who_has_it_and_the_exit_code_says_so(tmp_path: Path) -> None:
    with socket.socket() as holder, socket.socket() as other:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
        other.close()
        taken = holder.getsockname()[1]
        command = [sys.executable, "-P", "-m", "penstock", "doctor", "--data", str(tmp_path), "--json"]
        command += ["--port", str(taken), "--api-port", str(free)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings[f"port {taken}"]["status"] == "fail"
    assert "pid" in findings[f"port {taken}"]["detail"]
    assert "--port" in findings[f"port {taken}"]["advice"]
    assert findings[f"port {free}"]["status"] == "ok"


def test_servers_that_do_not_answer_are_named_without_their_password() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    redis, postgresql = machine._services(
        f"redis://user:hunter2@127.0.0.1:{port}/0", f"postgres://user:hunter2@127.0.0.1:{port}/penstock"
    )
    for service in (redis, postgresql):
        assert service.error
        assert "hunter2" not in service.where + service.error


def test_a_server_that_answers_is_fine(valkey_url: str) -> None:
    (service,) = machine._services(valkey_url, "")
    assert service.error == ""
