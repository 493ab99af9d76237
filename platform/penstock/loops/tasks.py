"""The Celery tasks: one per loop, all alike. A tick that fails is logged; the next one starts from what is."""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import shared_task
from django.utils import timezone

from penstock.loops.budgets import is_news as is_budget_news
from penstock.loops.budgets import tell_budgets
from penstock.loops.calibrate import calibrate
from penstock.loops.drift import drift
from penstock.loops.isolation import AWAY, is_news
from penstock.loops.lease import lease
from penstock.loops.observe import observe
from penstock.loops.probe import probe
from penstock.loops.reconcile import reconcile
from penstock.loops.rollup import roll_up
from penstock.loops.scale import scale
from penstock.loops.shared import client
from penstock.loops.timetable import TIMETABLE
from penstock.loops.upkeep import finalise, upkeep
from penstock.loops.usage import is_usage_waiting, write_usage
from penstock.publish import publish_pending

log = logging.getLogger(__name__)


def _tick(name: str, work: Callable[[], Any]) -> None:
    """Run ``work`` under the lease ``name``. A database or state that is away is one line in the log, no traceback."""
    tick = TIMETABLE[name]
    try:
        with lease(name, every_s=tick.every_s, limit_s=tick.limit_s) as held:
            if held:
                work()
    except AWAY as error:
        log.warning("%s: %s (%s); the next tick tries again", name, error, type(error).__name__)
    except Exception as error:
        if is_news(f"{name} {type(error).__name__}"):
            log.exception("%s failed; the next tick tries again", name)


@shared_task(name="loops.publish")
def publish_task() -> None:
    _tick("publish", publish_pending)


@shared_task(name="loops.observe")
def observe_task() -> None:
    _tick("observe", lambda: observe(client(), now=time.time()))


@shared_task(name="loops.usage")
def usage_task() -> None:
    try:
        waiting = is_usage_waiting(client())
    except AWAY as error:
        log.warning("usage: %s; the next tick tries again", error)
        return
    # Two ticks a second: most find nothing and shall not cost a write.
    if waiting:
        _tick("usage", lambda: write_usage(client()))


@shared_task(name="loops.reconcile")
def reconcile_task() -> None:
    _tick("reconcile", lambda: reconcile(client(), now=time.time()))


@shared_task(name="loops.calibrate")
def calibrate_task() -> None:
    _tick("calibrate", lambda: calibrate(client(), now=time.time()))


@shared_task(name="loops.scale")
def scale_task() -> None:
    _tick("scale", lambda: scale(client(), now=time.time()))


@shared_task(name="loops.probe")
def probe_task() -> None:
    _tick("probe", lambda: probe(client(), now=time.time()))


@shared_task(name="loops.finalise")
def finalise_task() -> None:
    _tick("finalise", finalise)


@shared_task(name="loops.budgets")
def budgets_task() -> None:
    # Each second, so that a state that has begun anew is told while it still grants nothing; a write only when it is.
    try:
        is_due = is_budget_news(client())
    except AWAY as error:
        log.warning("budgets: %s; the next tick tries again", error)
        return
    if is_due:
        _tick("budgets", lambda: tell_budgets(client(), now=time.time()))


@shared_task(name="loops.rollup")
def rollup_task() -> None:
    _tick("rollup", lambda: roll_up(client(), now=timezone.now()))


@shared_task(name="loops.drift")
def drift_task() -> None:
    _tick("drift", lambda: drift(client(), now=time.time()))


@shared_task(name="loops.upkeep")
def upkeep_task() -> None:
    _tick("upkeep", upkeep)
