"""Who would pay more, and who less, if a new price were adopted: last week's usage, priced anew."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from capacity.policy.cost import CostProfile, request_cost

Basis = Literal["requests", "mean", "none"]
"""``requests``: single requests were priced anew; ``mean``: only the mean one, as their records are gone; ``none``:
nothing was charged, so there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class Use:
    """One request as it was used, and the MU that it was charged."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    mu: float
    units: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class TenantUse:
    """A tenant's usage of a pool in totals, and some of its requests. ``tenant_id`` None: several tenants together."""

    tenant_id: uuid.UUID | None
    requests: int
    mu: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    sample: Sequence[Use] = ()
    tenants: int = 1


@dataclass(frozen=True, slots=True)
class TenantPreview:
    """``factor``: MU by the new price per MU charged, for the same work. Shares are of the pool's MU (0..1)."""

    tenant_id: uuid.UUID | None
    tenants: int
    requests: int
    mu_now: float
    mu_new: float
    factor: float
    basis: Basis
    sampled: int
    share_now: float = 0.0
    share_new: float = 0.0


@dataclass(frozen=True, slots=True)
class Preview:
    """The whole pool, and its tenants by what the new price does to them, those first whose MU rise most."""

    rows: tuple[TenantPreview, ...]
    mu_now: float
    mu_new: float

    @property
    def factor(self) -> float:
        """MU by the new price per MU that was charged; 1 where nothing was."""
        return self.mu_new / self.mu_now if self.mu_now > 0 else 1.0


def preview(uses: Iterable[TenantUse], new: CostProfile) -> Preview:
    """Price usage anew with ``new``: MU that were charged against MU that would be.

    A tenant's factor is that of its sampled requests, as the ratio of sums; its totals are scaled with it. Requests
    that were charged nothing are left out.
    """
    found = [_priced(use, new) for use in uses]
    mu_now, mu_new = sum(row.mu_now for row in found), sum(row.mu_new for row in found)
    rows = [
        TenantPreview(
            tenant_id=row.tenant_id,
            tenants=row.tenants,
            requests=row.requests,
            mu_now=row.mu_now,
            mu_new=row.mu_new,
            factor=row.factor,
            basis=row.basis,
            sampled=row.sampled,
            share_now=row.mu_now / mu_now if mu_now > 0 else 0.0,
            share_new=row.mu_new / mu_new if mu_new > 0 else 0.0,
        )
        for row in found
    ]
    rows.sort(key=lambda row: (row.basis == "none", -row.factor, -row.mu_now))
    return Preview(rows=tuple(rows), mu_now=mu_now, mu_new=mu_new)


def _priced(use: TenantUse, new: CostProfile) -> TenantPreview:
    charged = [one for one in use.sample if one.mu > 0]
    before = math.fsum(one.mu for one in charged)
    if before > 0:
        after = math.fsum(
            request_cost(
                new,
                input_tokens=one.input_tokens,
                cached_tokens=one.cached_tokens,
                output_tokens=one.output_tokens,
                units=one.units,
            )
            for one in charged
        )
        return _row(use, after / before, "requests", len(charged))
    if use.mu > 0 and use.requests > 0:
        mean = request_cost(
            new,
            input_tokens=round(use.input_tokens / use.requests),
            cached_tokens=round(use.cached_tokens / use.requests),
            output_tokens=round(use.output_tokens / use.requests),
        )
        return _row(use, mean * use.requests / use.mu, "mean", 0)
    return _row(use, 1.0, "none", 0)


def _row(use: TenantUse, factor: float, basis: Basis, sampled: int) -> TenantPreview:
    return TenantPreview(
        tenant_id=use.tenant_id,
        tenants=use.tenants,
        requests=use.requests,
        mu_now=use.mu,
        mu_new=use.mu * factor,
        factor=factor,
        basis=basis,
        sampled=sampled,
    )
