"""Weights on disk: what a usable folder is, where fetched weights lie, how they are fetched, why that failed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import msgspec

from worker.environments import interpreter
from worker.runtimes.base import WeightsSpec
from worker.spec import Progress

HERE = Path(__file__).parent
TINY_NAMES = {"": "tiny-llama-1", "embed": "tiny-embed-1", "vision": "tiny-vision-1"}
"""Folders of the built-in models by the artifact's value; a number rises when ``tiny_model.py`` makes another one."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json", "vocab.json")
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


class WeightsError(ValueError):
    """The weights cannot be used; the message says what to do."""


class FetchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How weights are fetched: a command whose success leaves ``result`` behind."""

    argv: tuple[str, ...]
    env: dict[str, str]
    result: Path
    is_folder: bool
    """``result`` is the weights' folder itself, else a JSON file that names it."""


def check_folder(path: Path) -> Path:
    """Return ``path`` when it holds a model that can be served. Raises WeightsError.

    Weights must be safetensors: other formats may run code when they are read.
    """
    require_folder(path)
    try:
        names = {file.name for file in path.iterdir()}
        config = json.loads((path / "config.json").read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"{path} has no config.json: it is not a model in Hugging Face format.") from error
    except PermissionError as error:
        raise WeightsError(f"{path} cannot be read by this host's agent: correct its owner or mode.") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}/config.json cannot be read: {error}") from error
    if not isinstance(config, dict) or "architectures" not in config:
        raise WeightsError(f"{path}/config.json names no architecture: it is not a model's configuration.")
    if not names.intersection(TOKENIZERS):
        raise WeightsError(f"{path} has no tokenizer ({', '.join(TOKENIZERS[:2])}): copy it beside the weights.")
    if not any(name.endswith(".safetensors") for name in names):
        raise WeightsError(f"{path} has no .safetensors weights: convert the model, other formats can run code.")
    _check_shards(path, names)
    return path


def require_folder(path: Path) -> Path:
    """Return ``path`` when it is a folder of this host. Raises WeightsError."""
    if not path.is_absolute():
        raise WeightsError(f"The model's path must be absolute on the host, not {str(path)!r}.")
    if not path.is_dir():
        raise WeightsError(f"There is no folder {path} on this host: copy the model there or correct the path.")
    return path


def check_mlflow(path: Path) -> Path:
    """Return ``path`` when it holds an MLflow model with the flavour that the server loads. Raises WeightsError.

    Most flavours run the model's own code when they are loaded: whoever may name the folder may run code on the host.
    """
    try:
        described = (require_folder(path) / "MLmodel").read_text("utf-8", "replace")
    except FileNotFoundError as error:
        raise WeightsError(f"{path} has no MLmodel: it is not a model that MLflow saved.") from error
    except OSError as error:
        raise WeightsError(f"{path}/MLmodel cannot be read by this host's agent: {error.strerror}.") from error
    if not re.search(r"^\s+python_function:", described, re.MULTILINE):
        raise WeightsError(f"{path} has no python_function flavour: save it with mlflow.<library>.save_model().")
    return path


def _check_shards(path: Path, names: set[str]) -> None:
    if "model.safetensors.index.json" not in names:
        return
    try:
        listed = set(json.loads((path / "model.safetensors.index.json").read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path}/model.safetensors.index.json cannot be read: {error}") from error
    if missing := sorted(listed - names):
        raise WeightsError(f"{path} is incomplete: {len(missing)} weight files are missing, first {missing[0]}.")


def fetched(spec: WeightsSpec, models: Path) -> Path | None:
    """Return where weights of ``spec`` lie ready, or None when they are to be fetched. Raises WeightsError."""
    if spec.kind == "path":
        check = {"huggingface": check_folder, "mlflow": check_mlflow, "any": require_folder}[spec.form]
        return check(Path(spec.value))
    result = result_path(spec, models)
    if spec.kind == "tiny":
        return result if (result / "config.json").is_file() else None
    try:
        folder = Path(json.loads(result.read_text())["path"])
    except (OSError, ValueError, KeyError):
        return None
    return check_folder(folder) if folder.is_dir() else None


def result_path(spec: WeightsSpec, models: Path) -> Path:
    if spec.kind == "tiny":
        return models / TINY_NAMES[spec.value]
    identity = hashlib.sha256(f"{spec.value}@{spec.revision}".encode()).hexdigest()[:12]
    return models / f"hub-{spec.value.replace('/', '--')}-{identity}.json"


def fetch_plan(spec: WeightsSpec, *, models: Path, environment: Path | None) -> FetchPlan:
    """Return how to fetch ``spec``. Pure but for paths. Raises WeightsError."""
    if environment is None:
        raise WeightsError(f"Weights of kind {spec.kind!r} need an engine environment to fetch them with.")
    python, result = str(interpreter(environment)), result_path(spec, models)
    if spec.kind == "tiny":
        making = (python, str(HERE / "tiny_model.py"), str(part_folder(result)), "--kind", spec.value or "generate")
        return FetchPlan(argv=making, env={"HF_HUB_OFFLINE": "1"}, result=result, is_folder=True)
    if not _HUB_ID.match(spec.value):
        raise WeightsError(f"{spec.value!r} is not a hub id: write owner/name, or an absolute path for a folder.")
    argv = (python, str(HERE / "hub_download.py"), spec.value, spec.revision, str(result))
    env = {"HF_HOME": str(models / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return FetchPlan(argv=argv, env=env, result=result, is_folder=False)


def part_folder(result: Path) -> Path:
    """Where a folder is made before it is moved to its place."""
    return result.with_name(f".{result.name}.part")


def read_progress(spec: WeightsSpec, log_tail: str) -> Progress:
    """Return how far fetching is, by the last line of the fetcher's output."""
    if spec.kind == "tiny":
        return Progress(step="build tiny model")
    for line in reversed(log_tail.splitlines()):
        try:
            told = json.loads(line)
            done, total = int(told["done"]), int(told["total"])
        except (ValueError, KeyError, TypeError):
            continue
        share = min(1.0, done / total) if total else None
        return Progress(step="download weights", share=share, detail=f"{done / 1e9:.2f} of {total / 1e9:.2f} GB")
    return Progress(step="download weights")


def explain_failure(spec: WeightsSpec, log_tail: str) -> str:
    """Say in one sentence why fetching failed and what to do."""
    lowered = log_tail.lower()
    if "no space left on device" in lowered:
        return "The disk is full: free space in the agent's folder."
    if "gatedrepo" in lowered or "401 client error" in lowered or "repositorynotfound" in lowered:
        return (
            f"The hub has no {spec.value} for this host, or it is gated: check the id, accept its terms, set HF_TOKEN."
        )
    if "revisionnotfound" in lowered:
        return f"{spec.value} has no revision {spec.revision!r}: correct it."
    offline = ("localentrynotfound", "offlinemodeisenabled", "connecterror", "connectionerror", "name resolution")
    if any(sign in lowered for sign in (*offline, "network is unreachable", "timed out", "connection refused")):
        return (
            f"The hub cannot be reached to download {spec.value}: check network and proxy (HTTPS_PROXY, HF_ENDPOINT), "
            "or copy the model to this host and give its path."
        )
    last = next((line.strip() for line in reversed(log_tail.splitlines()) if line.strip()), "")
    what = "The tiny model could not be built" if spec.kind == "tiny" else f"{spec.value} could not be downloaded"
    return f"{what}: {last[:200] or 'no output'}"
