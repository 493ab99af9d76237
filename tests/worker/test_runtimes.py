"""Launch plans of what is no language model, of MLflow and of commands; and commands launched for real."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.worker.conftest import AgentUnderTest, order, wait_for
from tests.worker.test_launch_tables import facts, plan, vllm_order
from worker.runtimes import get_runtime
from worker.runtimes.base import LaunchPlan, OptionError, WeightsSpec
from worker.spec import ReplicaOrder
from worker.weights import TINY_NAMES, WeightsError, fetch_plan, fetched

MLFLOW, COMMAND = get_runtime("mlflow"), get_runtime("command")
FOLDER = {"kind": "path", "value": "/models/m", "revision": ""}
NO_MODEL = {"kind": "none", "value": "", "revision": ""}


def options_of(made: LaunchPlan, *names: str) -> dict[str, str]:
    return {name: made.argv[made.argv.index(name) + 1] for name in names if name in made.argv}


# ------------------------------------------------------------------ vLLM
def test_an_embedding_model_is_pooled_and_proves_it_by_a_vector() -> None:
    made = plan(vllm_order(options={"task": "embed"}), facts())
    assert options_of(made, "--runner", "--convert") == {"--runner": "pooling", "--convert": "embed"}
    assert made.readiness.warm_up_path == "/v1/embeddings"
    assert made.readiness.warm_up_body == {"model": "demo", "input": "1", "priority": -1000}


def test_a_reranker_is_pooled_as_it_is() -> None:
    made = plan(vllm_order(options={"task": "score"}), facts())
    assert options_of(made, "--runner", "--convert") == {"--runner": "pooling"}
    assert made.readiness.warm_up_path == "/v1/rerank"


def test_a_vision_language_model_has_a_bound_on_images() -> None:
    options = {"images_per_request": 8, "mm_processor_kwargs": {"max_pixels": 1003520, "min_pixels": 3136}}
    made = plan(vllm_order(accelerators=(0,), options=options), facts(has_cuda=True))
    found = options_of(made, "--limit-mm-per-prompt", "--mm-processor-kwargs")
    assert {name: json.loads(value) for name, value in found.items()} == {
        "--limit-mm-per-prompt": {"image": 8},
        "--mm-processor-kwargs": {"max_pixels": 1003520, "min_pixels": 3136},
    }
    assert made.readiness.warm_up_path == "/v1/completions"


@pytest.mark.parametrize(
    ("accelerators", "options", "environment"),
    [
        ((), {}, "vllm-cpu"),
        ((), {"task": "embed"}, "vllm-cpu"),
        ((), {"images_per_request": 8}, "vllm-cpu-vision"),
        ((), {"images_per_request": 0}, "vllm-cpu-vision"),
        ((0,), {"images_per_request": 8}, "vllm-cuda"),
        ((0,), {}, "vllm-cuda"),
    ],
)
def test_images_choose_the_environment_on_a_cpu(
    accelerators: tuple[int, ...], options: dict[str, Any], environment: str
) -> None:
    asked = vllm_order(accelerators=accelerators, options=options)
    found = get_runtime("vllm").environment(order=asked, host=facts(has_cuda=True))
    assert found is not None
    assert found.name == environment


def test_a_model_that_takes_images_and_does_not_say_so_is_told_what_to_set() -> None:
    log = (
        "ModuleNotFoundError: No module named 'torchvision'\npydantic_core.ValidationError: 1 validation error: Model "
        "architectures ['Qwen2VLForConditionalGeneration'] failed to be inspected."
    )
    assert "set images_per_request" in get_runtime("vllm").explain_exit(exit_code=1, log_tail=log)


def test_there_are_three_tiny_models_each_in_a_folder_of_its_own(tmp_path: Path) -> None:
    vllm = get_runtime("vllm")
    seen = set()
    for value in TINY_NAMES:
        spec = vllm.weights(order=vllm_order(artifact={"kind": "tiny", "value": value, "revision": ""}))
        assert spec is not None
        making = fetch_plan(spec, models=tmp_path, environment=Path("/envs/vllm"))
        assert making.argv[-2:] == ("--kind", value or "generate")
        seen.add(making.result)
    assert len(seen) == 3
    with pytest.raises(OptionError, match="no built-in tiny model 'huge'"):
        vllm.weights(order=vllm_order(artifact={"kind": "tiny", "value": "huge", "revision": ""}))


# ------------------------------------------------------------------ MLflow
def mlflow_order(**changes: Any) -> ReplicaOrder:
    return order("r", **({"runtime": "mlflow", "artifact": FOLDER} | changes))


def mlflow_plan(**changes: Any) -> LaunchPlan:
    return MLFLOW.launch_plan(
        order=mlflow_order(**changes), host=facts(), environment=Path("/envs/m"), weights=Path("/models/m"), port=20_001
    )


def test_mlflow_is_one_server_without_its_command_line() -> None:
    made = mlflow_plan()
    assert " ".join(made.argv) == (
        "/envs/m/bin/python -m uvicorn mlflow.pyfunc.scoring_server.app:app --host 127.0.0.1 --port 20001 "
        "--no-access-log --timeout-keep-alive 75"
    )
    assert made.env["__pyfunc_model_path__"] == "/models/m"
    assert made.env["OMP_NUM_THREADS"] == made.env["OPENBLAS_NUM_THREADS"] == "2"
    assert (made.readiness.health_path, made.readiness.warm_up_path, made.readiness.warm_up_body) == (
        "/ping",
        "/ping",
        None,
    )
    assert (made.metrics_path, made.readiness.models_path, made.readiness.version_path) == ("", "", "/version")


def test_mlflow_warms_up_with_the_input_that_the_revision_gives() -> None:
    made = mlflow_plan(options={"probe_input": {"inputs": [[1.0]]}, "threads": 1, "start_limit_s": 30})
    assert (made.readiness.warm_up_path, made.readiness.warm_up_body) == ("/invocations", {"inputs": [[1.0]]})
    assert made.env["OMP_NUM_THREADS"] == "1"
    assert made.readiness.start_limit_s == 30


def test_mlflow_refuses_what_it_cannot_serve() -> None:
    with pytest.raises(OptionError, match="kind path"):
        MLFLOW.weights(order=mlflow_order(artifact={"kind": "hub", "value": "org/name"}))
    with pytest.raises(OptionError, match="by the CPU"):
        MLFLOW.environment(order=mlflow_order(accelerators=(0,)), host=facts(has_cuda=True))
    with pytest.raises(OptionError, match="probe_inputs"):
        mlflow_plan(options={"probe_inputs": {}})


@pytest.mark.parametrize(
    ("log_tail", "words"),
    [
        ("ERROR: [Errno 98] error while attempting to bind: address already in use", "port was taken"),
        ("ModuleNotFoundError: No module named 'xgboost'", "needs the module xgboost"),
        ("skops.io.exceptions.UntrustedTypesFoundException: Untrusted types found", "skops_trusted_types"),
        ("mlflow.exceptions.MlflowException: Model does not have the flavor", "does not have the flavor"),
        ("nothing of note", ""),
    ],
)
def test_mlflows_last_words_are_explained(log_tail: str, words: str) -> None:
    told = MLFLOW.explain_exit(exit_code=1, log_tail=f"INFO starting\n{log_tail}\nbye")
    assert words in told if words else told == ""


def test_a_folder_must_hold_what_its_runtime_loads(tmp_path: Path) -> None:
    def look(form: Any) -> Path | None:
        return fetched(WeightsSpec(kind="path", value=str(tmp_path), form=form), tmp_path)

    assert look("any") == tmp_path
    with pytest.raises(WeightsError, match=r"no config\.json"):
        look("huggingface")
    with pytest.raises(WeightsError, match="no MLmodel"):
        look("mlflow")
    (tmp_path / "MLmodel").write_text("flavors:\n  sklearn:\n    code: null\n")
    with pytest.raises(WeightsError, match="no python_function flavour"):
        look("mlflow")
    (tmp_path / "MLmodel").write_text("flavors:\n  python_function:\n    env: {}\n")
    assert look("mlflow") == tmp_path
    for form in ("any", "mlflow"):
        with pytest.raises(WeightsError, match="absolute"):
            fetched(WeightsSpec(kind="path", value="relative", form=form), tmp_path)


# ------------------------------------------------------------------ commands
def command_order(*argv: str, artifact: dict[str, str] = NO_MODEL, **options: Any) -> ReplicaOrder:
    return order("r", runtime="command", artifact=artifact, options={"argv": list(argv), **options})


def test_placeholders_stand_for_where_to_listen_and_what_to_serve() -> None:
    ordered = command_order(
        "server", "--at={host}:{port}", "{model}/w.gguf", "{name}", "$(id) ; {x}",
        artifact=FOLDER, env={"MODEL": "{model}", "OMP_NUM_THREADS": "7"}, readiness_path="/up", speaks=["embed"],
    )  # fmt: skip
    made = COMMAND.launch_plan(order=ordered, host=facts(), environment=None, weights=Path("/models/m"), port=20_001)
    assert made.argv == ("server", "--at=127.0.0.1:20001", "/models/m/w.gguf", "demo", "$(id) ; {x}")
    assert (made.env["MODEL"], made.env["OMP_NUM_THREADS"], made.env["CUDA_VISIBLE_DEVICES"]) == ("/models/m", "7", "")
    assert (made.readiness.health_path, made.readiness.warm_up_path) == ("/up", "/v1/embeddings")
    assert made.readiness.warm_up_body == {"model": "demo", "input": "1"}, "no field that only vLLM knows"
    assert (made.metrics_path, made.readiness.version_path) == ("", "")


def test_a_command_gets_the_accelerators_it_was_given_and_its_share_of_the_cores() -> None:
    ordered = order("r", runtime="command", accelerators=(1, 2), options={"argv": ["server"]})
    host = facts(has_cuda=True, cores=8.0, engines=2)
    made = COMMAND.launch_plan(order=ordered, host=host, environment=None, weights=None, port=1)
    assert (made.env["CUDA_VISIBLE_DEVICES"], made.env["OMP_NUM_THREADS"]) == ("1,2", "4")
    with pytest.raises(OptionError, match="NVIDIA driver"):
        COMMAND.environment(order=ordered, host=facts())


def test_a_hub_id_is_the_servers_own_business_and_no_model_stands_for_nothing() -> None:
    hub = {"kind": "hub", "value": "org/name", "revision": ""}
    ordered = command_order("server", "{model}", artifact=hub)
    assert COMMAND.weights(order=ordered) is None
    made = COMMAND.launch_plan(order=ordered, host=facts(), environment=None, weights=None, port=1)
    assert made.argv == ("server", "org/name")
    with pytest.raises(OptionError, match="stands for nothing"):
        COMMAND.weights(order=command_order("server", "{model}"))


def test_a_plain_server_is_ready_when_its_path_answers(agent: AgentUnderTest, tmp_path: Path) -> None:
    (tmp_path / "ready").write_text("up")
    argv = [sys.executable, "-m", "http.server", "{port}", "--bind", "{host}", "--directory", "{model}"]
    options = {"argv": argv, "readiness_path": "/ready", "speaks": ["http"]}
    folder = {"kind": "path", "value": str(tmp_path), "revision": ""}
    agent.give(order("web", runtime="command", artifact=folder, options=options))
    agent.start()
    ready = agent.wait_replica("web", "ready")
    assert ready.address is not None
    with urllib.request.urlopen(f"http://{ready.address.host}:{ready.address.port}/ready", timeout=5) as answer:
        assert answer.read() == b"up"
    assert (ready.metrics, ready.engine_version, ready.max_model_len) == ({}, "", None)
    agent.give(order("web", runtime="command", intent="stop", artifact=folder, options=options))
    assert agent.wait_replica("web", "stopped").reason == "stopped by order"
    assert agent.processes("web") == []


def test_a_server_of_openais_api_must_answer_a_completion_first(agent: AgentUnderTest) -> None:
    argv = [sys.executable, "-m", "worker.simulated", "--host", "{host}", "--port", "{port}"]
    argv += ["--served-model-name", "{name}"]
    options = {"argv": argv, "metrics_path": "/metrics"}
    agent.give(order("own", runtime="command", options=options))
    agent.start()
    ready = agent.wait_replica("own", "ready", seconds=30)
    wait_for("its metrics", lambda: agent.wait_replica("own", "ready").metrics.get("requests_total") == 1.0 or None)
    assert ready.address is not None


def test_commands_that_cannot_serve_say_why(agent: AgentUnderTest, tmp_path: Path) -> None:
    gone = {"kind": "path", "value": str(tmp_path / "gone"), "revision": ""}
    web = [sys.executable, "-m", "http.server", "{port}", "--bind", "{host}", "--directory", str(tmp_path)]
    late = {"argv": web, "readiness_path": "/nowhere", "start_limit_s": 1.5, "speaks": ["http"]}
    mute = {"argv": web, "readiness_path": "/", "speaks": ["generate"], "start_limit_s": 20}
    agent.give(
        order("missing", runtime="command", options={"argv": ["no-such-program-here"]}),
        order("folder", runtime="command", artifact=gone, options={"argv": ["x", "{model}"]}),
        order("ends", runtime="command", options={"argv": [sys.executable, "-c", "raise SystemExit(3)"]}),
        order("late", runtime="command", options=late),
        order("mute", runtime="command", options=mute),
        order("shell", runtime="command", options={"argv": "sleep 1"}),
    )
    agent.start()
    reasons: dict[str, str] = {}
    warming: dict[str, str] = {}

    def ask() -> bool:
        for report in agent.reports():
            reasons.update({each.replica_id: each.reason for each in report.replicas if each.phase == "failed"})
            warming.update({each.replica_id: each.reason for each in report.replicas if each.phase == "warming"})
        return len(reasons) == 5 and "501" in warming.get("mute", "")

    wait_for("five failures and one that waits for a completion", ask, seconds=30)
    assert "no-such-program-here" in reasons["missing"]
    assert "Install it on this host" in reasons["missing"]
    assert "There is no folder" in reasons["folder"]
    assert "with code 3 while it started" in reasons["ends"]
    assert "Not healthy 2 s after its launch (health answers 404)" in reasons["late"]
    assert "command option argv" in reasons["shell"]
