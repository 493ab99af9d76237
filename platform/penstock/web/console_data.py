"""What the operator console shows, gathered in a fixed number of queries and one exchange with the state."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import F, Q

from capacity.models import Accelerator, CostProfile, Host, Pool, UsageRecord
from capacity.selectors import (
    claw_back_s,
    profiles_in_force,
    reference_mu_per_min,
    reservations_running,
    sold_mu_per_min,
    used_mu_per_min,
)
from penstock.web import figures
from penstock.web.console_rows import Console, DeploymentRow, HostRow, IncidentRow, ReplicaRow, Step, Totals
from penstock.web.live import Live, read_live
from serving.models import Deployment, Incident, Replica, Revision, ScalingDecision
from serving.selectors import current_revisions, replicas_at_most

PHASES = (
    ("environment", "Environment"),
    ("weights", "Weights"),
    ("starting", "Engine starts"),
    ("warming", "Warms up"),
    ("ready", "Ready"),
)
IN_TRANSITION = ("pending", "starting", "draining", "stopping")
HOST_SILENT_S = 10.0
TTFT_WINDOW = timedelta(minutes=5)
TTFT_ROWS = 2000
FAILED_SHOWN = timedelta(hours=24)
FEED_ROWS = 6
CHANGES_SHOWN = timedelta(hours=24)
HOLDS_SHOWN = timedelta(minutes=5)
HOLDS_READ = 500


def gather(now: datetime) -> Console:
    """Everything the console shows at ``now``. The number of queries does not depend on what is deployed."""
    deployments = list(Deployment.objects.select_related("pool__model"))
    replicas = list(
        Replica.objects.exclude(state=Replica.State.STOPPED)
        .exclude(state=Replica.State.FAILED, state_since__lt=now - FAILED_SHOWN)
        .select_related("host", "revision", "deployment")
        .order_by("deployment__name", "created_at")
    )
    replicas = without_replaced(replicas)
    live = read_live([str(row.pk) for row in deployments], [str(row.pk) for row in replicas])
    profiles, sold = profiles_in_force(at=now), sold_mu_per_min(at=now)
    rows = deployment_rows(deployments, replicas, live, now, profiles=profiles, sold=sold)
    shown = sorted((replica_row(row, live, now) for row in replicas), key=replica_order)
    totals = total(rows, profiles=profiles, sold=sold)
    return Console(
        at=now,
        totals=totals,
        headline=headline(totals, rows),
        deployments=rows,
        replicas=shown,
        hosts=host_rows(list(Host.objects.select_related("hardware_type")), replicas, now),
        decisions=_decisions(now),
        incidents=[incident_row(row) for row in Incident.objects.order_by("-opened_at")[:FEED_ROWS]],
        open_incidents=Incident.objects.filter(closed_at__isnull=True).count(),
        live=live,
        feed_age_s=live.feed_age_s(now.timestamp()),
    )


def pools_in_play(now: datetime) -> list[Pool]:
    """Pools that something serves or of which something is sold."""
    sold = reservations_running(at=now).values("pool")
    return list(Pool.objects.filter(Q(pk__in=Deployment.objects.values("pool")) | Q(pk__in=sold)))


def without_replaced(replicas: Sequence[Replica]) -> list[Replica]:
    """``replicas`` without the failed ones that a younger, ready one has replaced: the incident tells of them."""
    youngest: dict[UUID, datetime] = {}
    for row in replicas:
        if row.state == Replica.State.READY:
            youngest[row.deployment_id] = max(row.created_at, youngest.get(row.deployment_id, row.created_at))
    return [
        row
        for row in replicas
        if row.state != Replica.State.FAILED
        or row.deployment_id not in youngest
        or youngest[row.deployment_id] < row.state_since
    ]


def deployment_rows(
    deployments: Sequence[Deployment],
    replicas: Sequence[Replica],
    live: Live,
    now: datetime,
    *,
    profiles: Mapping[UUID, CostProfile],
    sold: Mapping[UUID, float],
) -> list[DeploymentRow]:
    revisions = current_revisions(deployments)
    used = used_mu_per_min(now=now, group="deployment_id")
    ttft = ttft_p95_ms(now)
    by_deployment: dict[UUID, list[Replica]] = defaultdict(list)
    for replica in replicas:
        by_deployment[replica.deployment_id].append(replica)
    rows = []
    for deployment in deployments:
        own = by_deployment[deployment.pk]
        revision, profile = revisions.get(deployment.pk), profiles.get(deployment.pool_id)
        reference, most = reference_mu_per_min(profile), replicas_at_most(deployment)
        rows.append(
            DeploymentRow(
                deployment=deployment,
                engine=revision.get_runtime_display() if revision else "no revision",
                is_simulated=revision is not None and revision.runtime == Revision.Runtime.SIMULATED,
                marks=replica_marks(own, most),
                most=most,
                ready=sum(replica.state == "ready" for replica in own),
                starting=sum(replica.state in ("pending", "starting") for replica in own),
                failed=sum(replica.state == "failed" for replica in own),
                have_mu_per_min=sum(replica.supply_mu_per_min for replica in own if replica.state == "ready"),
                could_mu_per_min=most * reference,
                sold_mu_per_min=sold.get(deployment.pool_id, 0.0),
                used_mu_per_min=used.get(deployment.pk, 0.0),
                reference_mu_per_min=reference,
                is_calibrated=profile is not None and profile.calibrated,
                ttft_p95_ms=ttft.get(deployment.pk),
                now=live.deployments.get(str(deployment.pk)),
                claw_back_s=claw_back_s(profile, context_tokens=deployment.pool.model.context_tokens)
                if profile
                else None,
            )
        )
    return rows


def replica_marks(replicas: Sequence[Replica], most: int) -> list[tuple[str, str]]:
    """One mark per replica, then an empty slot for each more up to ``most`` replicas (at most 24 marks)."""
    order = {"ready": 0, "starting": 1, "pending": 1, "draining": 2, "stopping": 2, "failed": 3}
    ranked = sorted(replicas, key=lambda replica: order.get(replica.state, 4))
    shown = [
        (
            "starting" if replica.state == "pending" else "draining" if replica.state == "stopping" else replica.state,
            replica.get_state_display(),
        )
        for replica in ranked
    ]
    slots = most - sum(replica.state != "failed" for replica in replicas)
    shown += [("slot", "Could have one more")] * max(0, slots)
    return shown[:24]


def ttft_p95_ms(now: datetime) -> dict[UUID, float | None]:
    """TTFT p95 of each deployment, from the newest streams of the last five minutes."""
    rows = (
        UsageRecord.objects.filter(stream=True, ended_at__gte=now - TTFT_WINDOW, first_byte_at__isnull=False)
        .order_by("-ended_at")
        .values_list("deployment_id", "admitted_at", "first_byte_at")[:TTFT_ROWS]
    )
    samples: dict[UUID, list[float]] = defaultdict(list)
    for deployment_id, admitted_at, first_byte_at in rows:
        if first_byte_at is not None:
            samples[deployment_id].append((first_byte_at - admitted_at).total_seconds() * 1000)
    return {deployment_id: figures.percentile(values, 0.95) for deployment_id, values in samples.items()}


def start_steps(state: str, phase: str, progress: Mapping[str, Any]) -> tuple[Step, ...]:
    """The phases of a start with what is done, under way or failed. Empty for a replica that is past it."""
    if state not in ("pending", "starting", "failed"):
        return ()
    names = [name for name, _ in PHASES]
    reached = phase if phase in names else str(progress.get("phase") or progress.get("step") or "")
    if state == "failed" and reached not in names:
        return ()
    at = names.index(reached) if reached in names else -1
    share = progress.get("share")
    detail = str(progress.get("detail") or (f"{share * 100:.0f} %" if isinstance(share, int | float) else ""))
    steps = []
    for index, (_, label) in enumerate(PHASES):
        mark = "done" if index < at else ("fail" if state == "failed" else "now") if index == at else ""
        steps.append(Step(label=label, mark=mark, detail=detail if index == at else ""))
    return tuple(steps)


def replica_row(replica: Replica, live: Live, now: datetime) -> ReplicaRow:
    engine = live.engines.get(str(replica.pk))
    progress = replica.progress if isinstance(replica.progress, dict) else {}
    share = progress.get("share")
    return ReplicaRow(
        id=replica.pk,
        name=str(replica.pk)[-6:],
        deployment=replica.deployment,
        state=replica.state,
        phase=replica.phase,
        since_s=figures.seconds_between(replica.state_since, now),
        reason=replica.reason,
        host=replica.host.name if replica.host else "",
        host_handle=replica.host.handle if replica.host else "",
        accelerators=", ".join(str(index) for index in replica.accelerators),
        steps=start_steps(replica.state, replica.phase, progress),
        share=float(share) if isinstance(share, int | float) else None,
        supply_mu_per_min=replica.supply_mu_per_min,
        in_flight=live.in_flight.get(str(replica.pk), 0) if live.has_gateways else None,
        target=replica.revision.target_concurrency,
        kv_share=None if engine is None else engine.kv_usage,
        engine=replica.engine_version or replica.revision.get_runtime_display(),
        can_retry=replica.state == "failed",
    )


def replica_order(row: ReplicaRow) -> tuple[int, str, str]:
    rank = 0 if row.state == "failed" else 1 if row.state in IN_TRANSITION else 2
    return rank, row.deployment.name, row.name


def host_rows(hosts: Sequence[Host], replicas: Sequence[Replica], now: datetime) -> list[HostRow]:
    """``hosts`` with their accelerators (one query) and those of ``replicas`` that are on them."""
    accelerators: dict[UUID, list[Accelerator]] = defaultdict(list)
    for accelerator in Accelerator.objects.filter(host__in=hosts).order_by("host", "index"):
        accelerators[accelerator.host_id].append(accelerator)
    rows = []
    for host in hosts:
        own = [replica for replica in replicas if replica.host_id == host.pk and replica.state != "failed"]
        age_s = figures.seconds_between(host.last_report_at, now)
        facts = host.report if isinstance(host.report, dict) else {}
        environments = facts.get("environments")
        rows.append(
            HostRow(
                host=host,
                report_age_s=age_s,
                is_silent=host.state == Host.State.LOST or age_s is None or age_s > HOST_SILENT_S,
                facts=facts,
                accelerators=accelerators[host.pk],
                replicas=len(own),
                ready=sum(replica.state == "ready" for replica in own),
                environments=[row for row in environments if isinstance(row, dict)] if environments else [],
            )
        )
    return rows


def _decisions(now: datetime) -> list[ScalingDecision]:
    """The newest decisions that changed something, filled up with each deployment's last unchanged look.

    Only recent ones are looked at: the page asks every two seconds, and a sample a minute is kept for weeks.
    """
    rows = ScalingDecision.objects.order_by("-at").defer("inputs")
    changes = list(rows.filter(at__gte=now - CHANGES_SHOWN).exclude(before=F("after"))[: FEED_ROWS - 1])
    holds: dict[UUID, ScalingDecision] = {}
    for row in rows.filter(at__gte=now - HOLDS_SHOWN, before=F("after"))[:HOLDS_READ]:
        holds.setdefault(row.deployment_id, row)
    shown = [*changes, *list(holds.values())[: FEED_ROWS - len(changes)]]
    return sorted(shown, key=lambda row: row.at, reverse=True)


def incident_row(incident: Incident) -> IncidentRow:
    timeline = incident.timeline if isinstance(incident.timeline, list) else []
    last = timeline[-1] if timeline and isinstance(timeline[-1], dict) else {}
    open_s = None if incident.closed_at is None else (incident.closed_at - incident.opened_at).total_seconds()
    step = str(last.get("what", ""))
    return IncidentRow(incident=incident, open_s=open_s, last_step="" if step in incident.summary else step)


def total(rows: Sequence[DeploymentRow], *, profiles: Mapping[UUID, CostProfile], sold: Mapping[UUID, float]) -> Totals:
    """Sums over all deployments, in MU/min of the one pool or in replica-equivalents of several.

    ``sold`` (MU/min by pool) counts also where nothing is deployed: that is the first thing an operator must see.
    """
    is_one = len({row.deployment.pool_id for row in rows} | set(sold)) == 1

    def scaled(row: DeploymentRow, mu_per_min: float) -> float:
        return mu_per_min if is_one else mu_per_min / row.reference_mu_per_min

    sold_by_pool = [mu if is_one else mu / reference_mu_per_min(profiles.get(pool)) for pool, mu in sold.items()]
    seen = [(row, row.now) for row in rows if row.now is not None]
    return Totals(
        unit="MU/min" if is_one else "replica-eq.",
        have=sum(scaled(row, row.have_mu_per_min) for row in rows),
        could=sum(scaled(row, row.could_mu_per_min) for row in rows),
        sold=sum(sold_by_pool),
        used=sum(scaled(row, row.used_mu_per_min) for row in rows),
        offered=sum(scaled(row, now.offered_mu_per_min) for row, now in seen) if seen else None,
        requests_per_s=sum(now.requests_per_s for _, now in seen) if seen else None,
        refused_per_s=sum(now.refused_per_s for _, now in seen) if seen else None,
        ready=sum(row.ready for row in rows),
        starting=sum(row.starting for row in rows),
        failed=sum(row.failed for row in rows),
        pool=rows[0].deployment.pool.name if is_one and rows else "",
    )


def headline(totals: Totals, rows: Sequence[DeploymentRow]) -> str:
    """The sentence that answers the page's question: how much do we have, have we sold, is being used?"""
    unit = totals.unit if totals.unit == "MU/min" else "replica-equivalents"
    if not rows and totals.sold:
        return f"{figures.number(totals.sold)} {unit} are sold, and nothing is deployed to serve them."
    if not rows:
        return "Nothing is deployed yet, so there is nothing to sell."
    of_pool = f" of {totals.pool}" if totals.pool else ""
    first = (
        f"We have {figures.number(totals.have)} {unit}{of_pool}, have sold {figures.number(totals.sold)}"
        f" and use {figures.number(totals.used)}."
    )
    down = [row.deployment.name for row in rows if row.deployment.is_enabled and not row.ready]
    if down:
        verb = "has" if len(down) == 1 else "have"
        names = down[0] if len(down) == 1 else f"{', '.join(down[:-1])} and {down[-1]}"
        return f"{first} {names} {verb} no ready replica."
    if totals.sold > totals.have:
        return f"{first} More is sold than ready: short by {figures.number(totals.sold - totals.have)}."
    return f"{first} {figures.number(totals.have - totals.used)} is free."
