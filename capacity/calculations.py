"""From a request's shape to MU, replicas and accelerators of a pool as it is served, and back."""

from __future__ import annotations

import datetime

from django.core.exceptions import ValidationError

from capacity.models import Pool
from capacity.policy.calculator import Demand, Shape, affordable, demand
from capacity.selectors import profile_in_force
from capacity.stocks import stock_of
from capacity.usage.reads import terms_of


def calculate(
    pool: Pool,
    shape: Shape,
    *,
    now: datetime.datetime,
    requests_per_min: float | None = None,
    mu_per_min: float | None = None,
) -> Demand:
    """What so many requests of ``shape`` need of ``pool``, or how many fit into ``mu_per_min``; exactly one is given.

    On reference replicas, by the pool's rules. Raises ValidationError for a pool without a price and for a request that
    cannot be priced.
    """
    profile = profile_in_force(pool_id=pool.pk, at=now)
    if profile is None:
        raise ValidationError(f"{pool} has no price yet: nothing can be calculated.")
    each = max((one.need.accelerators for one in stock_of(pool, now=now).pool.deployments), default=0)
    try:
        if mu_per_min is not None:
            return affordable(
                terms_of(profile),
                shape,
                mu_per_min=mu_per_min,
                supply_mu_per_min=profile.replica_mu_per_min,
                accelerators_each=each,
                oversell_factor=pool.oversell_factor,
                keep_spare=pool.keep_spare,
            )
        return demand(
            terms_of(profile),
            shape,
            requests_per_min=requests_per_min or 0.0,
            supply_mu_per_min=profile.replica_mu_per_min,
            accelerators_each=each,
            oversell_factor=pool.oversell_factor,
            keep_spare=pool.keep_spare,
        )
    except ValueError as error:
        raise ValidationError(str(error)) from error
