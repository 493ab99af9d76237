"""A classifier trained and saved by the mlflow environment, which is built first where it is not there yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from worker import environments

ENVIRONMENTS = Path(os.environ.get("PENSTOCK_ENVIRONMENTS_DIR") or Path.home() / ".cache" / "penstock" / "environments")
_SCRIPT = Path(__file__).with_name("classifier.py")


@dataclass(frozen=True)
class Trained:
    """``classes`` is what the classifier itself, asked without any server, says of ``rows``."""

    folder: Path
    rows: list[list[float]]
    classes: list[int]


def train(folder: Path) -> Trained:
    """Raises CalledProcessError with the builder's or the script's output."""
    build = [sys.executable, "-m", "worker.environments.build", "--root", str(ENVIRONMENTS), "--name", "mlflow"]
    subprocess.run(build, check=True, timeout=900)
    python = environments.interpreter(environments.environment_path(ENVIRONMENTS.resolve(), "mlflow"))
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), str(_SCRIPT), str(folder)],
        check=True, timeout=300, env=env, stdout=subprocess.PIPE, text=True, cwd=folder.parent,
    )  # fmt: skip
    said = json.loads(done.stdout)
    return Trained(folder, said["rows"], said["classes"])
