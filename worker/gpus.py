"""Accelerators of this host, as NVIDIA's driver tells them. No driver, no library: an empty list, never an error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import psutil

from worker.spec import AcceleratorReport

TRY_AGAIN_S = 30.0
"""A driver that did not answer is asked again so much later: it may be loaded, or come back, after the agent began."""


class AcceleratorInventory:
    """Asks NVIDIA's management library. Without it, ``read`` answers an empty tuple at little cost.

    ``visible`` is a ``CUDA_VISIBLE_DEVICES`` as this process was given one (None: it was not): an operator's word that
    the other accelerators belong to something else. ``clock`` gives seconds that only grow.
    """

    def __init__(
        self,
        *,
        visible: str | None = os.environ.get("CUDA_VISIBLE_DEVICES"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._visible, self._clock = visible, clock
        self._nvml = _load_nvml()
        self._tried_at = clock()
        self.left_out: tuple[str, ...] = ()
        """Of the last ``read``: which accelerators the driver has that no engine is given, and why, for people."""

    @property
    def has_cuda(self) -> bool:
        return self._nvml is not None

    def read(self) -> tuple[AcceleratorReport, ...]:
        """Return what the driver says now of the accelerators that engines may be given.

        Left out: one that does not answer (fallen off the bus), one that is split into MIG instances (its number would
        stand for one of them alone), and what ``visible`` keeps from us.
        """
        if self._nvml is None and self._clock() - self._tried_at >= TRY_AGAIN_S:
            self._nvml, self._tried_at = _load_nvml(), self._clock()
        if self._nvml is None:
            self.left_out = ()
            return ()
        found, left_out = _read_all(self._nvml)
        if not found and not left_out:
            # The driver went away under us, or its devices did: begin anew with it.
            self._nvml, self._tried_at = None, self._clock()
        seen = tuple(each for each in found if is_visible(self._visible, each, found, lacks_some=bool(left_out)))
        left_out += [
            f"{each.name} ({each.index}) is hidden by CUDA_VISIBLE_DEVICES={self._visible}"
            for each in found
            if each not in seen
        ]
        self.left_out = tuple(left_out)
        return seen

    def held_by_others(self, indexes: Iterable[int], own: Container[int]) -> str:
        """In words, the processes that hold memory of these accelerators, without those numbered ``own``; empty for
        none, and where the driver does not tell."""
        found = [each for index in indexes for each in self._holders(index) if each[0] not in own]
        return ", ".join(
            f"{_process_name(pid)} (pid {pid}{f', {held / 2**30:.1f} GiB' if held else ''})" for pid, held in found
        )

    def _holders(self, index: int) -> list[tuple[int, int]]:
        """Number and bytes (0: the driver does not tell) of each process that computes on an accelerator."""
        nvml = self._nvml
        if nvml is None:
            return []
        try:
            running = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError:
            return []
        return [(each.pid, each.usedGpuMemory or 0) for each in running]


def is_visible(
    visible: str | None, one: AcceleratorReport, among: Sequence[AcceleratorReport], *, lacks_some: bool = False
) -> bool:
    """Whether ``CUDA_VISIBLE_DEVICES`` names ``one``, by its number or by the beginning of its UUID.

    As CUDA reads it: what comes behind a name that leads to nothing is not seen, and an empty text hides all. But
    ``among`` may lack some that the driver has and cannot give (``lacks_some``): a name may be that of such a one, and
    those behind it serve on.
    """
    if visible is None:
        return True
    for name in (each.strip() for each in visible.split(",")):
        named = [each for each in among if _is_named(name, each)]
        if not named and name and lacks_some:
            continue
        if len(named) != 1:
            return False
        if named[0] is one:
            return True
    return False


def _read_all(nvml: Any) -> tuple[list[AcceleratorReport], list[str]]:
    """The accelerators that can be used, and in words those that cannot. Both empty: the driver does not answer."""
    found: list[AcceleratorReport] = []
    left_out: list[str] = []
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:
        return found, left_out
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if _is_split(nvml, handle):
                name = _text(nvml.nvmlDeviceGetName(handle))
                left_out.append(f"{name} ({index}) is split by MIG: 'nvidia-smi -i {index} -mig 0' makes it whole")
            else:
                found.append(_read_one(nvml, index, handle))
        except nvml.NVMLError as error:
            left_out.append(f"accelerator {index} does not answer ({error}): see the kernel's log")
    return found, left_out


def _is_split(nvml: Any, handle: Any) -> bool:
    """Whether MIG divides the accelerator now."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        # Most accelerators do not know MIG.
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _is_named(name: str, one: AcceleratorReport) -> bool:
    return int(name) == one.index if name.isdecimal() else name.startswith("GPU-") and one.uuid.startswith(name)


def _process_name(pid: int) -> str:
    try:
        # Whoever runs it chose it: nothing in it may steer a terminal.
        return "".join(each if each.isprintable() else "?" for each in psutil.Process(pid).name())
    except psutil.Error:
        # Of another container: the driver numbers processes as the host does.
        return "a process"


def _load_nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        has_devices = pynvml.nvmlDeviceGetCount() > 0
    except pynvml.NVMLError:
        return None
    return pynvml if has_devices else None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _read_one(nvml: Any, index: int, handle: Any) -> AcceleratorReport:
    memory = _memory(nvml, handle)
    try:
        utilisation = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0
    except nvml.NVMLError:
        # Some virtual ones do not tell.
        utilisation = 0.0
    return AcceleratorReport(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        memory_bytes=int(memory.total),
        memory_used_bytes=int(memory.used),
        utilisation=utilisation,
    )


def _memory(nvml: Any, handle: Any) -> Any:
    """Of the second kind where the driver knows it: the first counts what the driver keeps for itself as used, half a
    GiB of an idle H100."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetMemoryInfo(handle)
