"""Log lines of the web role and of Django's commands: one line per event on stderr; the launcher prefixes and files it.

Never in it: the link of a sign-in or an invitation, which lets in whoever has it, and the way through the libraries on
which a database or state that is away, or a request that is none, was noticed.
"""

import copy
import logging
import re
from http import HTTPStatus

import redis.exceptions
from django.core.exceptions import SuspiciousOperation
from django.db import InterfaceError, OperationalError

_LINK = re.compile(r"((?:/|%2F)(?:sign-in(?:/|%2F)link|invitations)(?:/|%2F))[\w%-]+", re.IGNORECASE)
"""Also quoted, as the address to go to next."""
_AWAY = (OperationalError, InterfaceError, redis.exceptions.RedisError, OSError)


class LineFormatter(logging.Formatter):
    """As the loops' lines, so that the launcher knows their level. The traceback of a fault of ours follows."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        line = copy.copy(record)
        line.msg, line.args = record.getMessage(), ()
        if identifier := getattr(getattr(record, "request", None), "META", {}).get("REQUEST_ID"):
            line.msg += f" [request {identifier}]"
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, _AWAY):
            line.msg += f": {' '.join(str(error).split())} ({type(error).__name__})"
            line.exc_info = line.exc_text = None
        elif isinstance(error, SuspiciousOperation):  # of the visitor's making, and the message says all of it
            line.exc_info = line.exc_text = None
        return _LINK.sub(r"\1(hidden)", super().format(line))


class NewsFilter(logging.Filter):
    """Leaves an answer 503 out: only the health check gives it, which is asked each second and says itself what is."""

    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(record, "status_code", None) != HTTPStatus.SERVICE_UNAVAILABLE
