"""How many wrong passwords are borne before sign-in pauses.

Three counters over one window. An account is guessed from one address: five tries. One address guesses many accounts:
thirty. Many addresses guess one account: fifty, high enough that a stranger can hardly lock its owner out, and a
one-time link still lets the owner in.
"""

from dataclasses import dataclass

WINDOW_S = 900.0
PAIR_LIMIT = 5
ADDRESS_LIMIT = 30
ACCOUNT_LIMIT = 50


@dataclass(frozen=True, slots=True)
class Failures:
    """Times (UNIX seconds) of failed tries inside the window: of the account, the address, and both together."""

    account: tuple[float, ...] = ()
    address: tuple[float, ...] = ()
    pair: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """``retry_after_s`` is 0 when the password may be looked at."""

    allowed: bool
    retry_after_s: float
    reason: str


def judge(failures: Failures, *, now: float) -> Verdict:
    """Whether a password may be looked at now, and else when the next try is allowed."""
    waits = (
        (_wait(failures.pair, PAIR_LIMIT, now), "too many wrong passwords for this account from this address"),
        (_wait(failures.address, ADDRESS_LIMIT, now), "too many wrong passwords from this address"),
        (_wait(failures.account, ACCOUNT_LIMIT, now), "too many wrong passwords for this account"),
    )
    wait, reason = max(waits, key=lambda pair: pair[0])
    return Verdict(False, wait, reason) if wait > 0 else Verdict(True, 0.0, "within the limits")


def _wait(times: tuple[float, ...], limit: int, now: float) -> float:
    """Seconds until fewer than ``limit`` of ``times`` lie inside the window; 0 if that is so now."""
    inside = sorted(time for time in times if time > now - WINDOW_S)
    return inside[len(inside) - limit] + WINDOW_S - now if len(inside) >= limit else 0.0
