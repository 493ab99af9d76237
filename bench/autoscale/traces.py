"""Traffic as series of one second: requests and offered MU.

Two kinds of file: ``.npz`` with arrays ``n`` and ``mu`` (optional ``sf``: first second that is scored, and ``meta``:
JSON with ``oracle_replica_s`` by cold start), and ``.csv`` or ``.csv.gz`` with one request a line and the columns
arrival_s, input_tokens, output_tokens, optional cached_tokens, priced by the default profile and scaled so that the
busiest minute needs ``PEAK_REPLICAS``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capacity.policy.cost import request_cost
from capacity.policy.profiles import default_profile

PEAK_REPLICAS = 20
REPLICA_MU_PER_MIN = 100.0


@dataclass(frozen=True)
class Trace:
    """``requests`` and ``mu`` per second; scored from ``warm_up_s``. ``oracle``: cold start → replica-seconds."""

    name: str
    requests: NDArray[np.float64]
    mu: NDArray[np.float64]
    warm_up_s: int
    oracle: dict[int, float] = field(default_factory=dict)

    @property
    def scored_s(self) -> int:
        return len(self.mu) - self.warm_up_s


def load(path: Path) -> Trace:
    """Read one trace. Raises ValueError that names the file and what it lacks."""
    if path.suffix == ".npz":
        return _load_series(path)
    if path.name.endswith((".csv", ".csv.gz")):
        return _load_requests(path)
    raise ValueError(f"{path}: a trace is .npz, .csv or .csv.gz")


def _load_series(path: Path) -> Trace:
    with np.load(path) as stored:
        if "n" not in stored or "mu" not in stored:
            raise ValueError(f"{path}: a series needs the arrays n and mu")
        meta = json.loads(str(stored["meta"])) if "meta" in stored else {}
        return Trace(
            name=path.stem,
            requests=stored["n"].astype(float),
            mu=stored["mu"].astype(float),
            warm_up_s=int(stored["sf"]) if "sf" in stored else 0,
            oracle={int(c): float(cost) for c, cost in meta.get("oracle_replica_s", {}).items()},
        )


def _load_requests(path: Path) -> Trace:
    data = path.read_bytes()
    text = gzip.decompress(data).decode() if path.suffix == ".gz" else data.decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows or not {"arrival_s", "input_tokens", "output_tokens"} <= rows[0].keys():
        raise ValueError(f"{path}: needs the columns arrival_s, input_tokens and output_tokens")
    profile = default_profile()
    seconds = np.array([int(float(row["arrival_s"])) for row in rows])
    seconds -= seconds.min()
    costs = [
        request_cost(
            profile,
            input_tokens=int(float(row["input_tokens"])),
            cached_tokens=int(float(row.get("cached_tokens") or 0)),
            output_tokens=int(float(row["output_tokens"])),
        )
        for row in rows
    ]
    length = int(seconds.max()) + 1
    requests = np.bincount(seconds, minlength=length).astype(float)
    mu = np.bincount(seconds, weights=costs, minlength=length)
    busiest = np.convolve(mu, np.ones(60), mode="valid").max() if length >= 60 else mu.sum() * 60 / length
    scale = PEAK_REPLICAS * REPLICA_MU_PER_MIN / busiest
    return Trace(path.name.removesuffix(".gz").removesuffix(".csv"), requests, mu * scale, min(120, length // 10))
