"""How tests talk with the simulated engine."""

from __future__ import annotations

import json

EXACT = {"ignore_eos": True}


def events(text: str) -> list[dict | str]:
    """The data of server-sent events; every event must end with a blank line."""
    assert text.endswith("\n\n")
    lines = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
