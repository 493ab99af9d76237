"""Logging of the loops: one line per event on stderr; the launcher prefixes and files it."""

import logging
import sys


def configure_logging(level: int | str | None) -> None:
    """Send every logger to stderr at ``level`` (default WARNING); the loops' own lines from INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level or logging.WARNING)
    for name in ("penstock", "serving", "capacity"):
        logging.getLogger(name).setLevel(min(logging.INFO, root.level))
