"""The web role as it is started takes websockets, and turns strangers away at the handshake."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from tests.web.process import web_role


@pytest.mark.parametrize("path", ["/t/northwind/playground/socket", "/elsewhere", "/t/northwind/playground/"])
async def test_a_stranger_is_refused_before_the_socket_opens(tmp_path: Path, path: str) -> None:
    with web_role(tmp_path) as (base, log):
        async with aiohttp.ClientSession() as session:
            for origin in (base, "https://evil.example"):
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await session.ws_connect(f"{base.replace('http', 'ws', 1)}{path}", headers={"Origin": origin})
                assert refused.value.status == 403
        assert "Traceback" not in log.read_text()
