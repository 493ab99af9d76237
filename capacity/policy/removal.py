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
    held = _many(holding, "replica")
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


def may_remove_pool(*, deployments: int, reservations: int, holding: int = 0) -> Verdict:
    """Whether a pool may go that so many deployments serve, and of which so many reservations are not over.

    ``holding``: replicas of deployments that were removed and that still hold a part of a host.
    """
    if deployments:
        return Verdict(False, f"{_many(deployments, 'deployment')} serve it.", "Remove the deployments first.")
    if holding:
        reason = f"{_many(holding, 'replica')} of removed deployments {'has' if holding == 1 else 'have'} not ended."
        return Verdict(False, reason, "They end what they have in hand and stop: remove it then.")
    if reservations:
        return Verdict(False, f"{_many(reservations, 'reservation')} of it are not over.", "End or cancel them first.")
    return Verdict(True, "Nothing serves it and nothing of it is sold.")


def may_remove_model(*, pools: int) -> Verdict:
    """Whether a model may go that so many pools sell."""
    if pools:
        return Verdict(False, f"{_many(pools, 'pool')} sell it.", "Remove the pools first.")
    return Verdict(True, "No pool sells it.")


def may_remove_deployment(*, holding: int, is_confirmed: bool, reservations: int = 0) -> Verdict:
    """Whether a deployment may go of which ``holding`` replicas have not ended.

    ``reservations``: how many of its pool are not over, where nothing else serves that. Requests for what is not there
    are in no books, so that nobody would be told that a promise is broken.
    """
    if reservations:
        are = "is" if reservations == 1 else "are"
        return Verdict(
            False,
            f"{_many(reservations, 'reservation')} of its pool {are} not over, and nothing else serves it.",
            "End or cancel them first, or let another deployment serve the pool.",
        )
    if not holding:
        return Verdict(True, "It has no replica.")
    if is_confirmed:
        return Verdict(True, f"Confirmed by name: {_many(holding, 'replica')} drain and stop.")
    return Verdict(
        False,
        f"{_many(holding, 'replica')} have not ended.",
        "Disable it and wait until they have stopped, or confirm with its name that they are to drain now.",
    )


def _many(number: int, one: str) -> str:
    return f"{number} {one}{'s' if number != 1 else ''}"
