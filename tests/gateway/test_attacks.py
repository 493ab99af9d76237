"""Clients that mean harm, or whose software is broken: raw bytes on a socket."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time

import httpx
import psutil
import pytest

from tests.gateway.conftest import AUTH, Model, Shared
from tests.gateway.harness import Gateway, wait_for

SENT = {"model": "alpha", "prompt": "abcd" * 10, "max_tokens": 5}


def head(*more: str, method: str = "POST", path: str = "/v1/completions", key: bool = True) -> bytes:
    """A request's head."""
    lines = [f"{method} {path} HTTP/1.1", "host: x", "content-type: application/json", *more]
    if key:
        lines.append(f"authorization: {AUTH['authorization']}")
    return "\r\n".join([*lines, "", ""]).encode()


def request(body: object, *more: str, **how: object) -> bytes:
    content = json.dumps(body).encode()
    return head(f"content-length: {len(content)}", *more, **how) + content  # type: ignore[arg-type]


def dial(gateway: Gateway, *, buffer: int = 0) -> socket.socket:
    made = socket.socket()
    if buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.settimeout(10)
    made.connect(("127.0.0.1", gateway.port))
    return made


def read_until(sock: socket.socket, what: bytes) -> bytes:
    data = b""
    while what not in data:
        part = sock.recv(65536)
        assert part, f"{what!r} did not come: {data[-500:]!r}"
        data += part
    return data


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            data += part
    return data


def is_closed_within(sock: socket.socket, seconds: float) -> bool:
    """Whether the server ends the connection; what it still sends is read."""
    sock.settimeout(seconds)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            if not sock.recv(65536):
                return True
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return False


def in_flight(gateway: Gateway) -> int:
    return int(httpx.get(f"{gateway.url}/readyz").json()["in_flight"])


