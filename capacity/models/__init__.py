"""What there is to sell, and what was used of it."""

from capacity.models.hardware import Accelerator, HardwareType, Host
from capacity.models.pools import CostProfile, Model, Pool, Reservation
from capacity.models.usage import UsageRecord, UsageRollup, Watermark

__all__ = [
    "Accelerator",
    "CostProfile",
    "HardwareType",
    "Host",
    "Model",
    "Pool",
    "Reservation",
    "UsageRecord",
    "UsageRollup",
    "Watermark",
]
