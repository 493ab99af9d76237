"""What values of a manifest look like. Pure."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any, Literal

Shape = Literal["text", "whole", "number", "switch", "texts", "names", "prices", "tiers", "moment"]
PRICE: Mapping[str, Shape] = {
    **dict.fromkeys(("base", "alpha", "beta", "gamma", "epsilon", "cached_factor", "replica_mu_per_min"), "number"),
    "modalities": "names",
    "long_input_tiers": "tiers",
    "calibrated": "switch",
    "price_per_1000_mu": "number",
}
"""What a price is made of."""
EMPTY_PRICES = ("price_per_1000_mu",)
"""Of these, null says that there is none."""


def moment(value: Any) -> datetime.datetime | None:
    """The time that ``value`` tells, with its zone; None where it tells none."""
    try:
        found = datetime.datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None


def misfit(shape: Shape, value: Any) -> str:
    """Why ``value`` has not this shape; empty if it has."""
    if why := _unwritable(value):
        return why
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits: dict[Shape, tuple[bool, str]] = {
        "text": (isinstance(value, str), "it is a text (in quotes, if it looks like a number or a time)"),
        "whole": (is_number and isinstance(value, int), "it is a whole number"),
        "number": (is_number, "it is a number"),
        "switch": (isinstance(value, bool), "it is true or false"),
        "texts": (isinstance(value, list) and all(isinstance(one, str) for one in value), "it is a list of texts"),
        "names": (isinstance(value, dict), "it is values by name"),
        "prices": (isinstance(value, dict), "it is numbers by name"),
        "moment": (moment(value) is not None, "it is an ISO time with its zone, in quotes: '2026-12-01T00:00:00Z'"),
        "tiers": (
            isinstance(value, list) and all(isinstance(one, list) for one in value),
            "it is a list of pairs of numbers",
        ),
    }
    is_fit, why = fits[shape]
    if is_fit and shape == "prices":
        wrong = [
            f"{name}: {misfit(PRICE[name], one)}"
            for name, one in value.items()
            if name in PRICE and not (one is None and name in EMPTY_PRICES)
        ]
        wrong += [f"{name}: no such part; there are {', '.join(PRICE)}" for name in value if name not in PRICE]
        return "; ".join(one for one in wrong if not one.endswith(": "))
    return "" if is_fit else why


def _unwritable(value: Any) -> str:
    """Why JSON cannot hold ``value``; empty if it can."""
    if isinstance(value, dict):
        if any(not isinstance(name, str) for name in value):
            return "names are texts: put them in quotes"
        return next((why for one in value.values() if (why := _unwritable(one))), "")
    if isinstance(value, list):
        return next((why for one in value if (why := _unwritable(one))), "")
    if isinstance(value, float) and not math.isfinite(value):
        return "numbers are finite"
    if value is None or isinstance(value, str | int | float):
        return ""
    return f"a {type(value).__name__} cannot be sent: put it in quotes"
