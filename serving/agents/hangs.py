"""Taking a hung replica out: out of the rotation and condemned in one step, with the evidence that was at hand."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from serving.models import Incident, Replica
from serving.services import incident_open, replica_transition

log = logging.getLogger(__name__)


@transaction.atomic
def replica_condemn(
    *, replica: Replica, reason: str, evidence: Mapping[str, Any], now: datetime.datetime | None = None
) -> bool:
    """Order the agent to keep evidence and kill ``replica``; gateways stop offering it requests with the next snapshot.

    Returns False if somebody moved the replica first.
    """
    if not replica_transition(replica=replica, to=Replica.State.STOPPING, reason=f"hung: {reason}", kill=True, now=now):
        return False
    incident_open(
        kind=Incident.Kind.HANG,
        summary=f"{replica} hung: {reason}",
        replica=replica,
        evidence=evidence,
        now=now,
    )
    log.warning("%s hung (%s): out of the rotation, its agent kills it", replica, reason)
    return True
