"""The books of one admitted request: its journal lines, its place on a replica, and its one settlement.

Nothing here awaits, so that a cancelled request settles like any other.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from capacity.policy.cost import IMAGE_TOKEN, CostProfile, request_cost
from serving.gateway.demands import Granted
from serving.gateway.dialects import Dialect, Parsed
from serving.gateway.dispatch import Placement
from serving.gateway.records import (
    AdmitLine,
    Attempt,
    Charge,
    DeploymentRecord,
    EndLine,
    LimitRecord,
    Outcome,
    ProgressLine,
    Usage,
)
from serving.gateway.relay import Relay
from serving.gateway.usage import expected_usage
from serving.policy import admission
from serving.policy.admission import Estimate
from serving.policy.classes import BEST_EFFORT, RESERVED, ServiceClass

if TYPE_CHECKING:
    from serving.gateway.auth import Principal
    from serving.gateway.services import Services

_UNMEASURED: frozenset[Outcome] = frozenset({"completed", "client_closed", "timeout"})
"""Ends after which the engine's work is charged by the estimate of the input when its own count was not seen."""


class Books:
    """``arrived`` and ``progressed`` are on the monotonic clock; times in lines are UNIX seconds. ``bucket``: of the
    reservation that the request is inside of. ``is_untold``: it may be inside of one, though it is best effort: this
    gateway knows its own part of that alone."""

    def __init__(
        self,
        services: Services,
        *,
        request_id: str,
        client_id: str,
        arrived: float,
        principal: Principal,
        dialect: Dialect,
        parsed: Parsed,
        deployment: DeploymentRecord,
        profile: CostProfile,
        estimate: Estimate,
        granted: Granted | None,
        service_class: ServiceClass,
        bucket: LimitRecord | None = None,
        is_untold: bool = False,
        charges: tuple[Charge, ...] = (),
    ) -> None:
        self.services = services
        self.request_id = request_id
        self.client_id = client_id
        self.arrived = arrived
        self.principal = principal
        self.dialect = dialect
        self.parsed = parsed
        self.deployment = deployment
        self.profile = profile
        self.estimate = estimate
        self.granted = granted
        self.service_class = service_class
        self.bucket = bucket
        self.is_untold = is_untold
        self.charges = charges
        self.attempts: list[Attempt] = []
        self.placement: Placement | None = None
        self.relay: Relay | None = None
        self.usage: Usage | None = None
        self.finish_reason = ""
        self.reason = ""
        """Why the last replica was chosen."""
        self.is_settled = False
        self.routed_at = self.first_byte_at = 0.0
        self.ttft_s = 0.0
        self.held_s = 0.0
        """For so long the client of the present attempt has not read what was there for it."""
        self.progressed = arrived

    def admit(self) -> None:
        """Raises JournalUnavailable: the request must then be refused."""
        self.services.journal.admit(
            AdmitLine(
                id=self.request_id,
                at=time.time(),
                tenant=self.principal.tenant.id,
                key=self.principal.key.uuid,
                pool=self.deployment.pool,
                deployment=self.deployment.id,
                revision=self.deployment.revision,
                model=self.parsed.model,
                dialect=self.dialect.name,
                profile_version=self.profile.version,
                estimated_mu=self.estimate.mu,
                estimated=expected_usage(self.estimate),
                service_class=self.service_class,
                client_request_id=self.client_id,
                stream=self.parsed.is_stream,
                charges=self.charges,
            )
        )

    def place(self, placement: Placement) -> None:
        """The request goes to a replica: a new attempt."""
        self.placement = placement
        self.reason = placement.decision.reason
        now = time.time()
        self.routed_at = self.routed_at or now
        self.attempts.append(Attempt(replica=placement.replica.id, started_at=now))

    def first_byte(self) -> None:
        """The client is about to get its first bytes."""
        if not self.first_byte_at:
            self.first_byte_at = time.time()
            self.ttft_s = time.monotonic() - self.arrived
            if self.placement is not None:
                self.services.dispatcher.started(self.deployment.id, self.placement.ticket)

    def _told(self) -> Usage | None:
        """The engine's counts so far, as it tells them."""
        return self.usage if self.relay is None else self.relay.usage()

    def seen(self) -> Usage | None:
        """The engine's counts so far; where it tells them at the end alone, what could be counted of its events, and
        the estimate of the input. An engine may count images among the input and not say how much they are."""
        usage = self._told()
        if usage is None:
            return None
        if self.relay is not None and not self.relay.is_exact:
            usage.input_tokens = self.estimate.input_tokens
            usage.cached_tokens = self.estimate.cached_tokens
        if self.estimate.image_tokens and IMAGE_TOKEN not in usage.units:
            units = admission.untold_units(self.estimate, input_tokens=usage.input_tokens)
            usage = msgspec.structs.replace(usage, units={**usage.units, **units})
        return usage

    def progress(self, now: float) -> None:
        """Write how far the stream has come. Call at most once a second."""
        self.progressed = now
        usage = self.seen()
        if usage is not None and self.placement is not None:
            self.services.journal.progress(
                ProgressLine(id=self.request_id, at=time.time(), replica=self.placement.replica.id, usage=usage)
            )
            if self.granted is not None and self.bucket is not None and self.service_class == RESERVED:
                self.services.grants.overrun(self.granted, self.bucket, self._price(usage))

    def leave(self, outcome: str, *, ok: bool = False) -> None:
        """The request leaves its replica, and its slot is free. Idempotent. A failed attempt that nobody has seen
        anything of leaves no usage behind."""
        placement, self.placement = self.placement, None
        if placement is None:
            return
        usage = self.seen()
        attempt = self.attempts[-1]
        attempt.ended_at = time.time()
        attempt.outcome = outcome
        attempt.output_tokens = usage.output_tokens if usage is not None else 0
        attempt.held_ms, self.held_s = float(round(self.held_s * 1000)), 0.0
        if not self.first_byte_at:
            self.relay, self.usage = None, None
        self.services.dispatcher.finish(self.deployment.id, placement.ticket, ok=ok)

    def settle(self, outcome: Outcome, status: int, error: str = "") -> None:
        """Close the books on this request. Never awaits, runs once."""
        if self.is_settled:
            return
        self.is_settled = True
        seen, told = self.seen(), self._told()
        was_placed = self.placement is not None
        heard = self.first_byte_at > 0
        replica = self.attempts[-1].replica if self.attempts else ""
        finish_reason = self.relay.finish_reason if self.relay is not None else self.finish_reason
        is_exact = self.relay is None or self.relay.is_exact
        self.leave(outcome, ok=outcome == "completed" or (outcome == "client_closed" and heard))
        usage, lower_bound = (seen, not is_exact) if seen is not None else self._unseen(outcome, was_placed)
        tokens = usage.input_tokens + usage.output_tokens
        mu = self._price(usage) if tokens or usage.units else 0.0
        services = self.services
        if outcome == "refused":
            # What was refused for want of room, and may have been promised, counts so in the guarantee ledger.
            reason = "limits_unavailable" if self.is_untold and status in (429, 503) else error or "engine_refused"
            services.refusals.count(self.principal, self.deployment.pool, reason=reason, status=status)
        if self.granted is not None:
            limits = [demand.limit for demand in self.granted.demands]
            services.grants.settle(
                self.granted,
                admission.actual_amounts(
                    limits, tokens=tokens, mu=mu, money=mu * self.profile.price_per_1000_mu / 1000
                ),
            )
        is_lent = self.service_class == BEST_EFFORT
        if mu:
            services.loads.used(self.deployment.id, mu, is_lent=is_lent)
        # Whose last attempt has made way was not served: when it asked again, that was taken off its tenant's counter.
        if is_lent and self.attempts and self.attempts[-1].outcome != "made_way":
            services.dispatcher.best_effort.settle(self.deployment.id, self.principal.tenant.id, mu - self.estimate.mu)
        services.journal.end(
            EndLine(
                id=self.request_id,
                at=time.time(),
                outcome=outcome,
                status=status,
                usage=usage,
                actual_mu=mu,
                lower_bound=lower_bound,
                replica=replica,
                attempts=tuple(self.attempts),
                routed_at=self.routed_at,
                first_byte_at=self.first_byte_at,
                finish_reason=finish_reason,
                error=error[:500],
            )
        )
        if outcome == "completed":
            services.loads.completed(self.deployment.id)
            if not lower_bound:
                services.learned.note(
                    self.principal.key.id,
                    self.deployment.id,
                    self.parsed.ask,
                    input_tokens=usage.input_tokens,
                    cached_tokens=usage.cached_tokens,
                    output_tokens=usage.output_tokens,
                )
                told_images = told.units.get(IMAGE_TOKEN, 0.0) if told is not None else 0.0
                services.learned.note_images(self.deployment.id, self.parsed.ask, int(told_images))
        self._observe(outcome, status, usage, mu, replica, error)

    def _unseen(self, outcome: Outcome, was_placed: bool) -> tuple[Usage, bool]:
        """(what is charged without the engine's counts, whether it is not exact: input estimated, output the least)."""
        if was_placed and outcome in _UNMEASURED:
            usage = Usage(
                input_tokens=self.estimate.input_tokens,
                cached_tokens=self.estimate.cached_tokens,
                units=dict(self.estimate.units),
            )
            return usage, True
        return Usage(), False

    def _price(self, usage: Usage) -> float:
        return request_cost(
            self.profile,
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            units=usage.units,
        )

    def _observe(self, outcome: str, status: int, usage: Usage, mu: float, replica: str, error: str) -> None:
        services, model = self.services, self.deployment.name
        duration_s = time.monotonic() - self.arrived
        metrics = services.metrics.models[model]
        metrics.requests[outcome, status] += 1
        metrics.duration.observe(duration_s)
        if self.first_byte_at:
            metrics.first_byte.observe(self.ttft_s)
        metrics.input_tokens += usage.input_tokens
        metrics.cached_tokens += usage.cached_tokens
        metrics.output_tokens += usage.output_tokens
        metrics.mu += mu
        metrics.classes[self.service_class].mu += mu
        if self.relay is not None:
            services.metrics.events += self.relay.events
        if services.config.access_log or outcome != "completed":
            services.request_log.write(
                {
                    "event": "request",
                    "level": "info",
                    "request_id": self.request_id,
                    "client_request_id": self.client_id,
                    "tenant": self.principal.tenant.id,
                    "key": self.principal.key.uuid,
                    "model": self.parsed.model,
                    "dialect": self.dialect.name,
                    "stream": self.parsed.is_stream,
                    "class": self.service_class,
                    "replica": replica,
                    "routed": self.reason,
                    "attempts": len(self.attempts),
                    "outcome": outcome,
                    "status": status,
                    "input_tokens": usage.input_tokens,
                    "cached_tokens": usage.cached_tokens,
                    "output_tokens": usage.output_tokens,
                    "mu": mu,
                    "ttft_ms": int(self.ttft_s * 1e4) / 10,
                    "duration_ms": int(duration_s * 1e4) / 10,
                    "error": error,
                }
            )
