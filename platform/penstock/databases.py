"""The database settings: SQLite in the data folder, or PostgreSQL by ``DATABASE_URL``."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from penstock.env import SettingError

# Without IMMEDIATE a transaction that reads and then writes fails at once with "database is locked".
SQLITE_OPTIONS: dict[str, Any] = {
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
    "init_command": (
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA mmap_size=134217728; "
        "PRAGMA journal_size_limit=27103364; PRAGMA cache_size=2000;"
    ),
}


def database_settings(url: str, data: Path) -> dict[str, Any]:
    """Django's DATABASES entry for ``url`` (``sqlite:///path``, ``postgres://user:password@host:port/name``).

    An empty ``url`` means SQLite in ``data``. A PostgreSQL socket folder may be given as ``?host=/run/postgresql``.
    Raises SettingError for another scheme.
    """
    if not url:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": data / "penstock.sqlite3", "OPTIONS": SQLITE_OPTIONS}
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": unquote(parts.path), "OPTIONS": SQLITE_OPTIONS}
    if parts.scheme not in ("postgres", "postgresql"):
        raise SettingError(f"DATABASE_URL must start with sqlite:// or postgres://, not {parts.scheme}://")
    options = dict(parse_qsl(parts.query))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": options.pop("host", "") or parts.hostname or "",
        "PORT": str(parts.port or ""),
        # For threads that live on, as the loops have; ``penstock.asgi`` keeps none.
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": options,
    }
