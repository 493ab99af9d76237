"""``python -m worker.simulated --port P --served-model-name N --profile JSON``: run a simulated engine."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from worker.simulated.engine import Engine, Fault
from worker.simulated.profile import ProfileError, load_profile
from worker.simulated.server import App, Connection, Settings


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="worker.simulated", description="A simulated LLM engine with vLLM's API.", allow_abbrev=False
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--profile", default="{}", help="engine profile: JSON, or a file with it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", type=float, default=1.0, help="engine seconds per second")
    parser.add_argument("--scheduling-policy", choices=("fcfs", "priority"), default="fcfs")
    parser.add_argument("--max-num-queued-reqs", type=int, default=0, help="503 above this many waiting; 0: no bound")
    parser.add_argument("--shutdown-timeout", type=float, default=0.0, help="seconds for open requests after SIGTERM")
    parser.add_argument("--request-log", type=Path, help="append one JSON line per ended request to this file")
    parser.add_argument("--fault", default="{}", help='start with a fault, e.g. {"mode": "hang", "after_tokens": 100}')
    options = parser.parse_args(arguments)
    if options.speed <= 0:
        parser.error("--speed must be positive")
    return options


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT. Raises ProfileError, msgspec.ValidationError, OSError."""
    profile = load_profile(options.profile)
    engine = Engine(profile, speed=options.speed, is_priority=options.scheduling_policy == "priority")
    engine.break_by(msgspec.json.decode(options.fault, type=Fault))
    settings = Settings(
        model=options.served_model_name,
        seed=options.seed,
        max_queued=options.max_num_queued_reqs,
        request_log=options.request_log,
    )
    app = App(engine, settings)
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    core = loop.create_task(engine.run())
    try:
        await asyncio.wait_for(asked_to_stop.wait(), profile.startup_s or 1e-3)
    except TimeoutError:
        server = await loop.create_server(lambda: Connection(app), options.host, options.port, backlog=4096)
        print(f"simulated engine: {options.served_model_name} on {options.host}:{options.port}", flush=True)  # noqa: T201
        stopped = loop.create_task(asked_to_stop.wait())
        await asyncio.wait((stopped, core), return_when=asyncio.FIRST_COMPLETED)
        if core.done():
            core.result()
        app.is_stopping = True
        # New connections are still answered during a graceful stop, as vLLM does, and refused after it.
        deadline = loop.time() + options.shutdown_timeout
        while app.calls and loop.time() < deadline:
            await asyncio.sleep(0.02)
        server.close()
        app.stop()
        # A turn of the loop lets the last events leave the process.
        await asyncio.sleep(0.05)
    core.cancel()
    app.log.close()


def main() -> int:
    options = parse_arguments(sys.argv[1:])
    try:
        uvloop.run(serve(options))
    except (ProfileError, msgspec.ValidationError, msgspec.DecodeError, OSError) as error:
        print(f"simulated engine: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
