"""Pages: by number for what people look through, by cursor for what only grows."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from rest_framework import exceptions
from rest_framework.pagination import CursorPagination, PageNumberPagination
from rest_framework.request import Request


class Pages(PageNumberPagination):
    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 500


class Cursor(CursorPagination):
    """Newest first, by id. Rows that come in meanwhile neither repeat nor hide any.

    A cursor is told by the caller: what does not name a place in the order raises NotFound.
    """

    page_size = 100
    page_size_query_param = "page_size"
    max_page_size = 1000
    ordering = "-id"

    def decode_cursor(self, request: Request) -> Any:
        found: Any = super().decode_cursor(request)  # the stub takes a position for a number
        if found is None or found.position is None:
            return found
        try:
            return found._replace(position=self.position(found.position))
        except (ValueError, OverflowError):
            raise exceptions.NotFound(self.invalid_cursor_message) from None

    def position(self, text: str) -> str:
        """As the database is asked for it. Raises ValueError or OverflowError for what it cannot be asked for."""
        return str(uuid.UUID(text))


class MomentCursor(Cursor):
    """For an ``ordering`` that begins with a moment."""

    def position(self, text: str) -> str:
        """In UTC: PostgreSQL reads no offset above 16 h, and near the ends of the calendar not all have a UTC."""
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("a moment without its time zone")
        return str(moment.astimezone(datetime.UTC))
