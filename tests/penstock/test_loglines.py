"""What the terminal shows of the roles' lines, taken from real starts."""

import pytest

from penstock.loglines import Sieve

QUIET = [
    "10764:M 20 Nov 2026 14:04:50.773 * oO0OoO0OoO0Oo Valkey is starting oO0OoO0OoO0Oo",
    "10764:M 20 Nov 2026 14:04:50.773 # WARNING Memory overcommit must be enabled! Without it, a background save fails",
    '{"gateway":"gateway-1","request_id":"01a1","outcome":"completed","event":"request","level":"info","at":"2026"}',
    '{"gateway":"gateway-1","event":"snapshot: neither the state nor a file has one; nothing","level":"warning"}',
    "[2026-11-20 14:05:20,006: INFO/MainProcess] orders of generation 1 for 2 replicas",
    "14:05:21 INFO serving.agents.reports demo-sim c007d9: starting → ready (the engine answers)",
    "10764:M 20 Nov 2026 14:18:22.736 # Valkey is now ready to exit, bye bye...",
    "27803:signal-handler (1795184786) Received SIGTERM scheduling shutdown...",
    "worker: Warm shutdown (MainProcess)",
    "INFO:     127.0.0.1:50220 - GET / HTTP/1.1 200",
]
SHOWN = [
    (
        '{"event":"journal: it cannot be written, requests are refused: no space","level":"error"}',
        "error: journal: it cannot be written, requests are refused: no space",
    ),
    (
        '{"event":"it is tried again","level":"error","exception":"Traceback (most recent call):\\n  x\\nOSError: y"}',
        "error: it is tried again | OSError: y",
    ),
    (
        "10764:M 20 Nov 2026 14:04:50.773 # Out Of Memory allocating 17 bytes!",
        "warning: Out Of Memory allocating 17 bytes!",
    ),
    ("[2026-11-20 14:05:20,006: WARNING/MainProcess] the broker is away", "warning: the broker is away"),
    ("14:05:21 ERROR penstock.loops a tick failed", "error: penstock.loops a tick failed"),
    ("ERROR:    Exception in ASGI application", "error: Exception in ASGI application"),
    ("Segmentation fault", "Segmentation fault"),
    ("{broken", "{broken"),
    ("[1, 2]", "[1, 2]"),
    ("", ""),
]


@pytest.mark.parametrize("line", QUIET)
def test_what_a_person_need_not_know_stays_in_the_file(line: str) -> None:
    assert Sieve().shown(line) == ""


@pytest.mark.parametrize(("line", "shown"), SHOWN)
def test_warnings_and_worse_are_shown_in_plain_words(line: str, shown: str) -> None:
    assert Sieve().shown(line) == shown


def test_lines_go_with_the_event_that_they_belong_to() -> None:
    sieve = Sieve()
    assert sieve.shown(QUIET[4]) == ""
    assert sieve.shown("    more of it") == ""
    assert sieve.shown("14:05:21 ERROR penstock.loops a tick failed")
    assert sieve.shown("Traceback (most recent call last):") == "Traceback (most recent call last):"
    assert sieve.shown('  File "x.py", line 1') == '  File "x.py", line 1'


def test_a_crash_after_quiet_lines_is_shown_whole() -> None:
    sieve = Sieve()
    assert sieve.shown(QUIET[5]) == ""
    crash = ["Traceback (most recent call last):", '  File "x.py", line 1, in <module>', "MemoryError"]
    assert [sieve.shown(line) for line in crash] == crash
