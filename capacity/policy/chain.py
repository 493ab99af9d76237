"""The hash chain of a tenant's usage: who changes, drops, adds or moves a row afterwards breaks it.

``hash_n = SHA-256(hash_(n-1) ‖ n ‖ canonical(row_n) ‖ sealed_n)``, the four joined by newlines, in UTF-8; hashes as
lower-case hex, ``hash_0`` of 64 zeros. Rows are numbered from 1 in the order in which they were booked, by tenant.

``canonical`` is JSON without spaces, keys sorted, of the row's tenant and the columns that a tenant sees: times as UTC
with microseconds, numbers of modality units as floats, ids as lower-case text. ``sealed`` is the SHA-256 of what only
operators see (where it ran, what the engine said), made the same way: a tenant can check its chain without being told.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

GENESIS = "0" * 64
"""What the first row of a chain follows."""


def canonical(fields: Mapping[str, Any]) -> str:
    """``fields`` as the text that is hashed. Raises TypeError for a value that has no canonical form."""
    plain = {name: _plain(name, value) for name, value in fields.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def seal(fields: Mapping[str, Any]) -> str:
    """The digest of what a tenant is not shown."""
    return hashlib.sha256(canonical(fields).encode()).hexdigest()


def link(previous: str, sequence: int, fields: Mapping[str, Any], sealed: str) -> str:
    """The hash of row ``sequence`` (from 1), which follows the row with the hash ``previous``."""
    return hashlib.sha256(f"{previous}\n{sequence}\n{canonical(fields)}\n{sealed}".encode()).hexdigest()


_FLOATS = frozenset({"estimated_mu", "actual_mu"})


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if name in _FLOATS:
        return float(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat(timespec="microseconds")
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, Mapping):
        # Databases keep no difference between 2 and 2.0 within JSON.
        return {str(key): _number(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain("", item) for item in value]
    raise TypeError(f"{name} has no canonical form: {type(value).__name__}")


def _number(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else _plain("", value)
