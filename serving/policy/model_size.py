"""A model's size, read from its name, where nothing better is known."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d{1,2})x)?(\d{1,4}(?:\.\d{1,2})?)(b|m)(?![a-z0-9])", re.IGNORECASE)
_UNITS = {"b": 10**9, "m": 10**6}


def parameters_from_name(name: str) -> int | None:
    """Parameters that a name tells, e.g. ``Qwen3-8B`` or ``Mixtral-8x7B``; None where it tells none.

    The first size counts: of ``30B-A3B`` the second says what is active per token, and all of it must be in memory.
    """
    found = _SIZE.search(name.rpartition("/")[2])
    if found is None:
        return None
    experts, size, unit = found[1], float(found[2]), found[3].lower()
    return int((int(experts) if experts else 1) * size * _UNITS[unit]) or None
