"""What adopting a calibration would change, for pages and the REST API."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from capacity.models import CostProfile, Pool
from capacity.policy.cost import CostProfile as Price
from capacity.policy.preview import Preview, preview
from capacity.selectors import profile_in_force
from capacity.usage.pools import pool_use
from capacity.usage.reads import terms_of
from serving.measuring import TERMS, Unmeasured, price_of, supply_of
from serving.models import Calibration
from serving.services.calibrations import is_reference
from tenants.models import Tenant
from tenants.needed import StillNeeded

WEEK = datetime.timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Change:
    """A coefficient in MU. ``now`` None: the pool has no price in force."""

    name: str
    now: float | None
    new: float

    @property
    def factor(self) -> float | None:
        return self.new / self.now if self.now else None


@dataclass(frozen=True, slots=True)
class Adoption:
    """``supply_mu_per_min``: of a replica on the measured hardware, by what would then be in force.

    On hardware that is not the pool's reference ``price`` is the one in force: only the supply changes. ``tenants``:
    slugs by id.
    """

    is_reference: bool
    price: Price
    current: CostProfile | None
    supply_mu_per_min: float
    coefficients: tuple[Change, ...]
    preview: Preview
    since: datetime.datetime
    tenants: Mapping[uuid.UUID, str]


def adoption_of(row: Calibration, *, now: datetime.datetime) -> Adoption:
    """What adopting ``row`` would change. Raises StillNeeded where nothing was fitted, or the pool is gone."""
    if not Pool.objects.filter(pk=row.pool_id).exists():
        raise StillNeeded(f"The pool {row.pool_name} was removed.", hint="There is no price that it could become.")
    current = profile_in_force(pool_id=row.pool_id, at=now)
    reference = is_reference(row, current)
    try:
        if reference or current is None:
            price = price_of(row, version=current.version + 1 if current else 1, previous=current)
            supply = 100.0
        else:
            price, supply = terms_of(current), supply_of(row, current)
    except Unmeasured as error:
        raise StillNeeded(
            "There is no price to look at.", hint=f"{error} It can be looked at once it is fitted."
        ) from error
    since = now - WEEK
    found = preview(pool_use(pool_id=row.pool_id, since=since, until=now), price)
    ids = [one.tenant_id for one in found.rows if one.tenant_id]
    return Adoption(
        is_reference=reference,
        price=price,
        current=current,
        supply_mu_per_min=supply,
        coefficients=changes_of(price, current),
        preview=found,
        since=since,
        tenants=dict(Tenant.objects.filter(pk__in=ids).values_list("pk", "slug")),
    )


def changes_of(price: Price, current: CostProfile | None) -> tuple[Change, ...]:
    """The coefficients of ``price`` beside those in force."""
    return tuple(Change(name, getattr(current, name) if current else None, getattr(price, name)) for name in TERMS)
