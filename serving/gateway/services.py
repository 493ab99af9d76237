"""What every request of one gateway process shares."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from functools import lru_cache
from typing import Any

from capacity.policy.cost import CostProfile, request_cost
from serving.gateway.calibration import Calibration
from serving.gateway.config import Config
from serving.gateway.dispatch import Dispatcher
from serving.gateway.grants import Grants
from serving.gateway.journal import Journal
from serving.gateway.loads import Loads
from serving.gateway.logs import RequestLog, Sink
from serving.gateway.metrics import Metrics
from serving.gateway.records import AdmitLine, PoolRecord, ProfileRecord, ReplicaRecord, Usage
from serving.gateway.refused import RefusalNotes
from serving.gateway.shipper import Shipper
from serving.gateway.snapshot import SnapshotStore
from serving.gateway.state import State
from serving.gateway.upstream import Connection, UpstreamPool
from serving.gateway.watches import Watches
from serving.policy.admission import Learned
from serving.policy.allowance import Unsettled
from serving.policy.routing import RoutingPolicy, least_wait

_MARK_BYTES = 16 * 1024
"""Of both ends of a long request, in its mark: to digest one of 20 MiB would keep all streams waiting for 0.1 s."""


class Services:
    """Owner of the process's parts; ``start`` and ``stop`` bracket their lives. Made inside a running loop."""

    def __init__(self, config: Config, log: Any, sink: Sink, *, policy: RoutingPolicy = least_wait) -> None:
        self.config = config
        self.log = log
        self.request_log = RequestLog(sink, config.name)
        self.state = State(config.state_url)
        self.store = SnapshotStore(self.state, config.data / "snapshot.json")
        # Of this process, not of the name: what a killed gateway held must end although its name is soon back.
        identity = f"{config.name}.{secrets.token_hex(4)}"
        self.grants = Grants(self.state, identity, gateways=config.gateways)
        self.loads = Loads(self.state, identity, snapshot=self._snapshot_age)
        self.journal = Journal(config.data / "journal", config.name, time.time)
        self.shipper = Shipper(self.state, self.journal, price=self.price)
        self.refusals = RefusalNotes(self.state)
        self.upstream = UpstreamPool(connect_s=config.connect_s, keep_alive_s=config.upstream_keep_alive_s)
        self.dispatcher = Dispatcher(
            self._replicas,
            self.loads,
            policy,
            queue_s=config.queue_s,
            queue_max=config.queue_max,
            on_claw_back=self._clawed_back,
        )
        best_effort = self.dispatcher.best_effort
        self.loads.on_cut = best_effort.cut_at
        self.loads.on_way = best_effort.make_way_at
        self.loads.order, self.loads.on_order = best_effort.tell, best_effort.hear
        self.loads.returns, self.loads.on_returns = best_effort.tell_places, best_effort.hear_places
        self.unsettled = Unsettled()
        self.loads.held, self.loads.on_held = self.unsettled.tell, self.unsettled.hear
        self.learned = Learned()
        self.calibration = Calibration(self)
        self.metrics = Metrics(self._gauges, lambda: self.grants.standing.phase)
        self.watches = Watches()
        self.in_flight = 0
        self.started_at = time.time()
        self._profiles: dict[tuple[str, int], CostProfile] = {}
        self._heads: dict[tuple[str, str, bytes], bytes] = {}
        self._salt_key = config.peppers[min(config.peppers)]
        self.cache_salt = lru_cache(maxsize=10_000)(self._make_cache_salt)

    async def start(self) -> None:
        await self.store.start()
        await self.grants.start()
        await self.loads.start()
        await self.journal.start()
        await self.shipper.start()
        await self.refusals.start()
        await self.calibration.start()

    async def stop(self) -> None:
        """In the order that loses nothing: no new figures after the loads, the journal's end shipped last."""
        await self.calibration.stop()
        self.watches.stop()
        self.upstream.close()
        await self.grants.stop()
        await self.loads.stop()
        await self.refusals.stop()
        await self.journal.close()
        await self.shipper.stop()
        await self.store.stop()
        await self.state.close()

    def _replicas(self, deployment: str) -> tuple[ReplicaRecord, ...]:
        return self.store.view.replicas_by_deployment.get(deployment, ())

    def _clawed_back(self, deployment_id: str, seconds: float) -> None:
        """The owner of a reservation has found no room for so long."""
        view = self.store.view
        deployment = view.deployments.get(deployment_id)
        pool = view.pools.get(deployment.pool) if deployment is not None else None
        if deployment is None or pool is None:
            return
        metrics = self.metrics.models[deployment.name]
        metrics.claw_back.observe(seconds)
        metrics.claw_backs_late += seconds > pool.claw_back_s

    def _snapshot_age(self) -> tuple[int, float]:
        return self.store.view.version, self.store.age_s()

    def profile(self, pool: PoolRecord) -> CostProfile:
        """The pool's price."""
        return self.version(pool.id, pool.profile)

    def version(self, pool: str, record: ProfileRecord) -> CostProfile:
        """A version of a pool's price. Versions are never edited, so each is converted once and kept."""
        key = (pool, record.version)
        found = self._profiles.get(key)
        if found is None:
            found = self._profiles[key] = cost_profile(record)
        return found

    def price(self, admitted: AdmitLine, usage: Usage) -> float:
        """MU of a request by the profile version it was admitted under, or the pool's present one if that is gone.

        Where the pool is gone as well, nothing tells what a token costs: then it is the share of the admitted estimate
        that the tokens used have in the tokens estimated, at most all of it.
        """
        if not usage.input_tokens and not usage.output_tokens:
            return 0.0
        profile = self._profiles.get((admitted.pool, admitted.profile_version))
        if profile is None:
            pool = self.store.view.pools.get(admitted.pool)
            if pool is None:
                used = usage.input_tokens + usage.output_tokens
                estimated = admitted.estimated.input_tokens + admitted.estimated.output_tokens
                return admitted.estimated_mu * min(1.0, used / max(1, estimated))
            profile = self.profile(pool)
        return request_cost(
            profile,
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            units=usage.units,
        )

    def _make_cache_salt(self, tenant: str) -> str:
        """A tenant's own salt: nobody can find out by timing whether another tenant has sent the same prompt."""
        digest = hmac.digest(self._salt_key, b"prefix cache salt of " + tenant.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode()

    def mark(self, model: str, body: bytes) -> str:
        """A digest of what a request asks, the same at all gateways when it is sent again: of no use to whoever sees
        it. Of a long body its length, beginning and end: when owners come back, all that wait are told times at once.
        """
        if len(body) > 2 * _MARK_BYTES:
            body = b"%d %b %b" % (len(body), body[:_MARK_BYTES], body[-_MARK_BYTES:])
        asked = b"%b\0%b" % (model.encode(), body)
        return hashlib.blake2b(asked, key=self._salt_key[:64], digest_size=8).hexdigest()

    async def call_replica(
        self, replica: ReplicaRecord, path: bytes, body: bytes, request_id: str, *, once: bool = False
    ) -> Connection:
        """POST ``body`` as JSON; ``once``: in no case twice. Raises UpstreamError."""
        key = (replica.address, replica.token, path)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) > 4096:
                self._heads.clear()
            host = replica.address.partition("://")[2].encode()
            token = b"authorization: Bearer %s\r\n" % replica.token.encode() if replica.token else b""
            head = self._heads[key] = (
                b"POST %s HTTP/1.1\r\nhost: %s\r\n%scontent-type: application/json\r\naccept: */*\r\nx-request-id: "
                % (path, host, token)
            )
        full = b"%s%s\r\ncontent-length: %d\r\n\r\n" % (head, request_id.encode(), len(body))
        return await self.upstream.exchange(replica.address, full, body, once=once)

    async def ask_replica(
        self, replica: ReplicaRecord, path: bytes, body: bytes, request_id: str, *, seconds: float, limit: int
    ) -> tuple[int, bytes]:
        """``call_replica`` and the whole answer, of at most ``limit`` bytes: its status and body.

        Raises UpstreamError or TimeoutError; the connection is then closed.
        """
        connection: Connection | None = None
        try:
            async with asyncio.timeout(seconds):
                connection = await self.call_replica(replica, path, body, request_id)
                answer = await connection.read_all(limit)
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
        connection.release()
        return connection.status, answer

    def _gauges(self) -> dict[str, float]:
        return {
            "in_flight": self.in_flight,
            "waiting": self.dispatcher.waiting,
            "waiting_best_effort": self.dispatcher.best_effort.waiting,
            "upstream_connections": self.upstream.open_connections,
            "snapshot_version": self.store.view.version,
            "snapshot_age_seconds": self.store.age_s(),
            "limits_left_out": sum(self.store.view.limits_left_out.values()),
            "journal_writable": float(self.journal.writable),
            "grants_shared": float(self.grants.mode == "shared"),
        }


def cost_profile(record: ProfileRecord) -> CostProfile:
    """The pure policy's form of a published profile."""
    return CostProfile(
        version=record.version,
        base=record.base,
        alpha=record.alpha,
        beta=record.beta,
        gamma=record.gamma,
        epsilon=record.epsilon,
        cached_factor=record.cached_factor,
        modalities=record.modalities,
        long_input_tiers=record.long_input_tiers,
        calibrated=record.calibrated,
        price_per_1000_mu=record.price_per_1000_mu,
    )
