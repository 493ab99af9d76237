"""The web role: ``uvicorn penstock.asgi:application``. Refuses to serve with settings that are not safe."""

import os
from typing import Any

from channels.routing import ProtocolTypeRouter
from django.conf import settings
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "penstock.settings")
# Each request has a thread of its own: a connection that it left open would serve nobody, and PostgreSQL has few.
for _database in settings.DATABASES.values():
    _database["CONN_MAX_AGE"] = 0
_django = get_asgi_application()

from penstock import status  # noqa: E402  (models can be imported only after django.setup())
from penstock.checks import refuse_unsafe_settings  # noqa: E402
from penstock.web import socket_urls  # noqa: E402

refuse_unsafe_settings("web")


async def _http(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["path"] == status.PATH:
        await status.application(scope, receive, send)
    else:
        await _django(scope, receive, send)


async def _lifespan(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


application = ProtocolTypeRouter({"http": _http, "websocket": socket_urls.application, "lifespan": _lifespan})
