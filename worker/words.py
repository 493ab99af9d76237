"""What the agent's log says of a fault nobody foresaw: one line, without traceback."""

from __future__ import annotations

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
