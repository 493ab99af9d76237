"""One poison row must not stop what stands beside it: an error is a line in the log, and the rest of a tick goes on."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

import redis.exceptions
from django.db import InterfaceError, OperationalError

log = logging.getLogger(__name__)

_QUIET_S = 60.0
_FORGET_AT = 10_000
_told: dict[str, float] = {}
AWAY = (redis.exceptions.RedisError, OperationalError, InterfaceError)
"""What says that the database or the state is away: nothing is wrong with what was being done."""


@contextmanager
def isolated(what: str, *, raising: tuple[type[Exception], ...] = AWAY) -> Iterator[None]:
    """Let an error end the block and no more. A database or state that is away ends the tick: all rows fail alike."""
    try:
        yield
    except raising:
        raise
    except Exception as error:  # noqa: BLE001  (what a row can hold is not known here)
        if is_news(f"{what} {type(error).__name__}"):
            frame = extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            log.error("%s failed (%s: %s, at %s); the others go on", what, type(error).__name__, error, where)


def is_news(subject: str, *, quiet_s: float = _QUIET_S) -> bool:
    """Whether ``subject`` was not told in this process during the last ``quiet_s`` seconds; from now on it was."""
    now = time.monotonic()
    if now - _told.get(subject, -quiet_s) < quiet_s:
        return False
    if len(_told) >= _FORGET_AT:
        _told.clear()
    _told[subject] = now
    return True
