"""One small installation for the tests that only use it; tests that break things start their own."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.gateway.harness import PROFILE, Cluster, Engine, Gateway, cluster, key_record

if TYPE_CHECKING:
    import anthropic
    import openai

AUTH = {"authorization": "Bearer mu_acme1_secret"}


class Shared:
    """Two gateways, two engines, tenants ``acme`` and ``other``; models ``alpha``, ``beta``, ``bare``, ``secret``.

    Of other tasks: ``vectors`` (embeddings and scores), ``iris`` (MLflow), ``plain`` (a server of its own kind).
    """

    def __init__(self, made: Cluster) -> None:
        self.cluster = made
        self.models = 0
        self.engines: list[Engine] = [made.engine("a"), made.engine("b")]
        records = [
            ("tenant", {"id": "acme", "slug": "acme"}),
            ("tenant", {"id": "other", "slug": "other"}),
            ("tenant", {"id": "idle", "slug": "idle", "active": False}),
            ("pool", {"id": "open", "slug": "open", "profile": PROFILE}),
            ("pool", {"id": "rows", "slug": "rows", "profile": PROFILE | {"modalities": {"row": 0.25, "kib": 0.125}}}),
            ("pool", {"id": "sights", "slug": "sights", "profile": PROFILE | {"modalities": {"image_token": 0.25}}}),
            ("pool", {"id": "closed", "slug": "closed", "profile": PROFILE, "tenants": ["other"]}),
            ("key", key_record("acme1", "acme")),
            ("key", key_record("other1", "other")),
            ("key", key_record("idle1", "idle")),
            ("key", key_record("revoked1", "acme", revoked=True)),
            ("key", key_record("expired1", "acme", expires_at=1000.0)),
            ("key", key_record("scopeless1", "acme", scopes=["usage"])),
            ("key", key_record("onemodel1", "acme", models=["alpha"])),
            ("key", key_record("elsewhere1", "acme", allowed_ips=["10.1.0.0/16"])),
            ("key", key_record("here1", "acme", allowed_ips=["127.0.0.0/8"])),
            ("key", key_record("oldpepper1", "acme") | {"pepper": 9}),
        ]
        pools = {"alpha": "open", "secret": "closed", "bare": "open", "beta": "open", "sighted": "sights"}
        for name, pool in pools.items():
            context = {"max_model_len": 4096} if name == "alpha" else {}
            deployment = {"id": f"d-{name}", "name": name, "pool": pool, "revision": "r1", "runtime": "simulated"}
            records.append(("deployment", deployment | context))
        for name, speaks in (("vectors", ["embed", "score"]), ("iris", ["invocations"]), ("plain", ["http"])):
            pool = "rows" if name != "vectors" else "open"
            deployment = {"id": f"d-{name}", "name": name, "pool": pool, "revision": "r1", "runtime": "simulated"}
            records.append(("deployment", deployment | {"speaks": speaks}))
            records += [("replica", engine.replica(f"d-{name}")) for engine in self.engines]
        records += [("replica", engine.replica("d-alpha")) for engine in self.engines]
        records += [("replica", engine.replica("d-sighted")) for engine in self.engines]
        records.append(("replica", self.engines[0].replica("d-secret")))
        records.append(("replica", self.engines[0].replica("d-beta")))
        records.append(("replica", self.engines[0].replica("d-bare", state="draining")))
        made.publish(*records)
        self.gateways = [
            made.start_gateway(f"gateway-{number}", PENSTOCK_METRICS_TOKEN="scrape", PENSTOCK_GATEWAY_QUEUE_S="1.5")
            for number in (1, 2)
        ]
        for gateway in self.gateways:
            made.settle(gateway.wait())
        self.gateway = self.gateways[0]
        self.url = self.gateway.url
        self.http = httpx.Client(base_url=self.url, headers=AUTH, timeout=20)
        self._strict: Gateway | None = None
        self._clients: dict[str, openai.OpenAI] = {}
        self._claude: anthropic.Anthropic | None = None

    @property
    def strict(self) -> Gateway:
        """A third gateway, with very little patience."""
        if self._strict is None:
            seconds = {"HEADER_S": "0.5", "BODY_S": "0.5", "TOTAL_S": "1", "IDLE_S": "0.4", "DRAIN_S": "1"}
            seconds["KEEP_ALIVE_S"] = "1"
            self._strict = self.cluster.gateway(
                "gateway-3", **{f"PENSTOCK_GATEWAY_{name}": value for name, value in seconds.items()}
            )
        self.cluster.settle(self._strict)
        return self._strict

    def publish(self, *records: tuple[str, dict[str, object]]) -> None:
        self.cluster.publish(*records)
        self.cluster.settle(*self.gateways)

    def client(self, key: str = "mu_acme1_secret") -> openai.OpenAI:
        """The official client; one per key, closed at the end."""
        import openai  # seconds, which the tests of the state need not wait for

        if key not in self._clients:
            self._clients[key] = openai.OpenAI(api_key=key, base_url=f"{self.url}/v1", max_retries=0, timeout=20)
        return self._clients[key]

    def close(self) -> None:
        self.http.close()
        for client in self._clients.values():
            client.close()
        if self._claude is not None:
            self._claude.close()

    @property
    def claude(self) -> anthropic.Anthropic:
        """Anthropic's official client."""
        import anthropic

        if self._claude is None:
            self._claude = anthropic.Anthropic(api_key="mu_acme1_secret", base_url=self.url, max_retries=0, timeout=20)
        return self._claude

    def post(self, path: str, body: dict[str, Any], *, key: str = "acme1") -> httpx.Response:
        return self.http.post(path, json=body, headers={"authorization": f"Bearer mu_{key}_secret"})

    def books(self, answer: httpx.Response) -> tuple[dict[str, Any], dict[str, Any]]:
        """The journal's admit and end line of an answered request."""
        request_id = answer.headers["x-penstock-request-id"]
        end = self.cluster.ended(request_id)
        return self.cluster.journal()[request_id]["a"], end

    def served(self, request_id: str) -> dict[str, object]:
        """What the engine that served a request logged of it."""
        found = [entry for engine in self.engines for entry in engine.log() if entry["id"] == request_id]
        assert len(found) == 1
        return found[0]


