"""Logging of the loops: one line per event on stderr; the launcher prefixes and files it."""

import logging
import sys

_TRANSPORT = ("celery", "kombu")


class _Brief(logging.Filter):
    """A broker that went away is one line, not the way through four libraries on which it was noticed."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        is_away = isinstance(error, OSError) or type(error).__module__.startswith(("redis.", "kombu.", "amqp."))
        if is_away and record.name.startswith(_TRANSPORT):
            record.msg, record.args = "the broker does not answer: %s", (error,)
            record.exc_info = record.exc_text = None
        return True


def configure_logging(level: int | str | None) -> None:
    """Send every logger to stderr at ``level`` (default WARNING); the loops' own lines from INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_Brief())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level or logging.WARNING)
    for name in ("penstock", "serving", "capacity"):
        logging.getLogger(name).setLevel(min(logging.INFO, root.level))
