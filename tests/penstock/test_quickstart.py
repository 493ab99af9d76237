"""quickstart.json, what the terminal says of models, and what the check holds answers to."""

import io
import json
import shlex
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from penstock import check_run, quickstart
from penstock.check_run import Answer, ask, problems
from penstock.logs import RoleLog, Terminal
from penstock.quickstart import Model

ROW: dict[str, Any] = {
    "id": "1",
    "input_tokens": 12,
    "output_tokens": 5,
    "actual_mu": 0.02,
    "outcome": "completed",
    "lower_bound": False,
}
ANSWER = Answer(
    request_id="1",
    status=200,
    chunks=5,
    text="hello",
    usage={"prompt_tokens": 12, "completion_tokens": 5},
    is_done=True,
)
TINY = Model("demo-tiny", "vllm", "", "environment", "installing torch", "88 of 210 MB", 0.42)


def merged(previous: dict[str, Any], seeded: list[dict[str, str]]) -> dict[str, Any]:
    return quickstart.merge(
        previous, seeded=seeded, base_url="b", console_url="c", sign_in_url="s", is_demo=bool(seeded)
    )


def test_keys_of_the_first_start_are_kept_by_later_ones(tmp_path: Path) -> None:
    first = merged({}, [{"slug": "a", "name": "A", "api_key": "mu_x"}])
    quickstart.write(tmp_path, first)
    assert quickstart.quickstart_path(tmp_path).stat().st_mode & 0o777 == 0o600
    second = merged(quickstart.read(tmp_path), [])
    assert second["tenants"] == first["tenants"]
    assert second["demo"] is True


def test_a_file_that_cannot_be_read_is_taken_as_none(tmp_path: Path) -> None:
    quickstart.quickstart_path(tmp_path).write_text("[broken")
    assert quickstart.read(tmp_path) == {}


def test_states_move_in_the_file() -> None:
    rows = quickstart.with_models({"base_url": "b"}, [TINY])["models"]
    assert rows == [
        {
            "name": "demo-tiny",
            "engine": "vllm",
            "state": "environment",
            "label": "",
            "detail": "installing torch, 88 of 210 MB",
        }
    ]


def test_the_curl_line_survives_a_shell() -> None:
    words = shlex.split(quickstart.curl_line("http://127.0.0.1:8080/v1", "mu_x", "demo-sim"))
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:8080/v1/chat/completions"]
    body = json.loads(words[-1])
    assert body["model"] == "demo-sim"
    assert body["stream"] is True


def test_a_move_is_told_once_with_progress_and_a_failure_with_what_to_do() -> None:
    assert quickstart.change_line(None, TINY) == ("demo-tiny (vllm): environment 42 % installing torch, 88 of 210 MB")
    assert quickstart.change_line(TINY, replace(TINY, share=0.43, detail="89 of 210 MB")) == ""
    assert "51 %" in quickstart.change_line(TINY, replace(TINY, share=0.51))
    failed = quickstart.change_line(TINY, replace(TINY, state="failed", step="", detail="disk full", share=None))
    assert "disk full" in failed
    assert "Retry" in failed
    assert quickstart.change_line(None, Model("demo-sim", "simulated", "simulated", "ready")) == (
        "demo-sim (simulated): ready"
    )


def test_an_answer_with_its_row_has_no_problem() -> None:
    assert problems(ANSWER, ROW) == []


