"""A whole installation behind the nginx of ``deploy/``, with TLS: sessions, forms, streams, addresses, websockets."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from penstock.testing import CANARY
from tests.e2e import proxy
from tests.e2e.proxy import NAME, NGINX, NO_NGINX
from tests.e2e.stack import ROOT, Stack, free_port, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(NGINX is None, reason=NO_NGINX),
]


class Proxied(Stack):
    """``penstock up`` with the settings that docs/install.md asks for, and nginx in front of it."""

    def __init__(self, data: Path) -> None:
        super().__init__(data, gateways=2)
        self.tls_port, self.plain_port = free_port(), free_port()
        self.folder = data.parent / "nginx"
        self.nginx: subprocess.Popen[bytes] | None = None
        self.clients = ExitStack()

    @property
    def origin(self) -> str:
        return f"https://{NAME}:{self.tls_port}"

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "PENSTOCK_TLS": "yes",
            "PENSTOCK_ALLOWED_HOSTS": f"{NAME},127.0.0.1",
            "PENSTOCK_CSRF_TRUSTED_ORIGINS": self.origin,
            "PENSTOCK_CONSOLE_URL": self.origin,
            "PENSTOCK_API_URL": f"{self.origin}/v1",
            "PENSTOCK_TRUSTED_PROXIES": "127.0.0.1/32",
            # The playground asks a gateway of this machine, not the proxy.
            "PENSTOCK_GATEWAY_URL": self.base_url,
        }

    def start_proxy(self) -> None:
        self.folder.mkdir()
        proxy.certify(self.folder)
        places = {
            "127.0.0.1:8000": f"127.0.0.1:{self.port}",
            "127.0.0.1:8080": f"127.0.0.1:{self.api_port}",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.tls_port} ssl;",
            "listen 80;": f"listen 127.0.0.1:{self.plain_port};",
            "    listen [::]:443 ssl;\n": "",
            "    listen [::]:80;\n": "",
            "/etc/nginx/penstock.": f"{self.folder}/penstock.",
        }
        text = proxy.replaced((ROOT / "deploy" / "nginx" / "penstock.conf").read_text(), places)
        self.nginx = subprocess.Popen(proxy.command(self.folder, text))
        wait_for("the proxy", self.is_proxied, seconds=20)

    def is_proxied(self) -> bool:
        try:
            return self.client().get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def client(self, **headers: str) -> httpx.Client:
        """Speaks TLS to the name, which is this machine's, until the installation stops."""
        base = f"https://127.0.0.1:{self.tls_port}"
        named = {"Host": f"{NAME}:{self.tls_port}", **headers}
        return self.clients.enter_context(
            httpx.Client(base_url=base, headers=named, verify=proxy.trust(self.folder), timeout=30)
        )


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    running = Proxied(tmp_path_factory.mktemp("proxied") / "data")
    try:
        running.start()
        running.start_proxy()
        yield running
        assert running.stop() == 0
    except BaseException:
        print(running.tail(120))
        running.kill_all()
        raise
    finally:
        running.clients.close()
        if running.nginx is not None:
            running.nginx.terminate()
            running.nginx.wait(60)


def signed_in(proxied: Proxied) -> httpx.Client:
    """A browser of the operator's: through the one-time link, whose form is posted with its token."""
    told = proxied.manage(
        "from tenants.models import User\n"
        "from tenants.services import sign_in_link_create\n"
        "operator = User.objects.filter(is_operator=True).first()\n"
        "print('token:' + sign_in_link_create(user=operator, actor='a test'))"
    )
    token = told.rpartition("token:")[2].split()[0]
    client = proxied.client()
    page = client.get(f"/sign-in/link/{token}")
    field = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert field is not None, page.text
    form = {"csrfmiddlewaretoken": field[1]}
    refused = client.post(f"/sign-in/link/{token}", data=form, headers={"Origin": "https://elsewhere.example"})
    assert refused.status_code == 403, "a form of another site"
    answer = client.post(f"/sign-in/link/{token}", data=form, headers={"Origin": proxied.origin})
    assert answer.status_code == 302, answer.text
    return client


