"""``python -m bench.autoscale TRACE... [--cold-start 10 60 180] [--set NAME=VALUE] [--json FILE]``.

Traces are files or folders of them (see ``traces``). For each trace and cold start: what the policy costs against
static provisioning at peak, the cheapest static and a clairvoyant schedule (the stored one where the trace has it, else
our own), the share of late requests and the launches per hour.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.autoscale.fluid import cheapest_static, clairvoyant, run_policy, static_peak, work_bound
from bench.autoscale.traces import Trace, load
from capacity.policy.autoscale import Config

TARGET_OVER_ORACLE = 0.12
TARGET_LAUNCHES_PER_H = 10.0
MANY_DAYS_S = 2 * 86_400
"""Targets hold for traces whose scored part is at least this long."""


def main() -> int:
    options = _parse()
    config = replace(Config(min_replicas=1, max_replicas=60), **dict(options.set))
    files = [file for path in options.traces for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    print(
        f"{'trace':30} {'C':>4} {'÷peak':>6} {'÷cheapest':>9} {'clairv.÷peak':>12} {'over':>6} {'late %':>7} "
        f"{'p99 s':>6} {'launches/h':>10} {'µs/decision':>11}"
    )
    rows: list[dict[str, Any]] = []
    for file in files:
        trace = load(file)
        rows += [_row(trace, replace(config, cold_start_s=cold)) for cold in options.cold_start]
    _summary([row for row in rows if row["scored_s"] >= MANY_DAYS_S], "traces of several days", config)
    _summary(rows, "all traces", config)
    if options.json:
        options.json.write_text(json.dumps({"config": asdict(config), "rows": rows}, indent=1))
    return 0


def _row(trace: Trace, config: Config) -> dict[str, Any]:
    began = time.perf_counter()
    score = run_policy(trace, config)
    took = time.perf_counter() - began
    peak, cheapest = static_peak(trace), cheapest_static(trace, config)
    stored = trace.oracle.get(round(config.cold_start_s))
    bound = clairvoyant(trace, config) if stored is None else stored
    over = score.cost / bound - 1.0
    row: dict[str, Any] = {
        "trace": trace.name,
        "cold_start_s": config.cold_start_s,
        "scored_s": trace.scored_s,
        "replica_s": score.cost,
        "static_peak": peak,
        "cheapest_static": cheapest,
        "clairvoyant": bound,
        "is_stored_bound": stored is not None,
        "work": work_bound(trace),
        "over_clairvoyant": over,
        "late": score.late,
        "p99_wait_s": score.p99_wait_s,
        "launches_per_h": score.launches_per_h,
        "us_per_decision": 1e6 * took / (len(trace.mu) / config.tick_s),
    }
    print(
        f"{trace.name:30} {config.cold_start_s:4.0f} {score.cost / peak:6.3f} {score.cost / cheapest:9.3f} "
        f"{bound / peak:12.3f} {100 * over:5.1f}% {100 * score.late:7.2f} {score.p99_wait_s:6.1f} "
        f"{score.launches_per_h:10.1f} {row['us_per_decision']:11.0f}"
        f"{'' if score.late <= config.slo_share else '  objective missed'}",
        flush=True,
    )
    return row


def _summary(rows: list[dict[str, Any]], what: str, config: Config) -> None:
    if not rows:
        return
    over = sum(row["over_clairvoyant"] for row in rows) / len(rows)
    missed = [f"{row['trace']}@{row['cold_start_s']:g}" for row in rows if row["late"] > config.slo_share]
    launches = max(row["launches_per_h"] for row in rows)
    of_peak = sum(row["replica_s"] / row["static_peak"] for row in rows) / len(rows)
    print(
        f"{what}: {100 * over:.1f} % over clairvoyant on average (target {100 * TARGET_OVER_ORACLE:.0f} %), "
        f"most launches {launches:.1f}/h (target {TARGET_LAUNCHES_PER_H:g}), objective missed: "
        f"{', '.join(missed) or 'nowhere'}; {of_peak:.3f} of the static peak"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.autoscale", description=__doc__)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--cold-start", nargs="+", type=float, default=[10.0, 60.0, 180.0], help="seconds")
    parser.add_argument("--set", nargs="*", type=_setting, default=[], help="constants of the policy, NAME=NUMBER")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in Config.__dataclass_fields__:
        raise argparse.ArgumentTypeError(f"the policy has no constant {name!r}")
    return name, type(getattr(Config(), name) or 0.0)(float(value))


if __name__ == "__main__":
    sys.exit(main())
