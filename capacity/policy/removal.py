"""May it be removed? What stands in the way says so, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it may go, and why; ``hint`` says what to do where it may not."""

    is_allowed: bool
    reason: str
    hint: str = ""


def may_remove_host(
    *, state: Literal["active", "cordoned", "draining", "lost"] | str, has_reported: bool, holding: int, force: bool
) -> Verdict:
    """Whether a host may go that ``holding`` replicas hold a part of.

    Nothing that runs is taken from a host that is there. One whose agent is gone cannot be asked to stop anything: its
    replicas are given up only by ``force``.
    """
    if holding <= 0:
        return Verdict(True, "No replica holds any of it.")
    held = f"{holding} replica{'s' if holding != 1 else ''}"
    if state != "lost" and has_reported:
        reason = f"{held} still hold{'s' if holding == 1 else ''} a part of it."
        if state == "draining":
            return Verdict(False, reason, "It is being drained: remove it when the last of them has stopped.")
        return Verdict(False, reason, "Drain it first: its replicas are replaced elsewhere, then stopped.")
    if force:
        return Verdict(True, f"Its agent is gone: {held} count as failed.")
    return Verdict(
        False,
        f"Its agent is gone, and {held} may still run on it.",
        "Force it to give them up: they count as failed and are replaced elsewhere.",
    )
