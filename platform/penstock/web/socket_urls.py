"""The routes of websockets. Whatever is not here is refused before it is accepted."""

from __future__ import annotations

from typing import Any

from channels.routing import URLRouter
from django.urls import path, re_path

from penstock.web.tenant.playground_socket import PlaygroundSocket


async def _refused(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 4404})


websocket_urlpatterns = [
    path("t/<slug:slug>/playground/socket", PlaygroundSocket.as_asgi(), name="playground-socket"),
]
_elsewhere: Any = _refused
"""Django's types know views alone."""
application = URLRouter([*websocket_urlpatterns, re_path("", _elsewhere)])
