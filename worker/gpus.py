"""Accelerators of this host, as NVIDIA's driver tells them. No driver, no library: an empty list, never an error."""

from __future__ import annotations

from typing import Any

from worker.spec import AcceleratorReport


class AcceleratorInventory:
    """Asks NVIDIA's management library. Without it, ``read`` answers an empty tuple at no cost."""

    def __init__(self) -> None:
        self._nvml = _load_nvml()

    @property
    def has_cuda(self) -> bool:
        return self._nvml is not None

    def read(self) -> tuple[AcceleratorReport, ...]:
        """Return what the driver says now; an accelerator that does not answer (fallen off the bus) is left out."""
        if self._nvml is None:
            return ()
        nvml, found = self._nvml, []
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError:
            return ()
        for index in range(count):
            try:
                found.append(_read_one(nvml, index))
            except nvml.NVMLError:
                continue
        return tuple(found)


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


def _read_one(nvml: Any, index: int) -> AcceleratorReport:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        utilisation = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0
    except nvml.NVMLError:
        # MIG devices and some virtual ones do not tell.
        utilisation = 0.0
    return AcceleratorReport(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        memory_bytes=int(memory.total),
        memory_used_bytes=int(memory.used),
        utilisation=utilisation,
    )
