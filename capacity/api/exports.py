"""Usage as a file: rows as CSV or as lines of JSON, made while they are sent."""

from __future__ import annotations

import csv
import datetime
import io
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from asgiref.sync import sync_to_async
from django.http import StreamingHttpResponse

TYPES = {"csv": "text/csv", "ndjson": "application/x-ndjson"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
"""Amounts are text, so that no digit is lost; those that are less than nothing are no formulas."""


class SlicedResponse(StreamingHttpResponse):
    """Sends each slice when it is made. Django would collect them all first where the server is asynchronous."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        slices: Iterator[bytes] = iter(self.streaming_content)  # type: ignore[arg-type]  # made from an iterator
        while (part := await sync_to_async(_next)(slices)) is not None:
            yield part


def _next(slices: Iterator[bytes]) -> bytes | None:
    """A StopIteration cannot cross into a coroutine."""
    return next(slices, None)


def export(
    slices: Iterable[list[tuple[Any, ...]]], columns: Sequence[str], *, file_format: str, name: str
) -> SlicedResponse:
    """A download named ``name`` of the rows in ``slices``; ``file_format`` is one of ``TYPES``."""
    lines = _csv(slices, columns) if file_format == "csv" else _ndjson(slices, columns)
    return SlicedResponse(
        lines,
        content_type=TYPES[file_format],
        headers={
            "Content-Disposition": f'attachment; filename="{name}.{file_format}"',
            "Cache-Control": "no-store",
        },
    )


def _ndjson(slices: Iterable[list[tuple[Any, ...]]], columns: Sequence[str]) -> Iterator[bytes]:
    for rows in slices:
        yield b"".join(msgspec.json.encode(dict(zip(columns, row, strict=True))) + b"\n" for row in rows)


def _csv(slices: Iterable[list[tuple[Any, ...]]], columns: Sequence[str]) -> Iterator[bytes]:
    yield _lines([columns])
    for rows in slices:
        yield _lines([_cell(value) for value in row] for row in rows)


def _lines(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    """A spreadsheet must show what a client sent, and never run it."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"))
    return str(value) if isinstance(value, uuid.UUID) else value
