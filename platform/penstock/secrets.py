"""The installation's secrets: made once, kept in ``<data>/secrets.json`` (mode 0600), or given by the environment."""

import base64
import json
import os
import secrets as random_secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penstock import env

_UNSET = "not-set-up-yet-run-penstock-up"


@dataclass(frozen=True)
class Secrets:
    """``key_peppers`` maps a pepper's number to its value (the highest signs); ``field_keys`` are Fernet keys."""

    django: str
    key_peppers: dict[int, str]
    field_keys: tuple[str, ...]


def secrets_path(data: Path) -> Path:
    return data / "secrets.json"


def load_secrets(data: Path) -> Secrets:
    """The secrets of the installation in ``data``; the environment goes first. Never writes.

    Before the first ``penstock up`` there are none: placeholders are returned that sign nothing of value, and
    ``penstock.checks`` refuses to serve with them.
    """
    stored: dict[str, Any] = {}
    if secrets_path(data).exists():
        stored = json.loads(secrets_path(data).read_text(encoding="utf-8"))
    peppers = env.text("PENSTOCK_KEY_PEPPERS")
    pepper_map = json.loads(peppers) if peppers else stored.get("key_peppers") or {"0": _UNSET}
    keys = env.words("PENSTOCK_FIELD_KEYS") or stored.get("field_keys") or [_placeholder_key()]
    return Secrets(
        django=env.text("PENSTOCK_SECRET_KEY") or str(stored.get("django") or _UNSET),
        key_peppers={int(number): str(value) for number, value in pepper_map.items()},
        field_keys=tuple(str(key) for key in keys),
    )


def ensure_secrets(data: Path) -> Secrets:
    """Make the secrets of the installation if there are none, and return them."""
    path = secrets_path(data)
    if not path.exists():
        data.mkdir(parents=True, exist_ok=True)
        made = Secrets(
            django=random_secrets.token_urlsafe(48),
            key_peppers={1: random_secrets.token_urlsafe(48)},
            field_keys=(base64.urlsafe_b64encode(random_secrets.token_bytes(32)).decode(),),
        )
        temporary = path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(made), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    return load_secrets(data)


def is_placeholder(secrets: Secrets) -> bool:
    return _UNSET in (secrets.django, *secrets.key_peppers.values())


def _placeholder_key() -> str:
    return base64.urlsafe_b64encode(b"\0" * 32).decode()