@pytest.fixture(scope="session")
def shared() -> Iterator[Shared]:
    with cluster() as made:
        running = Shared(made)
        try:
            yield running
        except BaseException:
            for gateway in running.gateways:
                print(gateway.log_path.read_text()[-4000:])
            raise
        finally:
            running.close()


class Model:
    """A model of one test: replicas on the two engines, or on those given."""

    def __init__(self, shared: Shared, name: str) -> None:
        self.shared = shared
        self.name = name
        self.id = f"d-{name}"
        self.cluster = shared.cluster
        self.gateway = shared.gateway
        self.a, self.b = shared.engines
        self.before = {engine.name: len(engine.log()) for engine in shared.engines}

    def place(self, *engines: Engine, **more: object) -> Model:
        deployment = {"id": self.id, "name": self.name, "pool": "open", "revision": "r1", "runtime": "simulated"}
        replicas = [engine.replica(self.id, **more) for engine in engines]
        self.shared.publish(("deployment", deployment), *(("replica", replica) for replica in replicas))
        return self

    def body(self, script: dict[str, object] | None = None, **more: object) -> dict[str, object]:
        """10 input tokens, 5 output tokens, unless told otherwise."""
        user = json.dumps(script or {})
        return {"model": self.name, "prompt": "abcd" * 10, "max_tokens": 5, "user": user, **more}

    def post(
        self, script: dict[str, object] | None = None, *, at: Gateway | None = None, **more: object
    ) -> httpx.Response:
        url = f"{(at or self.gateway).url}/v1/completions"
        return httpx.post(url, json=self.body(script, **more), headers=AUTH, timeout=20)

    def log(self) -> list[dict[str, Any]]:
        """What the engines logged since the test began."""
        return [entry for engine in (self.a, self.b) for entry in engine.log()[self.before[engine.name] :]]

    def end(self, answer: httpx.Response) -> dict[str, Any]:
        return self.cluster.ended(answer.headers["x-penstock-request-id"])


@pytest.fixture
def model(shared: Shared) -> Iterator[Model]:
    """A model of the test's own with a replica on each engine; engines do as they are told until it ends."""
    shared.models += 1
    made = Model(shared, f"m{shared.models}")
    yield made.place(made.a, made.b)
    for engine in shared.engines:
        engine.control()


@pytest.fixture
def spare(shared: Shared) -> Iterator[Engine]:
    """An engine to kill."""
    engine = shared.cluster.engine("spare")
    yield engine
    engine.process.stop(signal.SIGKILL)
