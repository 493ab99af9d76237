"""How tests talk with the simulated engine."""

from __future__ import annotations

import json

import openai

EXACT = {"ignore_eos": True}


def client(engine, **more) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0, **more)


def events(text: str) -> list[dict | str]:
    """The data of server-sent events; every event must end with a blank line."""
    assert text.endswith("\n\n")
    lines = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
