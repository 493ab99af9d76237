"""The commands against servers that mean harm or are broken: redirects, torn answers, control characters."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import main
from penstock.cli.remote import output, profile
from penstock.cli.remote.profile import Profile

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A server that answers everything so; its URL, and what it was asked: method, path, token."""
    asked: list[tuple[str, str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self) -> None:
            asked.append((self.command, self.path, self.headers.get("Authorization", "")))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer(self)

        do_GET = do_POST = reply

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(value: Any, status: int = 200) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        body = json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("PENSTOCK_URL", "PENSTOCK_TOKEN", "PENSTOCK_TENANT", "PENSTOCK_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def command(url: str, *words: str, **environment: str) -> tuple[int, str, str]:
        for name, value in {"PENSTOCK_URL": url, "PENSTOCK_TOKEN": "pst_a_secret", **environment}.items():
            monkeypatch.setenv(name, value)
        code = main(words)
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.out, told.err

    return command


def test_a_redirect_takes_no_token_along(run: Callable[..., tuple[int, str, str]]) -> None:
    with serving(says({"results": [], "next": None})) as (elsewhere, asked):

        def redirect(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(301)
            handler.send_header("Location", elsewhere.replace("127.0.0.1", "localhost") + handler.path)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with serving(redirect) as (url, _):
            for words in (("tenants", "list"), ("tenants", "create", "Acme")):
                code, _, err = run(url, *words)
                assert code == 1
                assert "sends its visitors to http://localhost" in err
    assert asked == []


def test_a_list_is_not_followed_to_another_host(run: Callable[..., tuple[int, str, str]]) -> None:
    with (
        serving(says({"results": [], "next": None})) as (elsewhere, asked),
        serving(says({"results": [{"id": 1}], "next": f"{elsewhere}/api/v1/tenants?page=2"})) as (url, _),
    ):
        code, _, err = run(url, "tenants", "list")
    assert code == 1
    assert elsewhere in err
    assert asked == []


def test_a_kept_token_goes_nowhere_else(run: Callable[..., tuple[int, str, str]]) -> None:
    profile.save(Profile("https://penstock.example.org", "pst_kept_secret"))
    with serving(says({"results": [], "next": None})) as (url, asked):
        code, _, err = run(url, "tenants", "list", PENSTOCK_TOKEN="")
    assert code == 3
    assert "https://penstock.example.org" in err
    assert asked == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:abc", "http://[::1", "ftp://x", "http://"])
def test_addresses_that_are_none_are_told(run: Callable[..., tuple[int, str, str]], url: str) -> None:
    code, _, err = run(url, "tenants", "list")
    assert code == 1
    assert err.startswith("penstock: ")


def test_answers_that_break_off_or_are_no_api(run: Callable[..., tuple[int, str, str]]) -> None:
    def torn(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{")

    def page(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"<html>")

    for answer, words in ((torn, "does not answer"), (page, "does not speak Penstock")):
        with serving(answer) as (url, _):
            code, _, err = run(url, "tenants", "list")
        assert code == 1
        assert words in err


def test_a_chat_that_breaks_off_says_so(run: Callable[..., tuple[int, str, str]]) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path == "/api/v1/me":
            says({"api_url": f"http://{handler.headers['Host']}/v1"})(handler)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        event = {"choices": [{"delta": {"content": "half\x1b[2J"}}]}
        handler.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    with serving(answer) as (url, _):
        code, out, err = run(url, "chat", "m", "hello", PENSTOCK_API_KEY="mu_a_b")
    assert "half" in out
    assert "\x1b" not in out
    assert code == 1
    assert "broke off" in err


def test_errors_of_others_do_not_steer_the_terminal(run: Callable[..., tuple[int, str, str]]) -> None:
    told = {"detail": "bad\x1b[31m\x9b1m", "hint": "do\x07", "errors": [{"field": "\x1b", "message": "x"}] * 2}
    with serving(says(told, 400)) as (url, _):
        code, _, err = run(url, "tenants", "list")
    assert code == 1
    assert not set(err) & {"\x1b", "\x9b", "\x07"}


@pytest.mark.parametrize("value", ["\x1b[2J", ["\x1b[2J"], {"\x9b": "\u202e"}, [{"a": "\x1b"}]])
def test_no_kind_of_cell_holds_control_characters(value: Any) -> None:
    assert not set(output.cell({"a": value}, "a")) & {"\x1b", "\x9b", "\u202e"}


def test_interruption_is_no_traceback(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.cli.remote.web.send", interrupted)
    assert run("http://127.0.0.1:1", "tenants", "list")[0] == 130
