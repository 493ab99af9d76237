"""The data plane's one ASGI callable: door, routes, and one request in order up to its exchange with a replica."""

from __future__ import annotations

import functools
import ipaddress
import time

import msgspec

from capacity.policy.cost import CostProfile
from serving.gateway import auth, dialects, errors, listing, standing_headers
from serving.gateway.access import Access, AccessBook
from serving.gateway.auth import Principal
from serving.gateway.books import Books
from serving.gateway.charges import amount_asked, charged, in_the_way
from serving.gateway.demands import Demand, Granted, Refused
from serving.gateway.dialects import DIALECTS, Dialect, Parsed
from serving.gateway.errors import ApiError, LimitReached
from serving.gateway.exchange import Exchange
from serving.gateway.journal import JournalUnavailable
from serving.gateway.members import Members, is_of_member
from serving.gateway.metrics import CONTENT_TYPE
from serving.gateway.refused import refusal_of
from serving.gateway.request import ClientGone, Message, Receive, Request, Send
from serving.gateway.services import Services
from serving.gateway.standing import Desk, Standings, admit
from serving.gateway.state import StateUnavailable
from serving.gateway.upstream import UpstreamError
from serving.gateway.usage import UNREADABLE
from serving.policy import admission, allowance
from serving.policy.admission import Estimate
from serving.policy.classes import BEST_EFFORT

TOKENIZE_S = 30.0

_FORWARDED = (b"x-forwarded-for", b"forwarded", b"x-real-ip")


