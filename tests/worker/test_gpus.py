"""The inventory of accelerators. Figures are what the driver (580) said of an H100 80GB HBM3."""

from __future__ import annotations

import math
import os
import sys
from types import SimpleNamespace

import psutil
import pytest

from worker.gpus import TRY_AGAIN_S, AcceleratorInventory
from worker.spec import AcceleratorReport

TOTAL, RESERVED = 85_520_809_984, 503_316_480
IDLE, BUSY = 0, 22_534_750_208
"""In use by processes; ``nvidia-smi`` shows 0 and 21,491 MiB."""
UUIDS = ("GPU-5f0c1e7a-9d34-4b6e-8a21-c3d4e5f60718", "GPU-0b2c86a1-7f11-40ad-9a3e-3b2c5d6f7a80")


class NVMLError(Exception):
    pass


class Driver:
    """NVIDIA's management library. ``lost`` and ``split`` accelerators by index; one whose ``is_old`` knows neither
    the second kind of memory information nor MIG."""

    NVMLError = NVMLError
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlMemory_v2 = 33_554_472

    def __init__(self, count: int = 1, *, used: int = IDLE, utilisation: int = 0) -> None:
        self.count, self.used, self.utilisation = count, used, utilisation
        self.lost: set[int] = set()
        self.split: set[int] = set()
        self.is_old = self.is_away = False
        self.inits = 0
        self.running: dict[int, list[tuple[int, int | None]]] = {}

    def nvmlInit(self) -> None:
        self.inits += 1
        self._answer()

    def nvmlDeviceGetCount(self) -> int:
        self._answer()
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.lost:
            raise NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        if self.is_old:
            raise NVMLError("Not Supported")
        return [int(handle in self.split), 0]

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> SimpleNamespace:
        if version is None:
            return SimpleNamespace(total=TOTAL, free=TOTAL - RESERVED - self.used, used=RESERVED + self.used)
        if self.is_old:
            raise NVMLError("Function Not Found")
        assert version == self.nvmlMemory_v2
        free = TOTAL - RESERVED - self.used
        return SimpleNamespace(total=TOTAL, reserved=RESERVED, free=free, used=self.used)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=self.utilisation, memory=32)

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return UUIDS[handle]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        if handle in self.lost:
            raise NVMLError("GPU is lost")
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in self.running.get(handle, ())]

    def _answer(self) -> None:
        if self.is_away:
            raise NVMLError("Driver Not Loaded")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", found)
    return found


def inventory(visible: str | None = None) -> AcceleratorInventory:
    return AcceleratorInventory(visible=visible)


def indexes(visible: str | None) -> list[int]:
    return [each.index for each in inventory(visible).read()]


def test_an_idle_accelerator_is_told_as_empty(driver: Driver) -> None:
    report = AcceleratorReport(
        index=0, name="NVIDIA H100 80GB HBM3", uuid=UUIDS[0], memory_bytes=TOTAL, memory_used_bytes=0, utilisation=0.0
    )
    assert inventory().read() == (report,)


def test_a_busy_one_with_what_its_processes_hold(driver: Driver) -> None:
    driver.used, driver.utilisation = BUSY, 100
    (report,) = inventory().read()
    assert math.ceil(report.memory_used_bytes / 2**20) == 21_491
    assert report.utilisation == 1.0


def test_an_older_driver_counts_its_own_memory_as_used(driver: Driver) -> None:
    driver.is_old = True
    assert inventory().read()[0].memory_used_bytes == RESERVED


def test_what_has_fallen_off_the_bus_or_is_split_is_given_to_no_engine(driver: Driver) -> None:
    driver.count, driver.lost = 2, {1}
    found = inventory()
    assert [each.index for each in found.read()] == [0]
    assert found.left_out == ("accelerator 1 does not answer (GPU is lost): see the kernel's log",)
    driver.lost, driver.split = set(), {0}
    assert [each.index for each in found.read()] == [1]
    assert found.left_out == ("NVIDIA H100 80GB HBM3 (0) is split by MIG: 'nvidia-smi -i 0 -mig 0' makes it whole",)


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [0, 1]),
        ("0,1", [0, 1]),
        ("1", [1]),
        (" 1 , 0 ", [0, 1]),
        ("1,7,0", [1]),
        ("", []),
        ("-1", []),
        ("7", []),
        (UUIDS[1], [1]),
        ("GPU-0b2c", [1]),
        ("GPU-", []),
        ("MIG-0b2c", []),
    ],
)
def test_the_agents_own_cuda_visible_devices_bounds_what_engines_get(
    driver: Driver, visible: str | None, seen: list[int]
) -> None:
    driver.count = 2
    assert indexes(visible) == seen


@pytest.mark.parametrize("visible", ["0,1", ",".join(UUIDS)])
def test_one_that_is_lost_hides_none_that_is_named_behind_it(driver: Driver, visible: str) -> None:
    """Engines serve on it."""
    driver.count, driver.lost = 2, {0}
    found = inventory(visible)
    assert [each.index for each in found.read()] == [1]
    assert found.left_out == ("accelerator 0 does not answer (GPU is lost): see the kernel's log",)


def test_what_is_hidden_is_said(driver: Driver) -> None:
    found = inventory("7")
    assert found.read() == ()
    assert found.left_out == ("NVIDIA H100 80GB HBM3 (0) is hidden by CUDA_VISIBLE_DEVICES=7",)
    assert found.has_cuda


def test_a_driver_that_is_loaded_later_or_comes_back_is_found(driver: Driver) -> None:
    now = 0.0
    driver.is_away = True
    found = AcceleratorInventory(visible=None, clock=lambda: now)
    driver.is_away = False
    assert found.read() == ()
    assert not found.has_cuda
    now += TRY_AGAIN_S
    assert len(found.read()) == 1
    assert found.has_cuda
    driver.is_away = True
    assert found.read() == ()
    assert found.left_out == ()
    tries = driver.inits
    driver.is_away, now = False, now + TRY_AGAIN_S - 1.0
    assert found.read() == ()
    assert driver.inits == tries
    now += 1.0
    assert len(found.read()) == 1


def test_who_holds_an_accelerator_is_named_without_ones_own(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.count, me = 2, os.getpid()
    driver.running = {0: [(me, 21_482 << 20), (575_000_000, None)], 1: [(me, 1 << 30)]}
    found = inventory()
    name = psutil.Process(me).name()
    assert found.held_by_others([0], ()) == f"{name} (pid {me}, 21.0 GiB), a process (pid 575000000)"
    assert found.held_by_others([0, 1], {me, 575_000_000}) == ""
    monkeypatch.setattr(psutil.Process, "name", lambda self: "\x1b]0;x\x07y")
    assert found.held_by_others([0], {575_000_000}) == f"?]0;x?y (pid {me}, 21.0 GiB)"
    driver.lost = {0}
    assert found.held_by_others([0], ()) == ""


def test_a_host_without_the_library_has_no_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert inventory().read() == ()
    assert inventory().held_by_others([0], ()) == ""
    assert not inventory().has_cuda
