"""What a fixture makes for hundreds of tests: made by the services once per process, then written as it was written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from django.db import connection

T = TypeVar("T")
WRITES = ("INSERT", "UPDATE", "DELETE")
_recorded: dict[str, tuple[list[tuple[str, Any, bool]], Any]] = {}


def replayed(name: str, make: Callable[[], T]) -> T:
    """What ``make`` returns and the rows it writes: the same ids and moments for each test of a process.

    Only inside a test's own transaction, which takes the rows back; a test that commits gets rows of its own, with
    whatever runs on commit. ``make`` changes nothing outside of the database.
    """
    if not connection.in_atomic_block:
        return make()
    if name not in _recorded:
        statements: list[tuple[str, Any, bool]] = []

        def note(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith(WRITES):
                statements.append((sql, params, many))
            return execute(sql, params, many, context)

        with connection.execute_wrapper(note):
            made = make()
        _recorded[name] = statements, copy.deepcopy(made)
        return made
    statements, kept = _recorded[name]
    with connection.cursor() as cursor:
        for sql, params, many in statements:
            (cursor.executemany if many else cursor.execute)(sql, params)
    return copy.deepcopy(kept)
