"""The installation's secrets: made once, kept in ``<data>/secrets.json`` (mode 0600), or given by the environment."""

import base64
import json
import os
import secrets as random_secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penstock import env
from penstock.env import SettingError

VARIABLES = ("PENSTOCK_SECRET_KEY", "PENSTOCK_KEY_PEPPERS", "PENSTOCK_FIELD_KEYS")
_UNSET = "not-set-up-yet-run-penstock-up"
_FERNET_BYTES = 32


@dataclass(frozen=True)
class Secrets:
    """``key_peppers`` maps a pepper's number to its value (the highest signs); ``field_keys`` are Fernet keys."""

    django: str
    key_peppers: dict[int, str]
    field_keys: tuple[str, ...]


def secrets_path(data: Path) -> Path:
    return data / "secrets.json"


def load_secrets(data: Path) -> Secrets:
    """The secrets of the installation in ``data``; the environment goes first. Never writes. Raises SettingError.

    Before the first ``penstock up`` there are none: placeholders are returned that sign nothing of value, and
    ``penstock.checks`` refuses to serve with them.
    """
    path = secrets_path(data)
    stored = _stored(path)
    peppers = env.text("PENSTOCK_KEY_PEPPERS")
    field_keys = env.words("PENSTOCK_FIELD_KEYS")
    return Secrets(
        django=env.text("PENSTOCK_SECRET_KEY") or str(stored.get("django") or _UNSET),
        key_peppers=_peppers(_parsed(peppers), "PENSTOCK_KEY_PEPPERS")
        if peppers
        else _peppers(stored.get("key_peppers") or {"0": _UNSET}, f"key_peppers in {path}"),
        field_keys=_field_keys(field_keys, "PENSTOCK_FIELD_KEYS")
        if field_keys
        else _field_keys(stored.get("field_keys") or [_placeholder_key()], f"field_keys in {path}"),
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


def missing(secrets: Secrets) -> list[str]:
    """The variables of those secrets that are neither given nor stored: public placeholders stand for them."""
    unset = (
        secrets.django == _UNSET,
        _UNSET in secrets.key_peppers.values(),
        _placeholder_key() in secrets.field_keys,
    )
    return [name for name, is_unset in zip(VARIABLES, unset, strict=True) if is_unset]


def _placeholder_key() -> str:
    return base64.urlsafe_b64encode(b"\0" * _FERNET_BYTES).decode()


def _stored(path: Path) -> dict[str, Any]:
    try:
        stored = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(stored, dict):
        raise SettingError(f"{path} must hold a JSON object: put it back from a backup")
    return stored


def _parsed(text: str) -> Any:
    """``text`` as JSON, None where it is none. The parser's error is dropped: it carries the text, which is secret."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _peppers(value: Any, name: str) -> dict[int, str]:
    expected = f'{name} must be a JSON object of numbers and texts, for example {{"1": "a long random text"}}'
    if not isinstance(value, dict) or not all(isinstance(pepper, str) and pepper for pepper in value.values()):
        raise SettingError(expected)
    try:
        return {int(number): pepper for number, pepper in value.items()}
    except ValueError:
        raise SettingError(expected) from None


def _field_keys(value: Any, name: str) -> tuple[str, ...]:
    keys = value if isinstance(value, list) else [value]
    for number, key in enumerate(keys, start=1):
        if not _is_fernet_key(key):
            raise SettingError(
                f"{name} must be Fernet keys, 32 random bytes each in URL-safe base64: number {number} is none. "
                "`openssl rand -base64 32 | tr +/ -_` makes one"
            )
    return tuple(keys)


def _is_fernet_key(key: Any) -> bool:
    try:
        return isinstance(key, str) and len(base64.urlsafe_b64decode(key)) == _FERNET_BYTES
    except ValueError:
        return False
