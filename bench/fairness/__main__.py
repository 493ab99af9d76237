"""Side-by-side figures: ``uv run python -m bench.fairness [--replicas 8] [--seconds 120] [--seeds 3]``.

The gateway's dispatcher and policies with simulated engines on a virtual clock, so that figures repeat exactly. With
``--processes`` real gateways, engines and clients, one seed after the other: the clock on the wall, and other figures
each time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from bench.fairness import processes, scenarios
from bench.fairness.scenarios import PLACED, Across, Outcome, Return, fifty_times

Rows = Sequence[tuple[str, Callable[..., Outcome]]]


def virtual_rows(replicas: int, seconds: float) -> Rows:
    """Each takes a seed."""
    run = partial(scenarios.neighbours, replicas=replicas, seconds=seconds)
    return (
        ("no flood", partial(run, "classes", with_flood=False)),
        ("no flood, 2 gateways", partial(run, "classes", with_flood=False, gateways=2)),
        ("no flood, 4 gateways", partial(run, "classes", with_flood=False, gateways=4)),
        ("nothing", partial(run, "nothing", with_flood=True)),
        ("requests a minute alone", partial(run, "requests", with_flood=True)),
        ("reservations, classes, queue and gate", partial(run, "classes", with_flood=True)),
        ("the same, 2 gateways", partial(run, "classes", with_flood=True, gateways=2)),
        ("the same, 4 gateways", partial(run, "classes", with_flood=True, gateways=4)),
    )


def real_rows(replicas: int, seconds: float, gateways: Iterable[int]) -> Rows:
    """Each takes a seed."""
    run = partial(processes.neighbours, replicas=replicas, seconds=seconds)
    rows = [("requests a minute alone, no gateway", partial(run, "direct", gateways=0, with_flood=True))]
    for count in gateways:
        name = f"{count} gateway{'s' * (count > 1)}"
        rows += [
            (f"{name}, no flood", partial(run, "classes", gateways=count, with_flood=False)),
            (f"{name}, nothing reserved", partial(run, "requests", gateways=count, with_flood=True)),
            (f"{name}, reservations", partial(run, "classes", gateways=count, with_flood=True)),
        ]
    return rows


def print_neighbours(rows: Rows, seeds: range, *, as_json: bool) -> None:
    if not as_json:
        print("| scheme | owners p99 TTFT s | in time % | 429 | small p99 TTFT s | in time % | flood MU/min |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, measure in rows:
        runs = [measure(seed=seed) for seed in seeds]
        if as_json:
            for seed, run in zip(seeds, runs, strict=True):
                print(json.dumps({"scheme": name, "seed": seed, **run._asdict()}), flush=True)
            continue
        print(
            f"| {name} | {max(r.owners_p99 for r in runs):.3f} | {100 * min(r.owners_in_time for r in runs):.2f} "
            f"| {max(r.owners_refused for r in runs)} | {max(r.small_p99 for r in runs):.3f} "
            f"| {100 * min(r.small_in_time for r in runs):.2f} | {max(r.flood_mu_per_min for r in runs):.0f} |",
            flush=True,
        )


def print_returns(rows: Iterable[tuple[str, Callable[..., Return]]], seeds: range, *, as_json: bool) -> None:
    if not as_json:
        print("\n| owners return to | deadline s | full service s | worst TTFT s | 429 | lent before, after MU/min |")
        print("| --- | --- | --- | --- | --- | --- |")
    for name, measure in rows:
        back = [measure(seed=seed) for seed in seeds]
        if as_json:
            for seed, one in zip(seeds, back, strict=True):
                print(json.dumps({"owners return to": name, "seed": seed, **one._asdict()}), flush=True)
            continue
        print(
            f"| {name} | {back[0].deadline_s:g} | {max(r.full_service_s for r in back):.2f} "
            f"| {max(r.worst_ttft_s for r in back):.3f} | {max(r.refused for r in back)} "
            f"| {max(r.lent_before for r in back):.0f}, {max(r.lent_after for r in back):.0f} |",
            flush=True,
        )


def print_shares(replicas: int, seconds: float, seeds: range, *, as_json: bool) -> None:
    shares = [fifty_times(replicas=replicas, seconds=seconds, seed=seed) for seed in seeds]
    if as_json:
        for seed, got in zip(seeds, shares, strict=True):
            print(json.dumps({"fifty times": seed, **got._asdict()}))
        return
    worst = min(shares, key=lambda one: one.index)
    print(
        f"\nPrompts 50 times as long: {worst.short_mu:.1f} and {worst.long_mu:.1f} MU, Jain's index {worst.index:.4f}"
    )


def print_across(measure: Callable[..., Across], seeds: range, *, as_json: bool) -> None:
    if not as_json:
        print("\n| tenants who always wait | gateways | MU of each | Jain's index | MU/min |")
        print("| --- | --- | --- | --- | --- |")
    for name, placed in PLACED.items():
        for gateways in (1, 2):
            runs = [measure(placed, gateways=gateways, seed=seed) for seed in seeds]
            if as_json:
                for seed, run in zip(seeds, runs, strict=True):
                    print(json.dumps({"across": name, "gateways": gateways, "seed": seed, **run._asdict()}), flush=True)
                continue
            worst = min(runs, key=lambda run: run.index)
            mu = ", ".join(f"{value:.1f}" for value in worst.mu)
            print(f"| {name} | {gateways} | {mu} | {worst.index:.4f} | {worst.mu_per_min:.0f} |", flush=True)


PARTS = ("neighbours", "returns", "lengths", "across")
LENT = {True: "long prompts", False: "full slots"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", action="store_true", help="real gateways, engines and clients")
    parser.add_argument("--replicas", type=int, help="8, or with --processes 2")
    parser.add_argument("--gateways", type=int, nargs="+", default=[1, 2], help="with --processes")
    parser.add_argument("--seconds", type=float, help="120 of the virtual clock, or 45 of the wall's")
    parser.add_argument("--seeds", type=int, help="3, or with --processes 1")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", action="store_true", help="every figure of every run, one object a line")
    given = parser.parse_args()
    began = time.perf_counter()
    replicas = given.replicas or (2 if given.processes else 8)
    seconds = given.seconds or (45.0 if given.processes else 120.0)
    seeds = range(1, 1 + (given.seeds or (1 if given.processes else 3)))
    if not given.json:
        print(f"{replicas} replicas, {seconds:g} s, worst of {len(seeds)} seeds, load {os.getloadavg()[0]:.1f}")
    if given.processes:
        rows = real_rows(replicas, seconds, given.gateways)
        returns = [
            (f"1 × {name}, gateways: {count}", partial(processes.owner_returns, replicas=1, gateways=count, long=long))
            for count in given.gateways
            for long, name in LENT.items()
        ]
        across = partial(processes.across, replicas=1, seconds=25.0)
    else:
        rows = virtual_rows(replicas, seconds)
        returns = [
            (f"{count} × {name}", partial(scenarios.owner_returns, replicas=count, long=long))
            for count in (1, replicas)
            for long, name in LENT.items()
        ]
        across = partial(scenarios.across, replicas=2, seconds=seconds)
    if "neighbours" in given.parts:
        print_neighbours(rows, seeds, as_json=given.json)
    if "returns" in given.parts:
        print_returns(returns, seeds, as_json=given.json)
    if "lengths" in given.parts and not given.processes:
        print_shares(2, seconds, seeds, as_json=given.json)
    if "across" in given.parts:
        print_across(across, seeds, as_json=given.json)
    if not given.json:
        print(f"{time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
