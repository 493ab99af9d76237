"""What there is to sell, and what was used of it."""

from capacity.models.enrolment import EnrolmentToken
from capacity.models.guarantees import GuaranteeDay, GuaranteeHour, GuaranteeMinute
from capacity.models.hardware import Accelerator, HardwareType, Host
from capacity.models.invoices import BilledDay, Invoice, LateUsage
from capacity.models.pools import CostProfile, Model, Pool
from capacity.models.reservations import Reservation, ReservationGap
from capacity.models.rollups import AcceleratorRollup, PoolRollup, RefusalRollup
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
    "AcceleratorRollup",
    "BilledDay",
    "BooksState",
    "CostProfile",
    "EnrolmentToken",
    "GuaranteeDay",
    "GuaranteeHour",
    "GuaranteeMinute",
    "HardwareType",
    "Host",
    "Invoice",
    "LateUsage",
    "Model",
    "Pool",
    "PoolRollup",
    "QuarantinedUsage",
    "RefusalRollup",
    "ReplicaSupply",
    "Reservation",
    "ReservationGap",
    "UsageAnchor",
    "UsageChain",
    "UsageRecord",
    "UsageRollup",
    "Watermark",
]
