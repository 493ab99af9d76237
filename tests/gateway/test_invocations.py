"""MLflow's scoring protocol, and servers of their own kind: which model, which fields, how many rows."""

from __future__ import annotations

import json
import signal
from typing import Any

import msgspec
import pytest

from serving.gateway.dialects import DIALECTS, Invocations, find
from serving.gateway.errors import ApiError
from serving.gateway.records import DeploymentRecord
from tests.gateway.conftest import Model, Shared
from tests.gateway.harness import Engine

SPLIT = {"columns": ["a", "b"], "data": [[1, 2], [3, 4], [5, 6]]}


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ({"dataframe_split": SPLIT}, 3),
        ({"dataframe_records": [{"a": 1}, {"a": 2}]}, 2),
        ({"instances": [[1.5], [2.5]]}, 2),
        ({"instances": {"a": [1, 2, 3], "b": [4, 5, 6]}}, 3),
        ({"inputs": [[5.1, 3.5, 1.4, 0.2]]}, 1),
        ({"inputs": {"text": ["a", "b"]}}, 2),
        ({"inputs": "one question"}, 1),
        ({"inputs": [], "params": {"top": 1}}, 0),
    ],
)
def test_rows_and_bytes_are_charged(shared: Shared, body: dict[str, Any], rows: int) -> None:
    raw = json.dumps(body).encode()
    answer = shared.http.post("/invocations/iris", content=raw)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [0]})
    admitted, end = shared.books(answer)
    units = {"kib": len(raw) / 1024} | ({"row": float(rows)} if rows else {})
    assert end["usage"] == {"units": units} == admitted["estimated"]
    assert end["actual_mu"] == pytest.approx(0.5 + 0.25 * rows + 0.125 * len(raw) / 1024)
    assert admitted["estimated_mu"] == pytest.approx(end["actual_mu"])
    assert (admitted["dialect"], end["outcome"]) == ("invocations", "completed")
    assert shared.served(answer.headers["x-penstock-request-id"])["body"] == body


