"""How figures are written: a thousands comma, a real minus sign, a space before every unit."""

import math
from datetime import datetime

NONE = "–"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | None, decimals: int | None = None) -> str:
    """``value`` for people. Without ``decimals``: three significant digits below 100, whole numbers above."""
    if value is None:
        return NONE
    if decimals is None:
        size = abs(value)
        decimals = 0 if size >= 100 or float(value).is_integer() else (1 if size >= 10 else 2)
    text = f"{value:,.{decimals}f}"
    if text.startswith("-"):
        return text[1:] if float(text.replace(",", "")) == 0 else f"−{text[1:]}"
    return text


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def significant(value: float | None) -> str:
    """``value`` with three digits that count, however small it is: 0.0421, 1.23 × 10⁻⁵."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if -4 <= power < 4:
        return number(value, max(0, 2 - power))
    return f"{number(value / 10.0**power, 2)} × 10{str(power).translate(_SUPERSCRIPTS)}"


def compact(value: float | None) -> tuple[str, str]:
    """A large count as number and prefix: 12_345_678 → ("12.3", "M"); below 10,000 the number itself."""
    if value is None:
        return NONE, ""
    if abs(value) < 10_000:
        return number(value), ""
    size, prefix = next((size, prefix) for size, prefix in _STEPS if abs(value) >= size)
    scaled = value / size
    return (f"{scaled:.0f}" if abs(scaled) >= 99.95 else f"{scaled:.1f}"), prefix


def percent(share: float | None) -> str:
    """A share (0..1) in per cent, without the sign."""
    if share is None:
        return NONE
    value = share * 100
    return number(value, 0 if abs(value) >= 10 or value == 0 else 1 if abs(value) >= 0.1 else 2)


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units: ``42 s``, ``2 min 5 s``, ``3 d 4 h``."""
    if seconds is None:
        return NONE
    whole = max(0, int(seconds))
    parts = [(whole // 86400, "d"), (whole % 86400 // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), 3)
    shown = [f"{count} {unit}" for count, unit in parts[first : first + 2] if count]
    return " ".join(shown) or "0 s"


def milliseconds(value: float | None) -> str:
    """Milliseconds without the unit: whole from 10 on."""
    return number(value, None if value is not None and value < 10 else 0)


def gibibytes(count: int | float | None) -> str:
    """Bytes as GiB, without the unit."""
    return NONE if not count else number(count / 2**30, 0 if count >= 10 * 2**30 else 1)


def seconds_between(earlier: datetime | None, later: datetime) -> float | None:
    """Seconds from ``earlier`` to ``later``, None when there is no earlier time."""
    return None if earlier is None else (later - earlier).total_seconds()


def percentile(values: list[float], share: float) -> float | None:
    """The nearest-rank percentile of ``values``; None when there are none."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * round(share * 1000) // 1000))
    return ordered[min(rank, len(ordered)) - 1]
