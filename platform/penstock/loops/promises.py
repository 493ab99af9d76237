"""What is sold, for the scale loop: how many replicas each deployment must keep warm, and whether it may have them."""

from __future__ import annotations

import datetime
import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from django.db.models import Min, Q

from capacity.models import CostProfile
from capacity.policy.autoscale import Config, promise_short
from capacity.policy.ledger import sold_peak
from capacity.policy.stock import Term, provisioned_replicas
from capacity.promises import terms_sold
from serving.models import Deployment, Incident, Replica
from serving.selectors import replicas_at_most
from serving.services import incident_close, incident_open

log = logging.getLogger(__name__)

AHEAD_S = 15.0
"""A promise that starts is warm so long before it, beyond a cold start: a few ticks of scale and reconcile."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Replicas that must run for what is sold, and in words what that is; none where nothing is."""

    replicas: int = 0
    reason: str = ""


class Promises:
    """What is sold, for ``deployments``, which are all that are enabled; read once a tick: two queries, and one of
    supplies."""

    def __init__(self, deployments: Iterable[Deployment], *, now: float) -> None:
        self._now = now
        known = list(deployments)
        at = datetime.datetime.fromtimestamp(now, datetime.UTC)
        self._sold: Mapping[uuid.UUID, tuple[Term, ...]] = terms_sold(at=at)
        self._most: dict[uuid.UUID, int] = {}
        for one in known:
            self._most[one.pool_id] = self._most.get(one.pool_id, 0) + replicas_at_most(one)
        sold = [one for one in known if one.pool_id in self._sold]
        least = Min("replicas__supply_mu_per_min", filter=Q(replicas__state=Replica.State.READY))
        rows = Deployment.objects.filter(pk__in=[one.pk for one in sold]).order_by().annotate(least=least)
        self._supply: dict[uuid.UUID, float | None] = dict(rows.values_list("pk", "least"))

    def unserved(self) -> dict[uuid.UUID, float]:
        """MU/min that are sold now, by the id of each pool that no deployment serves."""
        found = {
            pool_id: sold_peak(terms, since=self._now, until=self._now)
            for pool_id, terms in self._sold.items()
            if pool_id not in self._most
        }
        return {pool_id: mu for pool_id, mu in found.items() if mu > 0.0}

    def floor(self, deployment: Deployment, profile: CostProfile) -> Floor:
        """What the deployment must keep warm: its part of its pool's promises, by how many replicas it may have.

        Counts what is sold now and what starts within a cold start. The slowest of its replicas stands for all.
        """
        terms = self._sold.get(deployment.pool_id, ())
        until = self._now + deployment.cold_start_s + AHEAD_S
        peak = sold_peak(terms, since=self._now, until=until)
        most = self._most.get(deployment.pool_id, 0)
        # Where no deployment may have any, each is as far from the promise as the others.
        share = replicas_at_most(deployment) / most if most else 1.0
        mu = peak * share
        if mu <= 0.0:
            return Floor()
        supply = self._supply.get(deployment.pk) or profile.replica_mu_per_min
        pool = deployment.pool
        replicas = provisioned_replicas(
            mu, supply_mu_per_min=supply, oversell_factor=pool.oversell_factor, keep_spare=pool.keep_spare
        )
        rules = [f"{supply:.4g} each"]
        rules += [f"oversold by {pool.oversell_factor:g}"] if pool.oversell_factor > 1.0 else []
        rules += ["one spare"] if pool.keep_spare else []
        return Floor(replicas, f"{mu:.4g} MU/min sold ({', '.join(rules)})")


def tell_short(deployment: Deployment, config: Config, *, now: datetime.datetime) -> None:
    """Open an incident while the deployment may have fewer replicas than what is sold needs; close it when it may."""
    known = Incident.objects.filter(kind=Incident.Kind.PROMISE_SHORT, deployment_id=deployment.pk, closed_at=None)
    incident = known.first()
    missing = promise_short(config)
    if not missing:
        if incident is not None:
            incident_close(incident=incident, what="It may have as many replicas as what is sold needs.", now=now)
        return
    if incident is not None:
        return
    most = replicas_at_most(deployment)
    summary = (
        f"{deployment}: {config.provisioned_for} needs {config.provisioned_replicas} replicas, and it may have {most}. "
        "Raise its maximum, or sell less."
    )
    evidence = {"provisioned_replicas": config.provisioned_replicas, "most": most, "sold": config.provisioned_for}
    incident_open(kind=Incident.Kind.PROMISE_SHORT, summary=summary, deployment=deployment, evidence=evidence, now=now)
    log.error("%s", summary)


def tell_unserved(deployments: Iterable[Deployment], promises: Promises, *, now: datetime.datetime) -> None:
    """Open an incident for each pool of which something is sold and that no deployment serves, and close those that are
    over, also those of ``tell_short`` for what serves no more.

    It is told of the deployment that was stopped last. ``deployments``: all that are enabled.
    """
    sold = promises.unserved()
    known = {one.pk for one in deployments}
    stopped = list(
        Deployment.objects.filter(pool_id__in=sold, removed_at=None).select_related("pool").order_by("-updated_at")
    )
    pools = {one.pk: one.pool_id for one in stopped}
    told = set()
    for incident in Incident.objects.filter(kind=Incident.Kind.PROMISE_SHORT, closed_at=None):
        is_of_short = "most" in incident.evidence
        pool_id = pools.get(incident.deployment_id) if incident.deployment_id else None
        if is_of_short and incident.deployment_id not in known:
            incident_close(incident=incident, what="The deployment serves no more.", now=now)
        elif not is_of_short and pool_id is None:
            incident_close(incident=incident, what="The pool is served again, or nothing is sold of it.", now=now)
        elif pool_id is not None:
            told.add(pool_id)
    for deployment in stopped:
        if deployment.pool_id in told:
            continue
        told.add(deployment.pool_id)
        mu = sold[deployment.pool_id]
        summary = (
            f"{deployment}: {mu:.4g} MU/min of the pool {deployment.pool.name} are sold, and no deployment serves it. "
            "Start it, or end what is sold."
        )
        evidence = {"sold_mu_per_min": mu}
        incident_open(
            kind=Incident.Kind.PROMISE_SHORT, summary=summary, deployment=deployment, evidence=evidence, now=now
        )
        log.error("%s", summary)
