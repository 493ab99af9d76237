"""Metrics text, weights folders, host limits, configuration, log files, the app without Django."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest

from worker import weights
from worker.config import ConfigError, load_config
from worker.evidence import process_states
from worker.files import read_tail, rotate_in_place, write_atomic
from worker.host import cpu_quota, memory_limit, usable_cores
from worker.metrics import read_info, read_metrics
from worker.processes import engine_environment
from worker.runtimes.base import WeightsSpec
from worker.runtimes.vllm import METRICS
from worker.weights import WeightsError, check_folder, explain_failure, read_progress
from worker.words import error_words, say_once

ROOT = Path(__file__).resolve().parents[2]


# --------------------------------------------------------------------- metrics
def test_metrics_are_summed_over_labels_and_the_newest_name_counts() -> None:
    text = """# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="a b{c} d"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:gpu_cache_usage_perc 0.9
vllm:prefix_cache_hits_total 7
vllm:request_success_total{finished_reason="stop"} 4.0
vllm:request_success_total{finished_reason="length"} 5.0 1700000000
vllm:time_to_first_token_seconds_sum NaN
vllm:num_requests_runnin 99
broken{
process_start_time_seconds 1.79e+09
"""
    assert read_metrics(text, METRICS) == {
        "running": 5.0,
        "kv_usage": 0.75,
        "cached_tokens_total": 7.0,
        "requests_total": 9.0,
        "process_start_seconds": 1.79e9,
    }


@given(
    st.lists(st.tuples(st.text(max_size=8), st.floats(0, 1e9)), min_size=1, max_size=5, unique_by=lambda each: each[0])
)
def test_any_labels_a_real_exporter_writes_are_read(series: list[tuple[str, float]]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("vllm:num_requests_running", "x", ["model_name"], registry=registry)
    Counter("noise", "x", registry=registry)
    for label, value in series:
        gauge.labels(label).set(value)
    found = read_metrics(generate_latest(registry).decode(), METRICS)
    assert found == {"running": pytest.approx(sum(value for _, value in series))}


def test_info_metrics_give_their_labels() -> None:
    text = 'vllm:cache_config_info{block_size="128",kv_cache_size_tokens="4096"} 1.0\n'
    assert read_info(text, "vllm:cache_config_info")["kv_cache_size_tokens"] == "4096"
    assert read_info(text, "vllm:other_info") == {}


# --------------------------------------------------------------------- weights
def model_folder(path: Path, *leave_out: str) -> Path:
    path.mkdir()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {
        "config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}),
        "tokenizer.json": "{}",
        "model.safetensors.index.json": json.dumps(index),
        "model-1.safetensors": "",
        "model-2.safetensors": "",
    }
    for name, text in files.items():
        if name not in leave_out:
            (path / name).write_text(text)
    return path


def test_a_whole_model_folder_is_accepted(tmp_path: Path) -> None:
    assert check_folder(model_folder(tmp_path / "m")) == tmp_path / "m"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("config.json",), "no config.json"),
        (("tokenizer.json",), "no tokenizer"),
        (("model-1.safetensors", "model-2.safetensors"), "no .safetensors weights"),
        (("model-2.safetensors",), "1 weight files are missing, first model-2.safetensors"),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(tmp_path: Path, missing: tuple[str, ...], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        check_folder(model_folder(tmp_path / "m", *missing))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no folder"):
        check_folder(tmp_path / "absent")
    with pytest.raises(WeightsError, match="absolute"):
        check_folder(Path("relative"))
    broken = model_folder(tmp_path / "m")
    (broken / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="names no architecture"):
        check_folder(broken)


HUB = WeightsSpec(kind="hub", value="org/model", revision="v1")


def test_a_hub_model_is_fetched_by_the_engines_interpreter_into_the_agents_folder(tmp_path: Path) -> None:
    plan = weights.fetch_plan(HUB, models=tmp_path, environment=Path("/envs/x"))
    assert plan.argv[0] == "/envs/x/bin/python"
    assert plan.argv[2:4] == ("org/model", "v1")
    assert plan.env["HF_HOME"] == str(tmp_path / "hub")
    assert weights.fetched(HUB, tmp_path) is None
    plan.result.write_text(json.dumps({"path": str(model_folder(tmp_path / "whole"))}))
    assert weights.fetched(HUB, tmp_path) == tmp_path / "whole"
    plan.result.write_text(json.dumps({"path": str(model_folder(tmp_path / "torn", "tokenizer.json"))}))
    with pytest.raises(WeightsError, match="no tokenizer"):
        weights.fetched(HUB, tmp_path)
    with pytest.raises(WeightsError, match="not a hub id"):
        weights.fetch_plan(WeightsSpec(kind="hub", value="../../etc"), models=tmp_path, environment=Path("/e"))


def test_download_progress_and_failures_are_read_from_the_fetchers_output() -> None:
    progress = read_progress(HUB, 'noise\n{"done": 500000000, "total": 2000000000}\nwarning: x\n')
    assert progress.share == 0.25
    assert progress.detail == "0.50 of 2.00 GB"
    assert "cannot be reached" in explain_failure(
        HUB, "httpx.ConnectError: [Errno -3] Temporary failure in name resolution"
    )
    assert "HF_TOKEN" in explain_failure(HUB, "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error")
    assert "'v1'" in explain_failure(HUB, "huggingface_hub.errors.RevisionNotFoundError: 404")


# --------------------------------------------------------------------- host
def test_cores_honour_the_tightest_quota_above_us(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "memory.max").write_text("1073741824\n")
    (inner / "memory.max").write_text("max\n")
    assert cpu_quota(tmp_path, "0::/a/b\n") == 1.5
    assert cpu_quota(tmp_path, "0::/\n") is None
    assert memory_limit(tmp_path, "0::/a/b\n") == 1 << 30
    assert usable_cores(affinity=8, quota=1.5) == 1.5
    assert usable_cores(affinity=2, quota=4.0) == 2.0
    assert usable_cores(affinity=2, quota=None) == 2.0


def test_version_one_control_groups_count_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cpu_quota(tmp_path, "4:cpu:/x\n") == 2.5
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    assert cpu_quota(tmp_path, "") is None


def test_engines_inherit_no_secret() -> None:
    parent = {"PATH": "/bin", "HTTPS_PROXY": "http://p", "DATABASE_URL": "x", "PENSTOCK_DATA": "x", "HF_TOKEN": "t"}
    assert engine_environment(parent, {"A": "1"}) == {"PATH": "/bin", "HTTPS_PROXY": "http://p", "A": "1"}
    assert engine_environment(parent, {}, is_fetching=True)["HF_TOKEN"] == "t"


# --------------------------------------------------------------------- configuration and files
def write_config(path: Path, **changes: object) -> Path:
    content = {"host_id": "h", "name": "n", "secret": "ab" * 32, "broker_url": "redis://", "state_url": "redis://"}
    path.write_text(json.dumps(content | changes))
    path.chmod(0o600)
    return path


def test_the_configuration_is_read_and_its_secret_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_ENVIRONMENTS_DIR", raising=False)
    config = load_config(write_config(tmp_path / "agent.json"))
    assert config.secret == bytes.fromhex("ab" * 32)
    assert (config.folder, config.environments) == (tmp_path, tmp_path / "environments")
    assert "ab" * 8 not in repr(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"secret": "zz"}, "not an agent"), ({"secret": "ab"}, "shorter"), ({"name": 3}, "not an agent")],
)
def test_an_unusable_configuration_says_so(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(write_config(tmp_path / "agent.json", **changes))


def test_a_readable_secret_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path / "agent.json").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_config(tmp_path / "agent.json")
    with pytest.raises(ConfigError, match="enrol this host"):
        load_config(tmp_path / "absent.json")


def test_a_log_is_rotated_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 100)
        assert not rotate_in_place(path, limit_bytes=1000)
        assert rotate_in_place(path, limit_bytes=100)
        writer.write(b"new\n")
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "engine.log.1").read_bytes() == b"old\n" * 25


def test_files_are_private_and_tails_begin_with_a_line(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", b"first line\nsecond line\n")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert read_tail(tmp_path / "x", bytes_=14) == "second line\n"
    assert read_tail(tmp_path / "absent") == ""
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


# --------------------------------------------------------------------- words of faults and of processes
def test_a_fault_is_one_line_with_its_place_in_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("worker.test")
    with pytest.raises(ConfigError) as caught:
        load_config(Path("/no/such\nfile"))
    words = error_words(caught.value)
    assert words.startswith("ConfigError: /no/such\\nfile cannot be read")
    assert words.endswith(".py:" + words.rpartition(":")[2])
    assert "(config.py:" in words
    said = say_once(log, "", caught.value, "what")
    assert say_once(log, said, caught.value, "what") == said
    assert say_once(log, said, ValueError("other"), "what") == "ValueError: other"
    assert [each.getMessage() for each in caplog.records] == [f"what: {words}", "what: ValueError: other"]


def test_a_process_of_any_name_fits_into_a_report() -> None:
    code = "open('/proc/self/comm', 'wb').write(b'odd\\xff'); print(flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            (found,) = process_states([child.pid], sample_s=0.0)
        finally:
            child.kill()
    assert found["name"].startswith("odd")
    assert json.loads(msgspec.json.encode(found))["name"] == found["name"]


# --------------------------------------------------------------------- the app
@pytest.mark.parametrize("settings", [None, "no.such.settings"])
def test_the_agents_app_never_imports_django(tmp_path: Path, settings: str | None) -> None:
    """Celery would load Django where DJANGO_SETTINGS_MODULE is set; the agent must not care.

    (kombu itself looks for ``django.utils.functional`` wherever Django is installed; that needs no settings.)
    """
    config = write_config(tmp_path / "agent.json")
    env = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"} | {
        "PENSTOCK_AGENT_CONFIG": str(config)
    }
    env |= {"DJANGO_SETTINGS_MODULE": settings} if settings else {}
    code = (
        "import sys; from worker.celery import app; app.finalize(); import celery.apps.worker, worker.supervisor;"
        "w = app.Worker(pool='threads'); "
        "own = sorted(t for t in app.tasks if not t.startswith('celery.'));"
        "bad = ('django.conf', 'django.apps', 'django.db', 'penstock', 'serving', 'capacity', 'tenants');"
        "loaded = [m for m in bad if m in sys.modules];"
        "print(own, loaded, app.conf.accept_content, app.conf.worker_enable_remote_control)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['worker.orders'] [] ['json'] False"
