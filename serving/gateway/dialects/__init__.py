"""The APIs that clients speak. A dialect turns a request's body into an engine request, and reads its answer."""

from serving.gateway.dialects.base import Dialect, Parsed
from serving.gateway.dialects.chat import Chat
from serving.gateway.dialects.completions import Completions
from serving.gateway.dialects.tokenize import Tokenize

__all__ = ["DIALECTS", "Chat", "Completions", "Dialect", "Parsed", "Tokenize"]

DIALECTS: dict[str, Dialect] = {
    "/v1/chat/completions": Chat(),
    "/v1/completions": Completions(),
    "/tokenize": Tokenize(),
    "/v1/tokenize": Tokenize(),
}
"""Dialect by path."""
