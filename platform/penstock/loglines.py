"""Which of the roles' lines a person at the terminal needs: warnings and worse, in plain words. The files have all."""

import json
import re

_LEVELS = {
    "TRACE": "",
    "DEBUG": "",
    "INFO": "",
    "WARNING": "warning: ",
    "ERROR": "error: ",
    "CRITICAL": "error: ",
}
_EXPECTED = (
    "Memory overcommit must be enabled",
    "Valkey is now ready to exit",
    "worker: Warm shutdown",
    "snapshot: neither the state nor a file has one",
)
"""What every start or stop says; none of it asks for anything to be done."""

_CELERY = re.compile(r"^\[[\d\- :,]+: (?P<level>[A-Z]+)/[^\]]+\] (?P<text>.*)$")
_LOOPS = re.compile(r"^\d\d:\d\d:\d\d (?P<level>[A-Z]+) (?P<text>.*)$")
_UVICORN = re.compile(r"^(?P<level>TRACE|DEBUG|INFO|WARNING|ERROR|CRITICAL):\s+(?P<text>.*)$")
_VALKEY = re.compile(r"^\d+:(?:[A-Z] \d\d \w{3} \d{4} [\d:.]+ (?P<mark>[.\-*#])|signal-handler \(\d+\)) (?P<text>.*)$")


class Sieve:
    """One role's lines, in order. Remembers whether the last event was shown, for the lines that belong to it."""

    def __init__(self) -> None:
        self._is_shown = True

    def shown(self, line: str) -> str:
        """``line`` as the terminal shows it; empty for what only the log file needs."""
        event = _event(line)
        if event is None and line.startswith(_EXPECTED):
            return ""
        if event is None:
            # A crash writes past every logger: what is not indented is news.
            self._is_shown = self._is_shown or bool(line[:1].strip())
            return line if self._is_shown else ""
        level, text = event
        prefix = _LEVELS.get(level, "warning: ")
        self._is_shown = bool(prefix) and not text.startswith(_EXPECTED)
        return f"{prefix}{text}" if self._is_shown else ""


def _event(line: str) -> tuple[str, str] | None:
    """Level and text of a line that begins an event in one of the roles' formats; None for any other line."""
    if line.startswith("{"):
        return _json_event(line)
    for pattern in (_CELERY, _LOOPS, _UVICORN):
        found = pattern.match(line)
        if found:
            return found["level"], found["text"]
    found = _VALKEY.match(line)
    if found:
        text = found["text"].removeprefix("WARNING ")
        return ("WARNING" if found["mark"] == "#" else "INFO"), text
    return None


def _json_event(line: str) -> tuple[str, str] | None:
    """A gateway's line: its event, and the last line of an exception."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or "event" not in content:
        return None
    exception = str(content.get("exception") or "").strip().splitlines()
    text = " | ".join([str(content["event"]), *exception[-1:]])
    return str(content.get("level", "info")).upper(), text
