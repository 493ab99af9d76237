"""What a fixture makes for hundreds of tests: made by the services once per process, then written as it was written."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import redis
from django.db import connection

T = TypeVar("T")
WRITES = ("INSERT", "UPDATE", "DELETE")
FRESH_S = 5.0
"""What is fresh was made within so many seconds, and in this minute of the clock."""


@dataclass(frozen=True)
class Recorded:
    """What was written, and what the maker returned."""

    at: float
    """UNIX seconds."""
    statements: list[tuple[str, Any, bool]]
    keys: dict[bytes, tuple[bytes, int]]
    """Of the state, by name: as it dumps them, and how many milliseconds they live; 0: for ever."""
    made: Any

    def is_fresh(self) -> bool:
        now = time.time()
        return now - self.at < FRESH_S and now // 60 == self.at // 60


_recorded: dict[str, Recorded] = {}


def replayed(name: str, make: Callable[[], T], *, state: redis.Redis | None = None, only_fresh: bool = False) -> T:
    """What ``make`` returns and the rows it writes: the same ids and moments for each test of a process.

    Only inside a test's own transaction, which takes the rows back; a test that commits gets rows of its own, with
    whatever runs on commit. ``make`` changes nothing outside of the database but, where it is given, an empty
    ``state``. What speaks of the present has to be ``only_fresh``, else it is made anew.
    """
    if not connection.in_atomic_block:
        return make()
    known = _recorded.get(name)
    if known is None or (only_fresh and not known.is_fresh()):
        statements: list[tuple[str, Any, bool]] = []

        def note(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith(WRITES):
                statements.append((sql, params, many))
            return execute(sql, params, many, context)

        at = time.time()
        with connection.execute_wrapper(note):
            made = make()
        _recorded[name] = Recorded(at, statements, {} if state is None else _dumped(state), copy.deepcopy(made))
        return made
    with connection.cursor() as cursor:
        for sql, params, many in known.statements:
            (cursor.executemany if many else cursor.execute)(sql, params)
    if state is not None:
        with state.pipeline() as pipeline:
            for key, (dump, lives_ms) in known.keys.items():
                pipeline.restore(key, lives_ms, dump, replace=True)
            pipeline.execute()
    return cast("T", copy.deepcopy(known.made))


def _dumped(state: redis.Redis) -> dict[bytes, tuple[bytes, int]]:
    keys = cast("list[bytes]", state.keys())
    return {key: (cast("bytes", state.dump(key)), max(0, cast("int", state.pttl(key)))) for key in keys}
