"""Weights from a hub: the real downloader of the engine's environment, against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from worker import environments, weights
from worker.runtimes.base import WeightsSpec

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.together("own engines")]

ROOT = Path(os.environ.get("PENSTOCK_ENVIRONMENTS_DIR") or Path.home() / ".cache" / "penstock" / "environments")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors": os.urandom(300_000),
    "pytorch_model.bin": b"a format that can run code",
}


class Hub(BaseHTTPRequestHandler):
    """One repository, ``acme/tiny``, with the routes that huggingface_hub asks for."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/acme/tiny"):
            return self.reply_info(path)
        name = path.rpartition("/")[2]
        if not path.startswith("/acme/tiny/resolve/") or name not in FILES:
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        etag = hashlib.sha256(FILES[name]).hexdigest()
        return self.reply(200, FILES[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def reply_info(self, path: str) -> None:
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in FILES.items()]
            return self.reply(200, json.dumps(tree).encode(), {})
        siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
        info = {"id": "acme/tiny", "modelId": "acme/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}
        return self.reply(200, json.dumps(info).encode(), {})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def environment() -> Path:
    """The engine environment that runs share; built if this is the first test that needs it."""
    subprocess.run(
        [sys.executable, "-m", "worker.environments.build", "--root", str(ROOT), "--name", "vllm-cpu"], check=True
    )
    return environments.environment_path(ROOT, "vllm-cpu")


def fetch(value: str, models: Path, environment: Path, endpoint: str) -> tuple[WeightsSpec, int, str]:
    spec = WeightsSpec(kind="hub", value=value, revision="")
    models.mkdir(exist_ok=True)
    plan = weights.fetch_plan(spec, models=models, environment=environment)
    # Two tries, not minutes of them, where nobody answers.
    settings = {"HF_ENDPOINT": endpoint, "HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "2"}
    done = subprocess.run(
        plan.argv, env={**os.environ, **plan.env, **settings}, capture_output=True, text=True, timeout=240, check=False
    )
    return spec, done.returncode, done.stdout + done.stderr


def test_a_repository_is_downloaded_whole_and_only_its_safe_files(hub: str, environment: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    spec, code, told = fetch("acme/tiny", models, environment, hub)
    assert code == 0, told
    folder = weights.fetched(spec, models)
    assert folder is not None
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        name: data for name, data in FILES.items() if not name.endswith(".bin")
    }
    progress = weights.read_progress(spec, told)
    assert (progress.step, progress.share) == ("download weights", 1.0)


def test_an_unknown_repository_says_what_to_do(hub: str, environment: Path, tmp_path: Path) -> None:
    spec, code, told = fetch("acme/absent", tmp_path / "models", environment, hub)
    assert code != 0
    assert weights.explain_failure(spec, told).startswith("The hub has no acme/absent")


def test_a_hub_out_of_reach_says_what_to_do(environment: Path, tmp_path: Path) -> None:
    spec, code, told = fetch("acme/tiny", tmp_path / "models", environment, "http://127.0.0.1:9")
    assert code != 0
    assert weights.explain_failure(spec, told).startswith("The hub cannot be reached")
