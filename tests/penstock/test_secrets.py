"""The installation's secrets."""

import json
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from penstock.secrets import ensure_secrets, is_placeholder, load_secrets, secrets_path


def test_they_are_made_once_and_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = ensure_secrets(data)
    assert not is_placeholder(made)
    assert ensure_secrets(data) == made == load_secrets(data)
    assert secrets_path(data).stat().st_mode & 0o777 == 0o600
    assert ensure_secrets(tmp_path / "other").django != made.django
    assert Fernet(made.field_keys[0]).decrypt(Fernet(made.field_keys[0]).encrypt(b"x")) == b"x"


def test_before_that_there_are_placeholders_and_nothing_is_written(tmp_path: Path) -> None:
    assert is_placeholder(load_secrets(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_secrets(tmp_path)
    monkeypatch.setenv("PENSTOCK_SECRET_KEY", "from the environment")
    monkeypatch.setenv("PENSTOCK_KEY_PEPPERS", json.dumps({"3": "third", "1": "first"}))
    loaded = load_secrets(tmp_path)
    assert loaded.django == "from the environment"
    assert loaded.key_peppers == {3: "third", 1: "first"}
    assert loaded.field_keys == ensure_secrets(tmp_path).field_keys
