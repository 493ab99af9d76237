"""How much there is in a body, told before any of it is decoded: decoding makes an object of every value.

A body of megabytes that holds nothing but empty objects would keep the gateway's one thread for seconds.
"""

from __future__ import annotations

from serving.gateway import errors

MAX_OPENINGS = 100_000
"""Objects and arrays in one body, whatever else it may hold."""

_MARKS = b",[{"
_OPENINGS = b"[{"
_NOT_MARKS = bytes(set(range(256)) - set(_MARKS))
_NOT_OPENINGS = bytes(set(range(256)) - set(_OPENINGS))
_MAX_ESCAPES = 2_000_000
"""Escaped quotes and backslashes that are worth looking into; more than in a million tokens of source code."""


def require_readable(body: bytes, most: int) -> None:
    """Raises ApiError 400 for a body that is no UTF-8, or that holds more than about ``most`` values."""
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise errors.bad_request(
                f"The body is not valid UTF-8: see byte {error.start}.", code="invalid_json"
            ) from None
    if not is_within(body, most):
        raise errors.bad_request(
            f"The body holds too many values: at most {most:,} list items and fields, and {MAX_OPENINGS:,} lists and "
            "objects, are allowed in one request. Send fewer and longer parts, or several requests.",
            code="too_many_values",
        )


def is_within(body: bytes, most: int) -> bool:
    """Whether commas and opening brackets outside of strings are at most ``most``, the brackets ``MAX_OPENINGS``."""
    if _is_few(body, most):
        return True
    # Texts have commas, too: those do not count. Without escapes, every second piece between quotes is a string.
    if body.count(b"\\") > _MAX_ESCAPES:
        return False
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A string stands behind a mark or a colon that a mark precedes: more quotes than this mean more marks.
    quotes = 4 * most + 4
    pieces = plain.split(b'"', quotes)
    return len(pieces) <= quotes and _is_few(b"".join(pieces[::2]), most)


def _is_few(body: bytes, most: int) -> bool:
    marks = body.translate(None, _NOT_MARKS)
    return len(marks) <= most and len(marks.translate(None, _NOT_OPENINGS)) <= MAX_OPENINGS
