"""Request ids: the server's own, made at the door, and the client's, echoed when it is harmless."""

from __future__ import annotations

import re

import uuid_utils

_CLIENT_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,200}")


def new_request_id() -> str:
    """A UUIDv7: sortable by time, the primary key of the usage record."""
    return str(uuid_utils.uuid7())


def client_request_id(value: bytes) -> str:
    """The client's ``x-request-id`` when it is 1 to 200 harmless characters, else the empty string."""
    return value.decode("ascii") if _CLIENT_ID.fullmatch(value) else ""
