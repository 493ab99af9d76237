"""What many API keys cost the publisher and a gateway that starts. ``uv run python -m bench.snapshot [KEYS]``

Three times side by side: few keys, so many keys by themselves, and the same with a limit in MU and a budget in money
for each, and for every hundred a tenant with limits in requests, tokens and MU and a reservation. Prints seconds:
everything published anew, a gateway that starts from the state, and from its file while nothing else runs, a second in
which nothing changed, one new key; and the gateway's memory in MiB. Then as many requests as there are keys (2,000 at
least, 60,000 at most: more than a gateway keeps at hand) go through the gateway, each with the next key, twice: µs of
its CPU a request, and its memory after.

The database is SQLite in a folder of its own, the state a private bundled Valkey, gateway and engine a process each;
the engine answers from a template.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from penstock import bundled_state
from tests.gateway.harness import PEPPER, Process, free_port, key_record, wait_for

T = TypeVar("T")
KEYS_PER_TENANT = 100
CONNECTIONS = 8
FEWEST_REQUESTS, MOST_REQUESTS = 2000, 60_000
ENGINE = Path(__file__).with_name("gateway") / "mock_engine.py"


def timed(name: str, work: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = work()
    print(f"{name:32} {time.perf_counter() - began:8.3f} s", flush=True)
    return result


def ask_with_each(port: int, keys: int) -> int:
    """A request with each key in turn, over eight connections. How many were not answered with 200."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 4})

    def ask(numbers: range) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        failed = 0
        for number in numbers:
            headers = {"authorization": f"Bearer mu_id{number}_secret", "content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            answer.read()
            failed += answer.status != 200
        connection.close()
        return failed

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return sum(pool.map(ask, (range(first, keys, CONNECTIONS) for first in range(CONNECTIONS))))


def print_memory(process: psutil.Process) -> None:
    print(f"{'  its memory':32} {process.memory_info().rss / 2**20:8.1f} MiB", flush=True)


def requests_pass(port: int, gateway: psutil.Process, keys: int) -> None:
    """CPU of the gateway, its exchange with the state and its books too."""
    rounds, keys = max(1, FEWEST_REQUESTS // keys), min(keys, MOST_REQUESTS)
    for name in ("a request, a key's first", "a request, a key's next"):
        before = gateway.cpu_times()
        failed = sum(ask_with_each(port, keys) for _ in range(rounds))
        after = gateway.cpu_times()
        took = after.user + after.system - before.user - before.system
        told = f" ({failed} not answered)" if failed else ""
        print(f"{name:32} {took / keys / rounds * 1e6:8.0f} µs CPU{told}", flush=True)
        print_memory(gateway)


def gateway_starts(name: str, url: str, folder: Path, *, keys: int = 0) -> None:
    """A gateway's start until it is ready, and its memory then; then a request with each of so many ``keys``, twice."""
    port = free_port()
    argv = [sys.executable, "-m", "serving.gateway.server", "--data", str(folder), "--port", str(port), "--name", "g"]
    env = {"REDIS_URL": url, "PENSTOCK_KEY_PEPPERS": json.dumps({"1": PEPPER})}
    process = Process(argv, env=env, log=folder / "gateway.log")

    def is_ready() -> bool:
        assert process.popen.poll() is None, (folder / "gateway.log").read_text()
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200

    try:
        timed(name, lambda: wait_for("the gateway", is_ready, seconds=120, every=0.02))
        print_memory(psutil.Process(process.popen.pid))
        if keys:
            requests_pass(port, psutil.Process(process.popen.pid), keys)
    finally:
        process.stop(seconds=30)


def fill(keys: int, engine: str, *, is_limited: bool) -> None:
    """A tenant for every hundred keys, and a model ``m`` that the engine at this address serves."""
    import datetime

    from django.utils import timezone

    from capacity.models import Reservation
    from serving.models import Replica
    from tenants.models import ApiKey, Limit, Tenant
    from tests import factories

    count = max(1, keys // KEYS_PER_TENANT)
    digest = key_record("", "")["digest"]
    pool = factories.pool()
    served = factories.replica(factories.deployment(pool=pool, name="m"), host=factories.host())
    Replica.objects.filter(pk=served.pk).update(state="ready", address=engine, supply_mu_per_min=1e6)
    tenants = Tenant.objects.bulk_create(Tenant(slug=f"t{n}", name=f"t{n}") for n in range(count))
    made = ApiKey.objects.bulk_create(
        (
            ApiKey(
                tenant=tenants[n % count], name="k", public_id=f"id{n}", digest=digest, pepper=1, scopes=["inference"]
            )
            for n in range(keys)
        ),
        batch_size=2000,
    )
    if not is_limited:
        return
    limits = [
        Limit(tenant=tenant, kind=kind, value=10**6, set_by="operator")
        for tenant in tenants
        for kind in ("requests_per_min", "tokens_per_min", "mu_per_min")
    ]
    limits += [
        Limit(tenant=key.tenant, api_key=key, kind=kind, value=10**4, set_by="tenant")
        for key in made
        for kind in ("mu_per_min", "money_per_month")
    ]
    Limit.objects.bulk_create(limits, batch_size=2000)
    now = timezone.now()
    Reservation.objects.bulk_create(
        Reservation(
            tenant=tenant,
            pool=pool,
            profile=pool.profiles.get(),
            mu_per_min=10.0,
            burst_mu=10.0,
            starts_at=now - datetime.timedelta(days=1),
            state="active",
        )
        for tenant in tenants
    )


def measure(keys: int, url: str, folder: Path, engine: str, *, is_limited: bool) -> None:
    import django

    django.setup()
    from django.core.management import call_command

    from penstock import publish
    from tenants.changes import record_change
    from tenants.models import ApiKey, Tenant

    call_command("migrate", verbosity=0)
    fill(keys, engine, is_limited=is_limited)
    timed("publish all", publish.publish_all)
    gateway_starts("a gateway starts", url, folder, keys=keys)
    gateway_starts("a gateway starts from its file", "unix:///nowhere/state.sock", folder)
    timed("a quiet second", publish.publish_pending)
    new = ApiKey(tenant=Tenant.objects.first(), name="k", public_id="new", digest="0" * 64, pepper=1)
    new.save()
    record_change(kind="key", object_id=new.pk)
    timed("one new key", publish.publish_pending)


def run(keys: int, *, is_limited: bool) -> None:
    """In this process, which has to be new."""
    folder = Path(tempfile.mkdtemp(prefix="pb"))
    # A platform whose settings are in this shell is not what is measured, or written to.
    for name in ("DATABASE_URL", "DATABASE_URL_FILE", "REDIS_URL", "REDIS_URL_FILE"):
        os.environ.pop(name, None)
    os.environ |= {"DJANGO_SETTINGS_MODULE": "penstock.settings", "PENSTOCK_DATA": str(folder)}
    url = f"unix://{bundled_state.socket_path(folder)}"
    os.environ["REDIS_URL"] = url
    port = free_port()
    servers = [
        subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for argv in (bundled_state.command(folder), [sys.executable, str(ENGINE), str(port)])
    ]
    try:
        bundled_state.wait_ready(url, 10)
        measure(keys, url, folder, f"http://127.0.0.1:{port}", is_limited=is_limited)
    finally:
        for server in servers:
            server.terminate()
            server.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    if len(sys.argv) > 2:
        run(int(sys.argv[1]), is_limited=sys.argv[2] == "limited")
        return
    keys = sys.argv[1] if len(sys.argv) > 1 else "100000"
    for count, what in (("100", "bare"), (keys, "bare"), (keys, "limited")):
        print(
            f"\n{count} keys, {'none with limits' if what == 'bare' else 'all with limits, and reservations'}",
            flush=True,
        )
        subprocess.run([sys.executable, "-m", "bench.snapshot", count, what], check=True)


if __name__ == "__main__":
    main()
