"""A real scikit-learn classifier behind MLflow's scoring server, through the agent: prepare, serve, refuse, stop."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ValkeyServer
from tests.worker.conftest import AgentUnderTest, order, wait_for
from tests.worker.mlflow_models import ENVIRONMENTS, Trained, train
from worker.spec import ReplicaReport

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("classifier") / "iris")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentUnderTest]:
    server = ValkeyServer()
    server.start()
    agent = AgentUnderTest(tmp_path_factory.mktemp("mlflow"), server, ENVIRONMENTS)
    agent.start()
    try:
        yield agent
    finally:
        agent.clean_up()
        agent.client.close()
        server.remove()


def mlflow_order(replica_id: str, folder: Path, **changes: Any) -> Any:
    artifact = {"kind": "path", "value": str(folder), "revision": ""}
    return order(replica_id, runtime="mlflow", artifact=artifact, **changes)


def ask(ready: ReplicaReport, body: Any) -> Any:
    assert ready.address is not None
    request = urllib.request.Request(
        f"http://{ready.address.host}:{ready.address.port}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_classifier_is_served_as_it_predicts_by_itself(house: AgentUnderTest, trained: Trained) -> None:
    example = json.loads((trained.folder / "serving_input_example.json").read_text())
    options = {"probe_input": example, "threads": 1}
    house.give(mlflow_order("iris", trained.folder, options=options))
    ready = house.wait_replica("iris", "ready", seconds=300, engine_version="3.17.2")
    assert ready.launched_at is not None
    assert ready.ready_at is not None
    print(f"launch to ready {ready.ready_at - ready.launched_at:.1f} s")
    assert ask(ready, {"inputs": trained.rows}) == {"predictions": trained.classes}
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(ready, {"inputs": [["wide", 1]]})
    with refused.value:
        assert refused.value.code == 400
    assert ready.metrics == {}
    assert ready.pid is not None
    process = psutil.Process(ready.pid)
    assert process.children(recursive=True) == [], "one process, without MLflow's command line before it"
    listening = {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    environments = {each.name: each.state for each in wait_for("a report", house.reports)[-1].environments}
    assert environments["mlflow"] == "ready"
    house.give(mlflow_order("iris", trained.folder, options=options, intent="stop"))
    assert house.wait_replica("iris", "stopped").reason == "stopped by order"
    assert house.processes("iris") == []


def test_a_model_that_needs_more_than_the_environment_has_says_so(
    house: AgentUnderTest, trained: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / "strange"
    folder.mkdir()
    described = (trained.folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(described.replace("mlflow.sklearn", "a_library_of_its_own"))
    house.give(mlflow_order("strange", folder))
    failed = house.wait_replica("strange", "failed", seconds=300)
    assert "needs the module a_library_of_its_own" in failed.reason
    house.give()
