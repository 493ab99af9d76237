"""MLflow's scoring protocol, and servers of their own kind: which model, which fields, how many rows."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from serving.gateway.dialects import Invocations, find
from serving.gateway.errors import ApiError
from serving.gateway.records import DeploymentRecord
from tests.gateway.conftest import Shared

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
