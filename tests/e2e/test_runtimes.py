"""What is no language model, and engines of an operator's own, from the REST API to the usage record.

An installation of its own, with the simulated engine beside: nothing here needs vLLM.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.operate import deploy
from tests.e2e.pages import usage_pages
from tests.e2e.stack import Stack, wait_for
from tests.worker.mlflow_models import Trained, train

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("runtimes") / "data", engine="simulated", gateways=1)
    try:
        yield running.start()
        assert running.stop() == 0
    except BaseException:
        print(running.tail(120))
        running.kill_all()
        raise


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("classifier") / "iris")


def post(stack: Stack, path: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(
        f"http://127.0.0.1:{stack.api_port}{path}",
        json=body,
        headers={"Authorization": f"Bearer {stack.key()}", **headers},
        timeout=60,
    )


def replica_of(stack: Stack, name: str) -> dict[str, Any]:
    (row,) = stack.rows(
        "select r.state, r.phase, r.reason, r.engine_version from serving_replica r "
        "join serving_deployment d on d.id = r.deployment_id where d.name = ?",
        name,
    )
    return row


def wait_ready(stack: Stack, name: str, ask: Any) -> None:
    def answers() -> bool:
        rows = stack.rows("select state, reason from serving_replica where state = 'failed'")
        assert not rows, rows
        return bool(ask().status_code == 200)

    wait_for(f"an answer of {name}", answers, seconds=400, every=0.5)


def test_a_classifier_answers_and_is_metered_in_mu(own: Stack, trained: Trained) -> None:
    folder = {"artifact_kind": "path", "artifact_value": str(trained.folder)}
    made = deploy(own, "iris", model=folder)
    assert made["runtime"] == "mlflow"
    assert "sklearn" in made["reason"]
    assert list(made["options"]["probe_input"]) == ["inputs"]
    body = {"inputs": trained.rows}
    wait_ready(own, "iris", lambda: post(own, "/invocations/iris", body))
    answer = post(own, "/invocations/iris", body, **{"X-Request-Id": "iris-metered"})
    assert answer.json() == {"predictions": trained.classes}
    assert replica_of(own, "iris")["engine_version"] == "3.17.2"
    row = wait_for("the usage row", lambda: own.usage("client_request_id = 'iris-metered'"), seconds=20)[0]
    sent = len(answer.request.content)
    assert (row["outcome"], row["input_tokens"], row["output_tokens"]) == ("completed", 0, 0)
    assert json.loads(row["units"]) == {"row": len(trained.rows), "kib": pytest.approx(sent / 1024)}
    price = made["modalities"]
    by_hand = made["base"] + price["row"] * len(trained.rows) + price["kib"] * sent / 1024
    assert row["actual_mu"] == pytest.approx(by_hand, rel=1e-9)
    receipt, told_mu = usage_pages(own, row)
    assert "iris-metered" in receipt
    assert f'<td>row</td><td class="num quiet">–</td><td class="num">{len(trained.rows)}</td>' in receipt
    assert told_mu == pytest.approx(by_hand, rel=0.01)


def test_a_classifier_is_asked_for_predictions_alone(own: Stack, trained: Trained) -> None:
    chat = post(own, "/v1/chat/completions", {"model": "iris", "messages": [{"role": "user", "content": "hi"}]})
    assert chat.status_code == 404, chat.text
    assert "/invocations" in chat.json()["error"]["message"]
    bad = post(own, "/invocations/iris", {"inputs": [["no number"]]})
    assert bad.status_code == 400, bad.text
    assert post(own, "/invocations/demo-sim", {"inputs": [[1]]}).status_code == 404


def test_an_idle_classifier_is_probed_and_lives(own: Stack) -> None:
    """Health checks ask for a prediction: one that was taken for dead would be replaced, and leave an incident."""
    time.sleep(15)
    assert replica_of(own, "iris")["state"] == "ready"
    assert not own.rows("select * from serving_incident")
    log = (own.data.parent / f"{own.data.name}.up.log").read_text()
    assert "does not take the probe" not in log


def test_any_server_of_openais_api_serves_by_its_command(own: Stack) -> None:
    argv = [sys.executable, "-m", "worker.simulated", "--host", "{host}", "--port", "{port}"]
    argv += ["--served-model-name", "{name}"]
    made = deploy(
        own, "mine", model={"artifact_kind": "none"}, runtime="command", options={"argv": argv, "memory_bytes": 1 << 20}
    )
    assert made["reason"] == "Set by hand."
    ask = {"model": "mine", "prompt": "hello", "max_tokens": 4}
    wait_ready(own, "mine", lambda: post(own, "/v1/completions", ask))
    with openai.OpenAI(base_url=own.base_url, api_key=own.key(), max_retries=0) as client:
        stream = client.chat.completions.create(
            model="mine", messages=[{"role": "user", "content": "hi"}], max_tokens=8, stream=True,
            extra_headers={"X-Request-Id": "mine-metered"},
        )  # fmt: skip
        events = list(stream)
    assert any(event.choices and event.choices[0].delta.content for event in events)
    row = wait_for("the usage row", lambda: own.usage("client_request_id = 'mine-metered'"), seconds=20)[0]
    assert row["outcome"] == "completed"
    assert row["output_tokens"] > 0
    assert replica_of(own, "mine")["state"] == "ready"


SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.say(200 if self.path == "/live" else 404, {})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.say(200 if self.path == "/double" else 404, {"doubled": [2 * value for value in asked["values"]]})
    def say(self, status, answer):
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_):
        return

ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


def test_a_plain_server_is_asked_at_its_own_path(own: Stack) -> None:
    options = {
        "argv": [sys.executable, "-c", SERVER, "{host}", "{port}"],
        "speaks": ["http"],
        "readiness_path": "/live",
        "invocations_path": "/double",
    }
    deploy(own, "doubler", model={"artifact_kind": "none"}, runtime="command", options=options)
    wait_ready(own, "doubler", lambda: post(own, "/invocations/doubler", {"values": [1]}))
    answer = post(own, "/invocations/doubler", {"values": [1, 2.5]}, **{"X-Request-Id": "doubled"})
    assert answer.json() == {"doubled": [2, 5.0]}
    row = wait_for("the usage row", lambda: own.usage("client_request_id = 'doubled'"), seconds=20)[0]
    assert (row["outcome"], set(json.loads(row["units"]))) == ("completed", {"kib"})
