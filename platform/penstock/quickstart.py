"""``quickstart.json``: what a person or a script needs for the first request, and how far each model is.

API keys' secrets exist in clear only here (mode 0600): the database keeps their digests.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT = "Say hello in five words."


def quickstart_path(data: Path) -> Path:
    return data / "quickstart.json"


def read(data: Path) -> dict[str, Any]:
    """What an earlier start wrote, or an empty dict."""
    try:
        content = json.loads(quickstart_path(data).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write(data: Path, content: Mapping[str, Any]) -> None:
    """Replace the file at once, readable by its owner only."""
    path = quickstart_path(data)
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(content, file, indent=2)
        file.write("\n")
    os.replace(temporary, path)


@dataclass(frozen=True)
class Model:
    """One deployment as the status endpoint tells it. ``share``: progress of the present step, 0 to 1, or None."""

    name: str
    engine: str
    label: str
    state: str
    step: str = ""
    detail: str = ""
    share: float | None = None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Model":
        share = raw.get("share")
        return cls(
            name=str(raw["name"]),
            engine=str(raw["engine"]),
            label=str(raw.get("label") or ""),
            state=str(raw["state"]),
            step=str(raw.get("step") or ""),
            detail=str(raw.get("detail") or ""),
            share=float(share) if share is not None else None,
        )

    @property
    def title(self) -> str:
        return f"{self.name} ({self.label or self.engine})"

    def line(self) -> str:
        """Where the model is, for people: ``demo-tiny (vllm): environment 42 % installing torch``."""
        if self.state == "ready":
            return f"{self.title}: ready"
        share = f"{self.share * 100:.0f} %" if self.share is not None else ""
        words = ", ".join(part for part in (self.step, self.detail) if part)
        colon = ":" if words and self.state in ("failed", "pending") else ""
        return " ".join(part for part in (f"{self.title}: {self.state}{colon}", share, words) if part)

    @property
    def milestone(self) -> tuple[str, str, str, int]:
        """What has to move for a line of its own: state, step, the reason of a failure, or a tenth of a step."""
        reason = self.detail if self.state in ("failed", "pending") else ""
        return self.state, self.step, reason, int((self.share or 0.0) * 10)


def merge(
    previous: Mapping[str, Any],
    *,
    seeded: Sequence[Mapping[str, str]],
    base_url: str,
    console_url: str,
    sign_in_url: str,
    is_demo: bool,
) -> dict[str, Any]:
    """The content of the file after a start: keys made now, or those that an earlier start kept."""
    tenants = [dict(tenant) for tenant in seeded] or list(previous.get("tenants", []))
    return {
        "base_url": base_url,
        "console_url": console_url,
        "sign_in_url": sign_in_url,
        "demo": is_demo or bool(previous.get("demo")),
        "tenants": tenants,
        "models": list(previous.get("models", [])),
    }


def with_models(content: Mapping[str, Any], models: Sequence[Model]) -> dict[str, Any]:
    """``content`` with the models' present states."""
    rows = [
        {
            "name": model.name,
            "engine": model.engine,
            "state": model.state,
            "label": model.label,
            "detail": ", ".join(part for part in (model.step, model.detail) if part),
        }
        for model in models
    ]
    return {**content, "models": rows}


def curl_line(base_url: str, api_key: str, model: str) -> str:
    """A command that streams at once, to be pasted as it is."""
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": PROMPT}]})
    return f"curl -N {base_url}/chat/completions -H 'Authorization: Bearer {api_key}' -d '{body}'"


def change_line(before: Model | None, now: Model) -> str:
    """What to print when a model moved; empty when nothing a person cares about has changed."""
    if before is not None and before.milestone == now.milestone:
        return ""
    if now.state == "failed":
        retry = "Retry: the button on its page in the console, or restart `penstock up`. The rest goes on serving."
        return f"{now.line()}\n{retry}"
    return now.line()
