"""Side-by-side figures: ``uv run python -m bench.fairness [--replicas 8] [--seconds 120] [--seeds 3]``.

The gateway's dispatcher and policies with simulated engines on a virtual clock, so that figures repeat exactly.
"""

from __future__ import annotations

import argparse
import json
import time

from bench.fairness.scenarios import fifty_times, neighbours, owner_returns
from bench.fairness.world import Scheme

ROWS: tuple[tuple[str, Scheme, bool], ...] = (
    ("no flood", "classes", False),
    ("nothing", "nothing", True),
    ("requests a minute alone", "requests", True),
    ("reservations, classes, queue and gate", "classes", True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120.0, help="of the virtual clock")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="every figure of every run, one object a line")
    given = parser.parse_args()
    began = time.perf_counter()
    seeds = range(1, given.seeds + 1)
    size = {"replicas": given.replicas, "seconds": given.seconds}
    if not given.json:
        print(f"{given.replicas} replicas, {given.seconds:g} s, worst of {given.seeds} seeds")
        print("| scheme | owners p99 TTFT s | in time % | 429 | small p99 TTFT s | in time % | flood MU/min |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, scheme, with_flood in ROWS:
        runs = [neighbours(scheme, with_flood=with_flood, seed=seed, **size) for seed in seeds]
        if given.json:
            for seed, run in zip(seeds, runs, strict=True):
                print(json.dumps({"scheme": name, "seed": seed, **run._asdict()}))
            continue
        print(
            f"| {name} | {max(r.owners_p99 for r in runs):.3f} | {100 * min(r.owners_in_time for r in runs):.2f} "
            f"| {max(r.owners_refused for r in runs)} | {max(r.small_p99 for r in runs):.3f} "
            f"| {100 * min(r.small_in_time for r in runs):.2f} | {max(r.flood_mu_per_min for r in runs):.0f} |"
        )
    if not given.json:
        print("\n| owners return to | deadline s | full service s | worst TTFT s | 429 | lent before, after MU/min |")
        print("| --- | --- | --- | --- | --- | --- |")
    for replicas in (1, given.replicas):
        for long in (True, False):
            name = f"{replicas} × {'long prompts' if long else 'full slots'}"
            back = [owner_returns(replicas=replicas, seed=seed, long=long) for seed in seeds]
            if given.json:
                for seed, one in zip(seeds, back, strict=True):
                    print(json.dumps({"owners return to": name, "seed": seed, **one._asdict()}))
                continue
            print(
                f"| {name} | {back[0].deadline_s:g} | {max(r.full_service_s for r in back):.2f} "
                f"| {max(r.worst_ttft_s for r in back):.3f} | {max(r.refused for r in back)} "
                f"| {max(r.lent_before for r in back):.0f}, {max(r.lent_after for r in back):.0f} |"
            )
    shares = [fifty_times(replicas=2, seconds=given.seconds, seed=seed) for seed in seeds]
    if given.json:
        for seed, got in zip(seeds, shares, strict=True):
            print(json.dumps({"fifty times": seed, **got._asdict()}))
        return
    worst = min(shares, key=lambda one: one.index)
    print(
        f"\nPrompts 50 times as long: {worst.short_mu:.1f} and {worst.long_mu:.1f} MU, Jain's index {worst.index:.4f}"
    )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