# ------------------------------------------------------------------------------ values
@pytest.mark.parametrize("model", ["alpha", "beta"])  # with a known context, and without
@pytest.mark.parametrize("size", [2**31, 2**63, 10**30, 10**400])
def test_an_output_beyond_every_context_is_refused(shared: Shared, model: str, size: int) -> None:
    for path, name in (("completions", "max_tokens"), ("chat/completions", "max_completion_tokens")):
        body = {"model": model, "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
        answer = shared.http.post(f"/v1/{path}", content=json.dumps(body | {name: size}))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_nested_stream_options_do_not_reach_the_engine(shared: Shared) -> None:
    deep = '{"include_usage": true, "x": ' + "[" * 600 + "]" * 600 + "}"
    body = json.dumps({**SENT, "stream": True})[:-1] + f', "stream_options": {deep}}}'
    answer = shared.http.post("/v1/completions", content=body)
    assert answer.status_code == 200
    got = shared.served(answer.headers["x-penstock-request-id"])["body"]
    assert isinstance(got, dict)
    assert got["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


# ----------------------------------------------------------------------------- framing
@pytest.mark.parametrize(
    "extra",
    [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("content-length: 5", "content-length: 6"),
        ("transfer-encoding: xchunked",),
        ("transfer-encoding: chunked, identity",),
        ("content-length: +5",),
        ("content-length: " + "9" * 5000,),
        ("x-a : 1", "content-length: 2"),
    ],
)
def test_ambiguous_lengths_are_refused(shared: Shared, extra: tuple[str, ...]) -> None:
    with dial(shared.gateway) as sock:
        sock.sendall(head(*extra) + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        data = read_to_end(sock)
    assert data.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
    assert b'{"status":"ok"}' not in data


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_body_beside_an_offer_to_upgrade_is_read(shared: Shared, pieces: int) -> None:
    """Java's client offers HTTP/2 with its first request on every plain connection."""
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAAB")
    whole = request(SENT, *offer)
    # The last piece boundary that matters lies between head and body.
    cuts = [0, *sorted({whole.index(b"\r\n\r\n") + 4 + 7 * n for n in range(pieces - 1)}), len(whole)]
    with dial(shared.gateway) as sock:
        for start, end in itertools.pairwise(cuts):
            sock.sendall(whole[start:end])
            time.sleep(0.05)
        # What follows is no request of this connection.
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        data = read_to_end(sock)
    assert data.startswith(b"HTTP/1.1 200 OK")
    assert data.count(b"\r\n\r\n") == 1


def test_an_offered_body_is_never_a_request(shared: Shared) -> None:
    inner = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    for length in (f"content-length: {len(inner)}", "transfer-encoding: chunked"):
        with dial(shared.gateway) as sock:
            sock.sendall(head("connection: Upgrade", "upgrade: websocket", length))
            time.sleep(0.05)
            sock.sendall(inner)
            data = read_to_end(sock)
        assert data.startswith(b"HTTP/1.1 400 ")
        assert data.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing", "/healthz", "/v1/completions"])
def test_a_head_request_gets_no_body(shared: Shared, path: str) -> None:
    with dial(shared.gateway) as sock:
        sock.sendall(head("connection: close", method="HEAD", path=path))
        data = read_to_end(sock)
    assert data.endswith(b"\r\n\r\n")


# -------------------------------------------------------------------------------- time
def test_a_body_that_never_begins(shared: Shared) -> None:
    with dial(shared.strict) as sock:
        sock.sendall(head("content-length: 100"))
        assert b" 408 " in read_until(sock, b'"timeout"')
        assert is_closed_within(sock, 3)


@pytest.mark.parametrize("dribble", [b"\r\n", b"x"])
def test_a_connection_without_a_request_ends(shared: Shared, dribble: bytes) -> None:
    """Bytes that begin no request must not keep a connection: a line end, or the body of a refused request."""
    with dial(shared.strict) as sock:
        sock.sendall(head("content-length: 1000000" if dribble == b"x" else "accept: */*", key=False))
        assert b" 401 " in read_until(sock, b"missing_api_key")
        end = time.monotonic() + 5
        with pytest.raises((ConnectionError, AssertionError)):  # noqa: PT012
            while time.monotonic() < end:
                sock.sendall(dribble)
                sock.settimeout(0.1)
                try:
                    assert sock.recv(100)
                except TimeoutError:
                    continue
        assert time.monotonic() < end


@pytest.mark.parametrize("pad", [7_000_000, 200_000])
def test_a_client_that_never_reads_holds_nothing_for_ever(model: Model, pad: int) -> None:
    """Whether everything is sent but not taken, or the engine is held back: the clocks end it."""
    strict = model.shared.strict
    with dial(strict, buffer=4096) as sock:
        body = model.body({"pad": pad}, stream=True, max_tokens=7_000_000 // pad * 3 - 2)
        sock.sendall(request(body))
        wait_for("the request to run", lambda: in_flight(strict) == 1)
        wait_for("the request to end", lambda: in_flight(strict) == 0, seconds=6)
        # What was buffered for it goes as well: there is no orderly end with somebody who does not read.
        wait_for("the connection to go", lambda: not is_held(strict, sock), seconds=10)


def is_held(gateway: Gateway, sock: socket.socket) -> bool:
    """Whether the gateway still has the other end open."""
    port = sock.getsockname()[1]
    connections = psutil.Process(gateway.process.popen.pid).net_connections("tcp")
    return any(connection.raddr and connection.raddr.port == port for connection in connections)


def test_a_client_that_leaves_with_a_second_request_waiting(model: Model) -> None:
    with dial(model.gateway) as sock:
        sock.sendall(request(model.body({"delay_ms": 50}, max_tokens=400, stream=True)))
        read_until(sock, b"tok")
        sock.sendall(request(model.body()))
        time.sleep(0.1)
    wait_for("the engine to stop", lambda: [entry["end"] for entry in model.log()] == ["aborted"], seconds=3)


# ------------------------------------------------------------------- heads without an end
@pytest.mark.parametrize(
    "begin",
    [
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ",
        b"GET /",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5;x=",
    ],
    ids=["header", "path", "trailer", "chunk extension"],
)
def test_what_never_ends_is_cut_off_early(shared: Shared, begin: bytes) -> None:
    sent = 0
    with dial(shared.gateway) as sock, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        sock.sendall(begin)
        while sent < 32 * 1024 * 1024:
            sock.sendall(b"a" * 65536)
            sent += 65536
    assert sent < 16 * 1024 * 1024, "what the kernel holds may have been sent, the rest not"
    assert shared.http.get("/healthz").status_code == 200


def test_trailers_are_no_headers(shared: Shared) -> None:
    content = json.dumps(SENT).encode()
    lines = [
        f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n",
        b"authorization: Bearer mu_other1_secret\r\nx-request-id: from-a-trailer\r\n\r\n",
    ]
    with dial(shared.gateway) as sock:
        sock.sendall(head("transfer-encoding: chunked", "connection: close") + b"".join(lines))
        data = read_to_end(sock)
    assert data.startswith(b"HTTP/1.1 200 ")
    assert b"from-a-trailer" not in data


def slow(model: Model, tokens: int, delay_ms: int, **more: object) -> bytes:
    """A request whose answer takes its time."""
    return request(model.body({"delay_ms": delay_ms}, max_tokens=tokens, **more))


def test_a_head_that_waits_does_not_end_the_stream_before_it(shared: Shared, model: Model) -> None:
    """The strict gateway gives half a second for headers; the stream takes longer, the next head is cut in two."""
    with dial(shared.strict) as sock:
        sock.sendall(slow(model, 3, 250, stream=True))
        read_until(sock, b"data: ")
        sock.sendall(b"GET /healthz HTTP/1.1\r\nho")
        assert b"[DONE]" in read_until(sock, b"0\r\n\r\n")
        sock.sendall(b"st: x\r\n\r\n")
        assert b'{"status":"ok"}' in read_until(sock, b"}")


def test_requests_sent_far_ahead_end_the_connection(shared: Shared, model: Model) -> None:
    with dial(shared.gateway) as sock:
        sock.sendall(slow(model, 20, 200, stream=True))
        read_until(sock, b"data: ")
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
        assert is_closed_within(sock, 5)


def test_a_client_that_leaves_with_a_request_ahead_is_seen(shared: Shared, model: Model) -> None:
    before = in_flight(shared.gateway)
    with dial(shared.gateway) as sock:
        sock.sendall(slow(model, 20, 200))
        wait_for("the request is running", lambda: in_flight(shared.gateway) > before)
        time.sleep(0.2)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.2)
    wait_for("it is over", lambda: in_flight(shared.gateway) == before, seconds=2)
