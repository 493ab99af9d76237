"""The APIs that clients speak. A dialect turns a request's body into an engine request, and reads its answer."""

from serving.gateway.dialects.base import Answer, Dialect, Parsed
from serving.gateway.dialects.chat import Chat
from serving.gateway.dialects.completions import Completions
from serving.gateway.dialects.embeddings import Embeddings
from serving.gateway.dialects.invocations import Invocations
from serving.gateway.dialects.messages import CountTokens, Messages
from serving.gateway.dialects.responses import Responses
from serving.gateway.dialects.scoring import Rerank, Score
from serving.gateway.dialects.tokenize import Tokenize

__all__ = [
    "DIALECTS",
    "Answer",
    "Chat",
    "Completions",
    "CountTokens",
    "Dialect",
    "Embeddings",
    "Invocations",
    "Messages",
    "Parsed",
    "Rerank",
    "Responses",
    "Score",
    "Tokenize",
    "find",
]

DIALECTS: dict[str, Dialect] = {
    "/v1/chat/completions": Chat(),
    "/v1/completions": Completions(),
    "/v1/embeddings": Embeddings(),
    "/v1/messages": Messages(),
    "/v1/messages/count_tokens": CountTokens(),
    "/v1/responses": Responses(),
    "/v1/rerank": Rerank(),
    "/v2/rerank": Rerank(),
    "/rerank": Rerank(),
    "/v1/score": Score(),
    "/score": Score(),
    "/tokenize": Tokenize(),
    "/v1/tokenize": Tokenize(),
    "/invocations": Invocations(),
}
"""Dialect by path."""

_INVOCATIONS = "/invocations"
_ENDPOINTS = "/serving-endpoints/"


def find(path: str) -> Dialect | None:
    """The dialect of a path that is not in ``DIALECTS``: one that names its model."""
    if path.startswith(f"{_INVOCATIONS}/"):
        return Invocations(path[len(_INVOCATIONS) + 1 :])
    if path.startswith(_ENDPOINTS) and path.endswith(_INVOCATIONS):
        return Invocations(path[len(_ENDPOINTS) : -len(_INVOCATIONS)])
    return None