def test_sessions_and_forms(proxied: Proxied) -> None:
    client = signed_in(proxied)
    answer = client.get("/console/")
    assert answer.status_code == 200
    assert answer.headers["strict-transport-security"] == "max-age=3600"
    cookies = {cookie.name: cookie for cookie in client.cookies.jar}
    assert {name: cookie.secure for name, cookie in cookies.items()} == {"csrftoken": True, "sessionid": True}
    assert "HttpOnly" in cookies["sessionid"]._rest  # type: ignore[attr-defined]


def test_without_tls_one_is_sent_on(proxied: Proxied) -> None:
    answer = httpx.get(f"http://127.0.0.1:{proxied.plain_port}/t/acme/?a=b", headers={"Host": NAME})
    assert answer.status_code == 308
    assert answer.headers["location"] == f"https://{NAME}/t/acme/?a=b"


def test_a_name_that_is_not_known_is_refused(proxied: Proxied) -> None:
    answer = proxied.client(Host="elsewhere.example").get("/api/v1/tenants")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_streams_come_event_by_event(proxied: Proxied) -> None:
    body = {"model": "demo-sim", "stream": True, "max_tokens": 40, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {proxied.key()}"}
    with proxied.client().stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        parts = [part for part in answer.iter_raw() if part.strip()]
    assert b"".join(parts).rstrip().endswith(b"data: [DONE]")
    assert len(parts) > 10, "what comes in one piece was kept until its end"


def test_where_a_key_is_used_from_is_where_the_client_is(proxied: Proxied) -> None:
    tenant = proxied.quickstart()["tenants"][0]["slug"]
    told = proxied.manage(
        "from tenants.models import Tenant\n"
        "from tenants.services import api_key_create\n"
        f"tenant = Tenant.objects.get(slug={tenant!r})\n"
        "def made(network):\n"
        "    scopes = ['inference', 'usage']\n"
        "    return api_key_create(tenant=tenant, name='x', actor='x', scopes=scopes, allowed_ips=[network])[1]\n"
        "print('keys:' + made('10.1.0.0/16') + ' ' + made('127.0.0.0/8'))"
    )
    far, near = told.rpartition("keys:")[2].split()[:2]
    forged = proxied.client(**{"X-Forwarded-For": "10.1.2.3", "Forwarded": "for=10.1.2.3"})

    def status(key: str, path: str) -> int:
        return forged.get(path, headers={"Authorization": f"Bearer {key}"}).status_code

    wait_for("the key at the gateways", lambda: status(near, "/v1/models") == 200, seconds=10)
    assert status(far, "/v1/models") == 403
    assert status(near, f"/api/v1/tenants/{tenant}") == 200
    assert status(far, f"/api/v1/tenants/{tenant}") == 401


def test_the_playground_answers(proxied: Proxied) -> None:
    client = signed_in(proxied)
    tenant = proxied.quickstart()["tenants"][0]["slug"]
    assert client.get(f"/t/{tenant}/playground/").status_code == 200
    session = "; ".join(f"{cookie.name}={cookie.value}" for cookie in client.cookies.jar)
    with connect(  # by name, at this machine
        f"wss://{NAME}:{proxied.tls_port}/t/{tenant}/playground/socket",
        sock=socket.create_connection(("127.0.0.1", proxied.tls_port)),
        ssl=proxy.trust(proxied.folder),
        origin=proxied.origin,  # type: ignore[arg-type]
        additional_headers={"Cookie": session},
    ) as connection:
        turns = [{"role": "user", "text": CANARY}]
        connection.send(json.dumps({"type": "ask", "id": 1, "model": "demo-sim", "turns": turns, "max_tokens": 8}))
        told = []
        while not told or told[-1]["type"] not in ("done", "failed", "rejected"):
            told.append(json.loads(connection.recv(timeout=30)))
    assert told[-1]["type"] == "done", told


def test_djangos_own_checks_find_nothing(proxied: Proxied) -> None:
    command = [sys.executable, str(ROOT / "manage.py"), "check", "--deploy", "--fail-level", "WARNING"]
    done = subprocess.run(command, cwd=ROOT, env=proxied.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout
