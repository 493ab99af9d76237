"""Which installation the commands speak to, and as whom."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


class NotSignedIn(Exception):
    """The message says how to sign in."""


@dataclass(frozen=True)
class Profile:
    """``url`` of the console without a slash at its end; ``token`` a person's access token or an API key."""

    url: str
    token: str


def place() -> Path:
    """The file that ``penstock login`` writes, mode 0600."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "penstock" / "credentials.json"


def load() -> Profile:
    """From ``PENSTOCK_URL`` and ``PENSTOCK_TOKEN``, else from the file. Raises NotSignedIn."""
    url, token = os.environ.get("PENSTOCK_URL", ""), os.environ.get("PENSTOCK_TOKEN", "")
    if url and token:
        return Profile(url.rstrip("/"), token)
    try:
        kept = json.loads(place().read_text(encoding="utf-8"))
        found = Profile(str(kept["url"]), str(kept["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise NotSignedIn(
            "not signed in: run 'penstock login URL', or set PENSTOCK_URL and PENSTOCK_TOKEN. "
            "Access tokens are made in the console."
        ) from None
    if url and url.rstrip("/") != found.url:
        # A token is for the installation that made it, and for no other.
        raise NotSignedIn(f"the token that is kept is for {found.url}, not for {url}: set PENSTOCK_TOKEN, too")
    return Profile(found.url, token or found.token)


def save(profile: Profile) -> Path:
    path = place()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(profile), file)
    fresh.replace(path)
    return path


def forget() -> bool:
    """Remove the file. Returns False if there was none."""
    try:
        place().unlink()
    except FileNotFoundError:
        return False
    return True
