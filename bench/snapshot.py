"""What many API keys cost the publisher and a gateway that starts. ``uv run python -m bench.snapshot [KEYS]``

Prints seconds: everything published anew, a gateway that reads it all, a second in which nothing changed, one new key.
The database is SQLite in a folder of its own, the state a private bundled Valkey.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def timed(name: str, work: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = work()
    print(f"{name:24} {time.perf_counter() - began:8.3f} s", flush=True)
    return result


def measure(keys: int, url: str, folder: Path) -> None:
    import django

    django.setup()
    from django.core.management import call_command

    from penstock import publish
    from serving.gateway.snapshot import SnapshotStore
    from serving.gateway.state import State
    from tenants.changes import record_change
    from tenants.models import ApiKey, Tenant

    call_command("migrate", verbosity=0)
    tenant = Tenant.objects.create(slug="acme", name="acme")

    def key(name: str) -> ApiKey:
        return ApiKey(tenant=tenant, name="k", public_id=name, digest="0" * 64, pepper=1, scopes=["inference"])

    ApiKey.objects.bulk_create((key(f"id{i}") for i in range(keys)), batch_size=2000)

    async def start() -> int:
        state = State(url)
        store = SnapshotStore(state, folder / "snapshot.json")
        await store.start()
        count = len(store.view.keys)
        await store.stop()
        await state.close()
        return count

    timed("publish all", publish.publish_all)
    assert timed("a gateway starts", lambda: asyncio.run(start())) == keys
    timed("a quiet second", publish.publish_pending)
    new = key("new")
    new.save()
    record_change(kind="key", object_id=new.pk)
    timed("one new key", publish.publish_pending)


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(prefix="pb"))
    # A platform whose settings are in this shell is not what is measured, or written to.
    for name in ("DATABASE_URL", "DATABASE_URL_FILE", "REDIS_URL", "REDIS_URL_FILE"):
        os.environ.pop(name, None)
    os.environ |= {"DJANGO_SETTINGS_MODULE": "penstock.settings", "PENSTOCK_DATA": str(folder)}
    from penstock import bundled_state

    url = f"unix://{bundled_state.socket_path(folder)}"
    os.environ["REDIS_URL"] = url
    server = subprocess.Popen(bundled_state.command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        bundled_state.wait_ready(url, 10)
        measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, url, folder)
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
