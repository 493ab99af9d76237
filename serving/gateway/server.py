"""A gateway process: ``python -m serving.gateway.server --data DIR --host H --port P [--name gateway-1]``.

One process, one loop (uvloop), one listening socket with SO_REUSEPORT: several gateways share a port, and the kernel
spreads connections over them. No database, no Django settings.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from channels.routing import ProtocolTypeRouter

from serving.gateway import logs
from serving.gateway.app import Gateway
from serving.gateway.config import Config, ConfigError, load_config
from serving.gateway.protocol import BoundedProtocol
from serving.gateway.request import Message, Receive, Send
from serving.gateway.services import Services

SETTLE_S = 2.0
"""After the drain, requests that were cut get this long to close their books."""


class Application:
    """The parts of the process around its ASGI router: made and unmade inside the loop, by the lifespan."""

    def __init__(self, config: Config, log: Any, sink: logs.Sink) -> None:
        self.config = config
        self.log = log
        self.sink = sink
        self.gateway: Gateway | None = None
        self.router: Callable[[Message, Receive, Send], Awaitable[None]] = ProtocolTypeRouter(
            {"http": self._http, "lifespan": self._lifespan}
        )

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        if self.gateway is None:
            raise RuntimeError("a request came before the lifespan began")
        await self.gateway(scope, receive, send)

    async def _lifespan(self, scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except (OSError, ValueError) as error:
            self.log.error("the gateway cannot start", error=str(error))
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        self.sink.gather(asyncio.get_running_loop())
        services = Services(self.config, self.log, self.sink)
        await services.start()
        self.gateway = Gateway(services)
        tune_garbage_collector()
        self.log.info(
            "serving",
            **self.config.shown(),
            snapshot_version=services.store.view.version,
            file_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )

    async def _stop(self) -> None:
        if self.gateway is None:
            return
        services = self.gateway.services
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLE_S
        while services.in_flight and loop.time() < deadline:
            await asyncio.sleep(0.01)
        await services.stop()
        self.log.info("stopped", in_flight=services.in_flight)
        self.sink.gather(None)


def tune_garbage_collector() -> None:
    """A full collection of a warm process takes 25 ms: what lives for ever is set aside, the rest collected seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def raise_file_limit() -> None:
    """Allow as many descriptors as the system lets this process have (a stream takes two)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound TCP socket that other gateways may share. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Accepted connections inherit it.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind(address)
    return sock


class Server(uvicorn.Server):
    """Tells the gateway that it is stopping, so that ``/readyz`` says so on connections that are still open."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self.application = application

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.application.gateway is not None:
            self.application.gateway.is_stopping = True
        await super().shutdown(sockets)


def make_server(config: Config, application: Application) -> Server:
    class Protocol(BoundedProtocol):
        header_s = config.header_s

    return Server(
        uvicorn.Config(
            application.router,
            loop="uvloop",
            http=Protocol,
            ws="none",
            lifespan="on",
            interface="asgi3",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            backlog=4096,
            timeout_keep_alive=int(config.keep_alive_s),
            timeout_graceful_shutdown=max(1, int(config.drain_s)),
        ),
        application,
    )


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving.gateway.server", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="gateway-1", help="unique among the gateways of the installation")
    parser.add_argument(
        "--gateways",
        type=int,
        default=0,
        help="how many the installation has, so that one that starts while the state is down knows its share of limits",
    )
    return parser.parse_args(argv)


def _leave(*_: object) -> None:
    raise SystemExit(0)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        config = load_config(
            data=arguments.data.resolve(),
            host=arguments.host,
            port=arguments.port,
            name=arguments.name,
            gateways=arguments.gateways,
        )
        sock = listening_socket(config.host, config.port)
    except ConfigError as error:
        print(f"gateway: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except OSError as error:
        where = f"{arguments.host}:{arguments.port}"
        print(f"gateway: cannot listen on {where}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 2
    raise_file_limit()
    log, sink = logs.configure(config.name)
    # uvicorn raises the signal again after an orderly stop: that must be a clean exit.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    try:
        make_server(config, Application(config, log, sink)).run(sockets=[sock])
    finally:
        sink.gather(None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
