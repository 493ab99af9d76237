"""What the agent's log says of a fault nobody foresaw: one line, without traceback."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

HERE = Path(__file__).parent


def error_words(error: BaseException) -> str:
    """Return kind and message of ``error``, and the deepest place in the agent's own code it came through."""
    places = [
        f" ({Path(frame.f_code.co_filename).name}:{line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if HERE in Path(frame.f_code.co_filename).parents
    ]
    message = str(error)[:200].encode("unicode_escape").decode()
    return f"{type(error).__name__}: {message}{places[-1] if places else ''}"


def say_once(log: logging.Logger, said: str, error: BaseException, what: str) -> str:
    """Log a fault that comes again with each look, unless it is the one in ``said``; return the words of this one."""
    words = error_words(error)
    if words != said:
        log.error("%s: %s", what, words)
    return words