def test_the_model_stands_in_the_path_or_in_the_body(shared: Shared) -> None:
    for path in ("/invocations/iris", "/serving-endpoints/iris/invocations"):
        assert shared.post(path, {"inputs": [1]}).status_code == 200
    assert shared.post("/invocations", {"model": "iris", "inputs": [1]}).status_code == 200
    answer = shared.post("/invocations", {"inputs": [1]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    for wrong in ("/invocations/secret", "/serving-endpoints/nothing/invocations"):
        assert shared.post(wrong, {"inputs": [1]}).json()["error"]["code"] == "model_not_found"
    named = find("/invocations/a/b")
    assert isinstance(named, Invocations)
    assert named.model == "a/b"
    assert find("/invocationsx") is None
    assert find("/serving-endpoints/x") is None


def test_only_mlflows_fields_reach_mlflow(shared: Shared) -> None:
    body = {"model": "iris", "inputs": [1], "params": {"a": 1}, "priority": -1, "cache_salt": "x", "other": 2}
    answer = shared.post("/invocations", body)
    served = shared.served(answer.headers["x-penstock-request-id"])
    assert served["body"] == {"inputs": [1], "params": {"a": 1}}


@pytest.mark.parametrize("body", [{}, {"inputs": [1], "instances": [1]}, {"data": [1]}])
def test_mlflow_takes_exactly_one_form(shared: Shared, body: dict[str, Any]) -> None:
    answer = shared.post("/invocations/iris", body)
    assert answer.status_code == 400
    assert "dataframe_split" in answer.json()["error"]["message"]


def test_mlflows_own_complaint_reaches_the_client(shared: Shared) -> None:
    answer = shared.post("/invocations/iris", {"inputs": "wrong"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "Failed to parse input.")
    _, end = shared.books(answer)
    assert (end["outcome"], end["actual_mu"]) == ("refused", 0.0)


def test_a_server_of_its_own_kind_gets_the_body_as_it_is(shared: Shared) -> None:
    body = {"anything": {"deep": [1, 2.5, "x"]}, "priority": 3}
    answer = shared.post("/invocations/plain", body)
    assert answer.status_code == 200
    assert shared.served(answer.headers["x-penstock-request-id"])["body"] == body
    _, end = shared.books(answer)
    assert set(end["usage"]["units"]) == {"kib"}


def test_a_server_of_its_own_kind_gets_every_byte(shared: Shared) -> None:
    raw = b'{ "model" : "plain", "a": 1, "a": [2.50, 1e3], "other": "\\u00e4" }'
    answer = shared.http.post("/invocations", content=raw)
    assert answer.status_code == 200
    _, end = shared.books(answer)
    assert end["usage"]["units"] == {"kib": len(raw) / 1024}
    seen = DIALECTS["/invocations"].read(raw)
    assert DIALECTS["/invocations"].engine_body(seen, priority=0, cache_salt="") == raw
    assert shared.served(answer.headers["x-penstock-request-id"])["body"]["model"] == "plain"  # type: ignore[index]


@pytest.fixture
def own(model: Model) -> Model:
    """A deployment of a server of its own kind, on both engines."""
    deployment = {"id": model.id, "name": model.name, "pool": "open", "revision": "r1", "runtime": "command"}
    model.shared.publish(("deployment", deployment | {"speaks": ["http"]}))
    return model


@pytest.mark.parametrize("status", [201, 202, 204, 401, 404, 405, 409, 429])
def test_what_a_server_of_its_own_kind_says_is_the_clients_and_is_said_once(own: Model, status: int) -> None:
    for engine in (own.a, own.b):
        engine.control(fail="bytes", bytes="" if status == 204 else "own words", kind="text/plain", status=status)
    answer = own.shared.post(f"/invocations/{own.name}", {"anything": 1})
    assert (answer.status_code, answer.text) == (status, "" if status == 204 else "own words")
    assert status == 204 or answer.headers["content-type"] == "text/plain"
    end = own.end(answer)
    assert (end["status"], len(end["attempts"]), len(own.log())) == (status, 1, 1)
    assert end["outcome"] == ("completed" if status < 300 else "refused")
    assert (end["actual_mu"] > 0) == (status < 300)
    # The replica is as good as before.
    for engine in (own.a, own.b):
        engine.control()
    for _ in range(4):
        assert own.shared.post(f"/invocations/{own.name}", {"anything": 1}).status_code == 200


@pytest.mark.parametrize("fault", [{"fail": "status", "status": 500}, {"fail": "drop", "at": 0}], ids=["500", "drop"])
def test_what_may_have_reached_a_server_of_its_own_kind_is_not_sent_again(own: Model, fault: dict[str, Any]) -> None:
    for _ in range(3):  # so that there are connections to be kept
        assert own.shared.post(f"/invocations/{own.name}", {"anything": 1}).status_code == 200
    before = len(own.log())
    for engine in (own.a, own.b):
        engine.control(**fault)
    answer = own.shared.post(f"/invocations/{own.name}", {"anything": 1})
    assert answer.status_code == 502
    assert len(own.log()) == before + 1
    assert len(own.end(answer)["attempts"]) == 1


def test_a_server_of_its_own_kind_that_is_gone_is_left_for_another(own: Model, spare: Engine) -> None:
    own.shared.publish(
        ("replica", spare.replica(own.id)), *(("replica", e.replica(own.id, state="draining")) for e in (own.a, own.b))
    )
    assert own.shared.post(f"/invocations/{own.name}", {"anything": 1}).status_code == 200
    spare.process.stop(signal.SIGKILL)
    own.shared.publish(("replica", own.a.replica(own.id)))
    for _ in range(4):
        assert own.shared.post(f"/invocations/{own.name}", {"anything": 1}).status_code == 200


def test_rows_are_bounded(shared: Shared) -> None:
    for body, param in (({"inputs": [0] * 100_001}, "inputs"), ({"dataframe_records": [{}] * 99_998}, "")):
        answer = shared.post("/invocations/iris", body)
        assert answer.status_code == (400 if param else 200)
        assert not param or answer.json()["error"]["param"] == param


def test_an_answer_of_another_kind_keeps_its_type(shared: Shared) -> None:
    answer = shared.post("/invocations/plain", {"as_text": "a,b\n1,2\n"})
    assert (answer.text, answer.headers["content-type"].split(";")[0]) == ("a,b\n1,2\n", "text/csv")


def test_what_is_no_object_is_refused(shared: Shared) -> None:
    for raw in (b"[1]", b"{", b"1", b""):
        answer = shared.http.post("/invocations/iris", content=raw)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    with pytest.raises(ApiError):
        Invocations().parse(b'{"model": 5}')


def test_other_deployments_predict_nothing(shared: Shared) -> None:
    answer = shared.post("/invocations/alpha", {"inputs": [1]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_supported")
    answer = shared.post("/v1/chat/completions", {"model": "iris", "messages": [{"role": "user", "content": "a"}]})
    assert "It answers /invocations." in answer.json()["error"]["message"]


def test_a_server_of_its_own_kind_is_asked_where_it_answers() -> None:
    record = DeploymentRecord(id="d", name="m", pool="p", revision="r", runtime="command", speaks=("http",))
    assert Invocations().path_of(record) == b"/invocations"
    elsewhere = msgspec.structs.replace(record, invocations_path="/v2/models/m/infer")
    assert Invocations().path_of(elsewhere) == b"/v2/models/m/infer"
