"""The rows of the operator console: what a template reads, with the small sums that belong to one row."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from capacity.models import Accelerator, Host
from penstock.web import figures
from penstock.web.live import Live, Now
from serving.models import Deployment, Incident, ScalingDecision

CARDS_AT_MOST = 20


@dataclass(frozen=True)
class Step:
    """One phase of a start. ``mark`` is done, now, fail or empty."""

    label: str
    mark: str
    detail: str = ""


@dataclass(frozen=True)
class ReplicaRow:
    id: UUID
    name: str
    deployment: Deployment
    state: str
    phase: str
    since_s: float | None
    reason: str
    host: str
    host_handle: str
    accelerators: str
    steps: tuple[Step, ...]
    share: float | None
    supply_mu_per_min: float
    in_flight: float | None
    target: int
    kv_share: float | None
    engine: str
    can_retry: bool

    @property
    def pill(self) -> str:
        return {"ready": "ok", "failed": "bad", "draining": "warn", "stopping": "off", "pending": "off"}.get(
            self.state, "busy"
        )

    @property
    def load_share(self) -> float | None:
        return None if self.in_flight is None else self.in_flight / self.target


@dataclass(frozen=True)
class DeploymentRow:
    deployment: Deployment
    engine: str
    is_simulated: bool
    marks: list[tuple[str, str]]
    most: int
    """Replicas that it may have."""
    ready: int
    starting: int
    failed: int
    have_mu_per_min: float
    could_mu_per_min: float
    sold_mu_per_min: float
    used_mu_per_min: float
    reference_mu_per_min: float
    """MU/min of one reference replica: turns this pool's MU/min into replica-equivalents."""
    is_calibrated: bool
    ttft_p95_ms: float | None
    now: Now | None
    claw_back_s: float | None
    """Within this the owner of a reservation has back what was lent; None until the pool has a price."""

    @property
    def offered_share(self) -> float | None:
        if self.now is None or not self.have_mu_per_min:
            return None
        return self.now.offered_mu_per_min / self.have_mu_per_min

    @property
    def marks_label(self) -> str:
        return f"{self.ready} ready, {self.starting} starting, {self.failed} failed, {self.most} at most"

    @property
    def meter_kind(self) -> str:
        share = self.offered_share
        return "warn" if share is not None and share > 1.0 else "used"

    @property
    def meter_label(self) -> str:
        if self.offered_share is None:
            return "offered load not known"
        return f"{figures.percent(self.offered_share)} % of what is ready is asked for"

    @property
    def is_slow(self) -> bool:
        """TTFT p95 above the pool's objective."""
        return self.ttft_p95_ms is not None and self.ttft_p95_ms > self.deployment.pool.ttft_objective_ms

    @property
    def sold_share(self) -> float | None:
        return self.sold_mu_per_min / self.have_mu_per_min if self.sold_mu_per_min and self.have_mu_per_min else None


@dataclass(frozen=True)
class HostRow:
    host: Host
    report_age_s: float | None
    is_silent: bool
    facts: Mapping[str, Any]
    accelerators: list[Accelerator]
    replicas: int
    ready: int
    environments: list[Mapping[str, Any]]

    @property
    def memory_used_bytes(self) -> int | None:
        total, free = self.facts.get("memory_bytes"), self.facts.get("memory_available_bytes")
        return total - free if total and free is not None else None

    @property
    def memory_used_share(self) -> float | None:
        used = self.memory_used_bytes
        return None if used is None else used / self.facts["memory_bytes"]


@dataclass(frozen=True)
class IncidentRow:
    """An incident, how long it was open, and the last thing done about it."""

    incident: Incident
    open_s: float | None
    last_step: str


@dataclass(frozen=True)
class Totals:
    """Over all pools. In MU/min when there is one pool, else in replica-equivalents (MU of two pools do not add)."""

    unit: str
    have: float
    could: float
    sold: float
    used: float
    offered: float | None
    requests_per_s: float | None
    refused_per_s: float | None
    ready: int
    starting: int
    failed: int
    pool: str = ""

    @property
    def utilisation(self) -> float | None:
        return self.used / self.have if self.have else None


@dataclass(frozen=True)
class Console:
    at: datetime
    totals: Totals
    headline: str
    deployments: list[DeploymentRow]
    replicas: list[ReplicaRow]
    hosts: list[HostRow]
    decisions: list[ScalingDecision]
    incidents: list[IncidentRow]
    open_incidents: int
    live: Live
    feed_age_s: float | None

    @property
    def as_table(self) -> bool:
        return len(self.replicas) > CARDS_AT_MOST

    @property
    def silent_hosts(self) -> list[HostRow]:
        return [row for row in self.hosts if row.is_silent]

    @property
    def failed_replicas(self) -> list[ReplicaRow]:
        return [row for row in self.replicas if row.state == "failed"]
