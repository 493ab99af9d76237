"""The gateway's cost beside nginx: ``uv run python -m bench.gateway.run [--seconds 5] [--rounds 1]``.

Real processes: Valkey, mock engine, nginx, the gateway with everything on (authentication, limits, estimates, routing,
journal with shipping, load exchange, abort watcher, metrics, access log). The measured process is alone on core 0;
engine, state and load are on the other. Targets take turns within each round, so that a neighbour's noise meets all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.gateway.harness import PROFILE, Cluster, Process, cluster, free_port, key_record, wait_for

HERE = Path(__file__).parent
SCENARIOS: dict[str, list[str]] = {
    "ns1": ["--connections", "1"],
    "ns64": ["--connections", "64"],
    "st": ["--connections", "100", "--stream", "--model", "mock-d20"],
    "hi": ["--connections", "600", "--stream", "--model", "mock-d20"],
}
ABOUT = {
    "ns1": "1.9 kB chat request, engine answers at once, 1 connection",
    "ns64": "the same over 64 connections",
    "st": "100 streams × 100 tokens × 20 ms: 5,000 chunks/s",
    "hi": "600 such streams: 30,000 chunks/s",
}
COLUMNS = ("requests_per_s", "chunks_per_s", "cpu_us_per_request", "cpu_us_per_chunk", "cpu_cores")
TIMES = ("latency_ms_p50", "latency_ms_p99", "ttft_ms_p50", "ttft_ms_p99")
NGINX = """
worker_processes 1; worker_rlimit_nofile 65536; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder}; keepalive_requests 1000000; client_max_body_size 20m;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 1024; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{
    proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""


def pin(pid: int, core: int) -> None:
    if os.cpu_count() != 1:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            process.cpu_affinity([core])


def family(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def measure(url: str, pids: list[int], scenario: str, seconds: float, key: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "load.py"), "--url", f"{url}/v1/chat/completions", "--key", key]
    command += ["--seconds", str(seconds), *SCENARIOS[scenario]]
    for pid in pids:
        command += ["--watch", str(pid)]
    if os.cpu_count() != 1:
        command = ["taskset", "-c", "1", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def start_nginx(made: Cluster, engine_port: int) -> tuple[str, Process] | None:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        print("nginx is not installed (Debian: apt-get install nginx): it is left out", file=sys.stderr)
        return None
    folder = made.data / "nginx"
    folder.mkdir()
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, engine=engine_port, port=port))
    process = Process([program, "-c", str(folder / "nginx.conf"), "-p", str(folder)])
    url = f"http://127.0.0.1:{port}"
    wait_for("nginx", lambda: httpx.post(f"{url}/v1/chat/completions", json={"max_tokens": 1}).status_code == 200)
    return url, process


def publish(made: Cluster, engine_port: int) -> None:
    limits = [
        {"id": "l1", "kind": "requests_per_min", "value": 1e9},
        {"id": "l2", "kind": "tokens_per_min", "value": 1e12},
        {"id": "l3", "kind": "concurrency", "value": 1e6},
    ]
    records: list[tuple[str, dict[str, Any]]] = [
        ("tenant", {"id": "t", "slug": "t", "limits": limits}),
        ("key", key_record("bench", "t")),
        ("pool", {"id": "p", "slug": "p", "profile": PROFILE}),
    ]
    for name in ("mock", "mock-d20"):
        deployment = {"id": name, "name": name, "pool": "p", "revision": "r", "runtime": "simulated"}
        records.append(("deployment", deployment | {"max_model_len": 32768}))
        address = f"http://127.0.0.1:{engine_port}"
        for number in range(4):
            records.append(
                (
                    "replica",
                    {"id": f"{name}-{number}", "deployment": name, "revision": "r", "host": "h", "address": address}
                    # The mock engine reads prompts at once.
                    | {"state": "ready", "target_concurrency": 1024, "supply_mu_per_min": 1e6},
                )
            )
    made.publish(*records)


def bench(seconds: float, rounds: int) -> dict[str, Any]:
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with cluster() as made:
        engine_port = free_port()
        engine = Process([sys.executable, str(HERE / "mock_engine.py"), str(engine_port)])
        nginx = None
        try:
            wait_for("the engine", lambda: httpx.post(f"http://127.0.0.1:{engine_port}/", json={}).status_code == 200)
            publish(made, engine_port)
            gateway = made.gateway("gateway-1")
            nginx = start_nginx(made, engine_port)
            targets = {"gateway": (gateway.url, gateway.process.popen.pid)}
            if nginx is not None:
                targets = {"nginx": (nginx[0], nginx[1].popen.pid), **targets}
            # The state, too: woken by the gateway, it would otherwise run on the gateway's core.
            for helper in psutil.Process().children():
                pin(helper.pid, 1)
            for _, pid in targets.values():
                pin(pid, 0)
            for _ in range(rounds):
                for scenario in SCENARIOS:
                    for name, (url, pid) in targets.items():
                        result = measure(url, family(pid), scenario, seconds, "mu_bench_secret")
                        runs.setdefault(scenario, {}).setdefault(name, []).append(result)
            configuration = next(line for line in gateway.log() if line["event"] == "serving")
            rss_mb = psutil.Process(gateway.process.popen.pid).memory_info().rss // 2**20
        finally:
            engine.stop(signal.SIGKILL)
            if nginx is not None:
                nginx[1].stop(signal.SIGQUIT)
    return {
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load_average": os.getloadavg(),
        },
        "configuration": {k: v for k, v in configuration.items() if k not in ("event", "level", "at", "data")},
        "gateway_rss_mb": rss_mb,
        "scenarios": {
            scenario: {name: median(results) for name, results in by_name.items()} for scenario, by_name in runs.items()
        },
    }


def median(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds."""
    return {
        name: statistics.median(values) if (values := [r[name] for r in results if r[name] is not None]) else None
        for name in results[0]
    }


def table(report: dict[str, Any]) -> str:
    lines = ["| scenario | target | " + " | ".join((*COLUMNS, *TIMES)) + " |", "| --- " * 11 + "|"]
    for scenario, by_name in report["scenarios"].items():
        for name, row in by_name.items():
            cells = ["–" if row[c] is None else f"{row[c]:g}" for c in (*COLUMNS, *TIMES)]
            lines.append(f"| {scenario} | {name} | " + " | ".join(cells) + " |")
        if {"nginx", "gateway"} <= set(by_name):
            ratio = [
                f"×{by_name['gateway'][c] / by_name['nginx'][c]:.2f}" if by_name["nginx"][c] else "–"
                for c in (*COLUMNS, *TIMES)
            ]
            lines.append(f"| {scenario} | ratio | " + " | ".join(ratio) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the report here, too")
    arguments = parser.parse_args()
    report = bench(arguments.seconds, arguments.rounds)
    print(json.dumps(report, indent=2))
    print("\n".join(f"{name}: {text}" for name, text in ABOUT.items()))
    print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