class Gateway:
    """The ASGI callable for ``http``. ``services`` are started by the lifespan."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.verified = auth.Verified()
        self.members = Members(services.config.peppers)
        self.accesses = AccessBook(services)
        self.standings = Standings(services)
        self.is_stopping = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send, time.monotonic())
        services = self.services
        services.in_flight += 1
        try:
            await self._route(request)
        except ApiError as error:
            services.metrics.refusals[error.code or "error"] += 1
            if request.principal is not None:
                services.refusals.count(request.principal, request.pool, reason=error.reason, status=error.status)
            services.log.info(
                "refused",
                request_id=request.id,
                client_request_id=request.client_id,
                status=error.status,
                code=error.code,
                path=request.path[:200],
            )
            await request.answer(error.status, request.shape.body(error, request.id), error.headers)
        except ClientGone:
            return
        finally:
            services.in_flight -= 1

    async def _route(self, request: Request) -> None:
        path = request.path
        dialect = DIALECTS.get(path)
        if dialect is not None:
            await self._speak(request, dialect)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            await self._models(request, path[len("/v1/models/") :])
        elif path == "/healthz":
            _require_method(request, "GET")
            await request.answer(200, b'{"status":"ok"}')
        elif path == "/readyz":
            _require_method(request, "GET")
            await self._ready(request)
        elif path == "/metrics":
            _require_method(request, "GET")
            self._require_scraper(request)
            await request.answer(200, self.services.metrics.text(), kind=(b"content-type", CONTENT_TYPE))
        elif (dialect := dialects.find(path)) is not None:
            await self._speak(request, dialect)
        elif path.startswith("/v1/responses/"):
            raise errors.not_stored(path[len("/v1/responses/") :].partition("/")[0])
        else:
            if path.startswith("/v1/messages/"):
                request.answer_as(errors.ANTHROPIC)
            raise errors.unknown_url(request.method, path)

    async def _speak(self, request: Request, dialect: Dialect) -> None:
        request.answer_as(dialect.shape)
        _require_method(request, "POST")
        await self._infer(request, dialect)

    # ---------------------------------------------------------------- one request
    async def _infer(self, request: Request, dialect: Dialect) -> None:
        services = self.services
        config = services.config
        principal = request.principal = await self._authenticate(request)
        body = await request.body(config.max_body, config.body_s)
        parsed = dialect.read(body)
        access = self.accesses.find(services.store.view, principal, parsed.model)
        deployment = access.deployment
        request.pool = access.pool.id
        dialect.require(parsed, deployment)
        request.base += access.headers
        if not dialect.is_metered:
            await self._tokenize(request, dialect, parsed, access)
            return

        estimate: Estimate | None = None

        def estimating(profile: CostProfile) -> Estimate:
            nonlocal estimate
            estimate = admission.estimate(
                parsed.ask,
                profile,
                services.learned,
                key=principal.key.id,
                deployment=deployment.id,
                max_model_len=deployment.max_model_len,
            )
            return estimate

        async def acquire(demands: tuple[Demand, ...], who: str) -> Granted | Refused:
            # It may wait in line for a seat: not for a client that has gone.
            return await request.while_here(self._ask(demands, who))

        def bounding(profile: CostProfile, expected: Estimate, slot_mu: float) -> float:
            return allowance.most_mu(
                parsed.ask,
                expected,
                profile,
                services.learned,
                deployment=deployment.id,
                max_model_len=deployment.max_model_len,
                slot_mu=slot_mu,
            )

        grants = services.grants
        desk = Desk(grants.take, acquire, self._over_limit, services.unsettled, grants.alone)
        standing = self.standings.find(services.store.view, access)
        try:
            mark = functools.partial(services.mark, parsed.model, body)
            admitted = await admit(standing, access, estimating, bounding, mark, desk=desk)
        except ApiError as error:
            services.refusals.note(refusal_of(request, dialect, parsed, access, estimate, error))
            raise
        finally:
            if estimate is not None:
                request.base.append((b"x-penstock-mu-estimated", b"%.6g" % estimate.mu))
        granted = admitted.granted
        request.base.append((b"x-penstock-class", admitted.service_class.encode()))
        request.base += standing_headers.told(services.grants, access.shown)
        if admitted.bucket is not None:
            request.base += standing_headers.mu_left(services.grants, admitted.bucket)
        books = Books(
            services,
            request_id=request.id,
            client_id=request.client_id,
            arrived=request.arrived,
            principal=principal,
            dialect=dialect,
            parsed=parsed,
            deployment=deployment,
            profile=admitted.profile,
            estimate=admitted.estimate,
            granted=granted,
            service_class=admitted.service_class,
            bucket=admitted.bucket,
            is_untold=grants.alone > 1 and admitted.service_class == BEST_EFFORT and bool(admitted.passed),
            charges=charged(services.grants, granted, admitted.passed),
        )
        try:
            books.admit()
        except JournalUnavailable as error:
            self._give_back(granted)
            services.log.error("the journal cannot be written", request_id=request.id, error=str(error))
            raise errors.unavailable(
                "Usage cannot be recorded at the moment, so nothing is served. Try again shortly.",
                code="journal_unavailable",
                retry_after_s=5.0,
            ) from error
        except BaseException:
            self._give_back(granted)
            raise
        services.loads.offered(deployment.id, admitted.estimate.mu)

        def note(error: ApiError) -> None:
            services.refusals.note(refusal_of(request, dialect, parsed, access, admitted.estimate, error))

        await Exchange(services, request, books, admitted.claim, note).run()

    async def _authenticate(self, request: Request) -> Principal:
        services = self.services
        view = services.store.view
        authorization = auth.credential(request.headers)
        if authorization is not None and is_of_member(authorization):
            return self.members.authenticate(authorization, tenants=view.tenants, now=time.time())
        principal = await auth.authenticate(
            authorization,
            verified=self.verified,
            keys=view.keys,
            tenants=view.tenants,
            source=services.store,
            peppers=services.config.peppers,
            client_ip=lambda: auth.client_address(
                request.peer, request.headers.get(b"x-forwarded-for"), services.config.trusted_proxies
            ),
            now=time.time(),
        )
        auth.require_scope(principal, auth.INFERENCE)
        return principal

    async def _acquire(self, demands: tuple[Demand, ...], who: str) -> Granted | None:
        """Ask for everything the request's limits must grant. Raises ApiError 429 or 503."""
        if not demands:
            return None
        answer = await self._ask(demands, who)
        if isinstance(answer, Refused):
            raise self._over_limit(answer, demands)
        return answer

    async def _ask(self, demands: tuple[Demand, ...], who: str) -> Granted | Refused:
        """What the limits say, and promise ``who``. Raises ApiError 503 where nobody can tell."""
        try:
            return await self.services.grants.acquire(demands, who)
        except StateUnavailable as error:
            raise errors.unavailable(
                "Your limits cannot be checked at the moment. Try again shortly.",
                code="limits_unavailable",
                retry_after_s=1.0,
            ) from error

    def _over_limit(self, refused: Refused, demands: tuple[Demand, ...]) -> ApiError:
        limit = refused.limit
        self.services.metrics.limit_refusals[limit.kind] += 1
        said = admission.refusal(
            limit,
            asked=amount_asked(limit, demands),
            remaining=refused.remaining,
            retry_after_s=refused.retry_after_s,
            currency=self.services.config.currency,
        )
        told = admission.refusal_headers(limit, remaining=refused.remaining, retry_after_s=said.retry_after_s)
        headers = [(name.encode(), value.encode()) for name, value in told.items()]
        headers += errors.retry_after(said.retry_after_s)
        code = "insufficient_quota" if limit.is_budget else "rate_limit_exceeded"
        return LimitReached(
            said.message,
            code=code,
            type=said.type,
            headers=headers,
            obstacles=(in_the_way(refused, demands),),
            retry_after_s=said.retry_after_s,
        )

    def _give_back(self, granted: Granted | None) -> None:
        if granted is not None:
            self.services.grants.settle(granted, {demand.limit.id: 0.0 for demand in granted.demands})

    async def _tokenize(self, request: Request, dialect: Dialect, parsed: Parsed, access: Access) -> None:
        """Ask any ready replica. It makes no tokens, so it takes no slot, no journal line and no token limit."""
        services, deployment = self.services, access.deployment
        granted = services.grants.take(access.fixed) or await request.while_here(
            self._acquire(access.fixed, access.principal.key.id)
        )
        try:
            replicas = [
                r for r in services.store.view.replicas_by_deployment.get(deployment.id, ()) if r.state == "ready"
            ]
            if not replicas:
                raise errors.no_replica(deployment.name, is_stopped=deployment.is_stopped)
            replica = min(replicas, key=lambda r: (services.loads.replica(r.id).n, r.id))
            body = dialect.engine_body(parsed, priority=0, cache_salt="")
            try:
                status, answer = await request.unless_gone(
                    services.ask_replica(
                        replica,
                        dialect.engine_path,
                        body,
                        request.id,
                        seconds=TOKENIZE_S,
                        limit=services.config.max_answer,
                    )
                )
            except (UpstreamError, TimeoutError) as error:
                raise ApiError(502, "The engine did not answer.", code="engine_lost", type=errors.SERVER) from error
        finally:
            if granted is not None:
                services.grants.settle(granted, {})
        if status != 200:
            is_mistake = status in (400, 413, 422)
            raise ApiError(
                400 if is_mistake else 502,
                "The engine refused to tokenize this." if is_mistake else "The engine failed on this request.",
                code="invalid_request" if is_mistake else "engine_error",
                type=errors.INVALID if is_mistake else errors.SERVER,
            )
        try:
            answer = dialect.read_answer(parsed, answer, request.id).body
        except UNREADABLE as error:
            raise ApiError(
                502, "The engine failed on this request.", code="engine_error", type=errors.SERVER
            ) from error
        await request.answer(200, answer)

    # ---------------------------------------------------------------- other routes
    async def _models(self, request: Request, name: str) -> None:
        is_anthropic = b"anthropic-version" in request.headers
        if is_anthropic:
            request.answer_as(errors.ANTHROPIC)
        _require_method(request, "GET")
        principal = await self._authenticate(request)
        view = self.services.store.view
        if name:
            deployment = self.accesses.find(view, principal, name).deployment
            if deployment.is_stopped:
                raise errors.model_not_found(name)
            shown = (listing.as_anthropic if is_anthropic else listing.as_openai)(deployment, name)
            await request.answer(200, msgspec.json.encode(shown))
        else:
            found = listing.models_of(view, principal)
            await request.answer(200, listing.listed(found, is_anthropic=is_anthropic))

    async def _ready(self, request: Request) -> None:
        services = self.services
        age_s = services.store.age_s()
        view = services.store.view
        is_ready = view.version > 0 and services.journal.writable and not self.is_stopping
        body = {
            "status": "ready" if is_ready else "not ready",
            "gateway": services.config.name,
            "snapshot": {
                "version": view.version,
                "published_at": view.published_at,
                "age_s": round(age_s, 3) if age_s != float("inf") else None,
                "limits_left_out": sum(view.limits_left_out.values()),
            },
            "journal": {"writable": services.journal.writable},
            "grants": {"mode": services.grants.mode, **services.grants.standing._asdict()},
            "state": {"connected": services.state.connected},
            "in_flight": services.in_flight - 1,
            "waiting": services.dispatcher.waiting,
            "stopping": self.is_stopping,
        }
        await request.answer(200 if is_ready else 503, msgspec.json.encode(body))

    def _require_scraper(self, request: Request) -> None:
        """Metrics name tenants' models: whoever knows the token, or, where none is set, this machine, not by proxy."""
        token = self.services.config.metrics_token
        if token:
            if auth.is_same_token(request.headers.get(b"authorization"), token):
                return
        elif _is_loopback(request.peer) and not any(name in request.headers for name in _FORWARDED):
            return
        raise errors.forbidden("Metrics are served on loopback, or with the metrics token.", code="metrics_forbidden")


def _require_method(request: Request, method: str) -> None:
    if request.method != method:
        raise ApiError(
            405,
            f"Not allowed to {request.method} on {request.path[:200]}; use {method}.",
            code="method_not_allowed",
            headers=[(b"allow", method.encode())],
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
