"""Settings from the environment, typed. ``NAME_FILE`` may name a file that holds the value of ``NAME``."""

import os
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path


class SettingError(ValueError):
    """A variable of the environment cannot be used; the message says which and what is expected."""


def text(name: str, default: str = "") -> str:
    """The value of ``name``, or the contents of the file that ``name``_FILE names. Raises SettingError."""
    file = os.environ.get(f"{name}_FILE")
    if file:
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingError(f"{name}_FILE names {file}, which cannot be read: {error.strerror}") from error
    return os.environ.get(name, default)


def flag(name: str, default: bool = False) -> bool:
    """``name`` as a truth value: 1/true/yes/on or 0/false/no/off. Raises SettingError."""
    value = text(name).strip().lower()
    if value == "":
        return default
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    raise SettingError(f"{name} must be yes or no, not {value!r}")


def integer(name: str, default: int) -> int:
    """``name`` as a whole number. Raises SettingError."""
    value = text(name).strip()
    try:
        return int(value) if value else default
    except ValueError as error:
        raise SettingError(f"{name} must be a whole number, not {value!r}") from error


def words(name: str, default: str = "") -> list[str]:
    """``name`` as a list, separated by commas."""
    return [part.strip() for part in text(name, default).split(",") if part.strip()]


def networks(name: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """``name`` as networks in CIDR form, separated by commas. Raises SettingError."""
    try:
        return tuple(ip_network(part, strict=False) for part in words(name))
    except ValueError as error:
        raise SettingError(f"{name} must list networks such as 10.0.0.0/8, separated by commas: {error}") from error
