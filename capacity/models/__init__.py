"""What there is to sell, and what was used of it."""

from capacity.models.enrolment import EnrolmentToken
from capacity.models.guarantees import GuaranteeDay, GuaranteeMinute
from capacity.models.hardware import Accelerator, HardwareType, Host
from capacity.models.pools import CostProfile, Model, Pool
from capacity.models.reservations import Reservation
from capacity.models.supply import ReplicaSupply
from capacity.models.usage import (
    OUTCOMES,
    BooksState,
    QuarantinedUsage,
    UsageAnchor,
    UsageChain,
    UsageRecord,
    UsageRollup,
    Watermark,
)

__all__ = [
    "OUTCOMES",
    "Accelerator",
    "BooksState",
    "CostProfile",
    "EnrolmentToken",
    "GuaranteeDay",
    "GuaranteeMinute",
    "HardwareType",
    "Host",
    "Model",
    "Pool",
    "QuarantinedUsage",
    "ReplicaSupply",
    "Reservation",
    "UsageAnchor",
    "UsageChain",
    "UsageRecord",
    "UsageRollup",
    "Watermark",
]
