"""What there is to sell, and what was used of it."""

from capacity.models.enrolment import EnrolmentToken
from capacity.models.hardware import Accelerator, HardwareType, Host
from capacity.models.pools import CostProfile, Model, Pool, Reservation
from capacity.models.usage import OUTCOMES, BooksState, QuarantinedUsage, UsageRecord, UsageRollup, Watermark

__all__ = [
    "OUTCOMES",
    "Accelerator",
    "BooksState",
    "CostProfile",
    "EnrolmentToken",
    "HardwareType",
    "Host",
    "Model",
    "Pool",
    "QuarantinedUsage",
    "Reservation",
    "UsageRecord",
    "UsageRollup",
    "Watermark",
]