@pytest.mark.parametrize(
    ("answer", "row", "words"),
    [
        (replace(ANSWER, status=503, error="status 503: no replica"), None, "no replica"),
        (replace(ANSWER, text=""), ROW, "no text"),
        (replace(ANSWER, chunks=1), ROW, "one piece"),
        (replace(ANSWER, is_done=False), ROW, "[DONE]"),
        (ANSWER, None, "did not reach the database"),
        (ANSWER, {**ROW, "output_tokens": 6}, "6 output_tokens, the stream said 5"),
        (ANSWER, {**ROW, "input_tokens": 11}, "11 input_tokens"),
        (ANSWER, {**ROW, "actual_mu": 0.0}, "0.0 MU"),
        (ANSWER, {**ROW, "outcome": "engine_lost"}, "engine_lost"),
        (ANSWER, {**ROW, "lower_bound": True}, "lower bound"),
    ],
)
def test_each_lack_is_named(answer: Answer, row: dict[str, Any] | None, words: str) -> None:
    assert any(words in problem for problem in problems(answer, row))


UNHEARD = json.dumps({"error": {"message": "No replica of 'x' is ready.", "code": "no_ready_replica"}})


@pytest.mark.parametrize(
    ("answers", "status", "asked"),
    [([(503, UNHEARD), (401, "{}")], 401, 2), ([(503, '{"error": {"code": "capacity_exceeded"}}')], 503, 1)],
)
async def test_a_gateway_that_has_not_heard_of_a_replica_yet_is_asked_again(
    answers: list[tuple[int, str]], status: int, asked: int
) -> None:
    seen = []

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            code, body = answers[min(len(seen), len(answers) - 1)]
            seen.append(code)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answer = await ask(f"http://127.0.0.1:{server.server_port}/v1", "key", "x")
        server.shutdown()
    assert (answer.status, len(seen)) == (status, asked)


async def test_a_gateway_that_never_hears_of_it_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_run, "HEARD_WITHIN_S", 0.5)
    monkeypatch.setattr(check_run, "stream_once", lambda *_: Answer(status=503, error=f"status 503: {UNHEARD}"))
    assert problems(await ask("http://127.0.0.1:1/v1", "key", "x"), None) == [f"status 503: {UNHEARD}"]


class Screen(io.StringIO):
    def __init__(self, *, is_tty: bool) -> None:
        super().__init__()
        self._is_tty = is_tty

    def isatty(self) -> bool:
        return self._is_tty


def test_a_status_line_stays_below_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen(is_tty=True)
    terminal = Terminal(screen)
    terminal.status("tiny 42 %")
    terminal.line("hello", source="web")
    terminal.status("")
    assert screen.getvalue() == "\r\x1b[Ktiny 42 %\r\x1b[Kweb        hello\ntiny 42 %\r\x1b[K"


def test_without_a_terminal_each_change_is_a_line() -> None:
    screen = Screen(is_tty=False)
    terminal = Terminal(screen)
    for text in ("tiny 42 %", "tiny 42 %", "tiny 43 %", ""):
        terminal.status(text)
    assert screen.getvalue() == "tiny 42 %\ntiny 43 %\n"


def test_a_closed_terminal_does_not_stop_anything() -> None:
    screen = Screen(is_tty=False)
    terminal = Terminal(screen)
    screen.close()
    terminal.line("into the void")


def test_a_character_the_terminal_does_not_have_does_not_silence_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    written = io.BytesIO()
    terminal = Terminal(io.TextIOWrapper(written, encoding="ascii"))
    terminal.line("cpu 2 cores · memory 8 GiB", source="doctor")
    terminal.plain("    open once   http://127.0.0.1:8000/sign-in/x")
    assert written.getvalue().decode().splitlines() == [
        "doctor     cpu 2 cores ? memory 8 GiB",
        "    open once   http://127.0.0.1:8000/sign-in/x",
    ]


def test_a_log_file_is_private_and_turned_over(tmp_path: Path) -> None:
    log = RoleLog(tmp_path / "log" / "web.log", max_bytes=200)
    for number in range(10):
        log.write(f"line {number}", now=0.5)
    log.close()
    path = tmp_path / "log" / "web.log"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().endswith("1970-01-01T00:00:00.500Z line 9\n")
    assert path.stat().st_size <= 200
    assert "line 5" in path.with_suffix(".log.1").read_text() + path.read_text()
