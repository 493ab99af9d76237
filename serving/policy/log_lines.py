"""From the end of a log to the lines that a reader has not had yet. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LogLines:
    """``position``: bytes of the log that were read by the end of ``lines``; give it as ``after`` the next time.

    ``has_gap``: what lay between was longer than what is kept, or the log was begun anew.
    """

    lines: list[str]
    position: int
    has_gap: bool = False


def lines_after(data: bytes, end: int, *, after: int | None, most: int) -> LogLines:
    """The last ``most`` whole lines of ``data``, the end of a log of ``end`` bytes, that lie beyond ``after`` (bytes).

    A line that is still being written waits until it is whole. Without ``after``, the log is read from its end.
    """
    start = end - len(data)
    is_rotated = after is not None and after > end
    has_gap = after is not None and (is_rotated or after < start)
    # What is kept begins somewhere within a line, unless it is all.
    first = data.find(b"\n") + 1 if start > 0 else 0
    begin = first if after is None or has_gap else after - start
    whole = data.rfind(b"\n") + 1
    if whole <= begin:
        return LogLines([], start + begin, has_gap)
    lines = data[begin:whole].decode("utf-8", "replace").split("\n")[:-1]
    return LogLines(
        [_shown(line) for line in lines[-most:]], start + whole, has_gap or (len(lines) > most and after is not None)
    )


def _shown(line: str) -> str:
    """Of a progress bar, which overwrites itself, what it said last; no other control characters, but tabs."""
    last = next((part for part in reversed(line.split("\r")) if part.strip()), "")
    return "".join(c for c in last if c == "\t" or c.isprintable())
