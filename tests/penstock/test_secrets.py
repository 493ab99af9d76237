"""The installation's secrets."""

import base64
import json
import traceback
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from penstock.env import SettingError
from penstock.secrets import VARIABLES, ensure_secrets, load_secrets, missing, secrets_path


def test_they_are_made_once_and_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = ensure_secrets(data)
    assert missing(made) == []
    assert ensure_secrets(data) == made == load_secrets(data)
    assert secrets_path(data).stat().st_mode & 0o777 == 0o600
    assert ensure_secrets(tmp_path / "other").django != made.django
    assert Fernet(made.field_keys[0]).decrypt(Fernet(made.field_keys[0]).encrypt(b"x")) == b"x"


def test_before_that_there_are_placeholders_and_nothing_is_written(tmp_path: Path) -> None:
    assert missing(load_secrets(tmp_path)) == list(VARIABLES)
    assert list(tmp_path.iterdir()) == []


def test_the_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_secrets(tmp_path)
    monkeypatch.setenv("PENSTOCK_SECRET_KEY", "from the environment")
    monkeypatch.setenv("PENSTOCK_KEY_PEPPERS", json.dumps({"3": "third", "1": "first"}))
    loaded = load_secrets(tmp_path)
    assert loaded.django == "from the environment"
    assert loaded.key_peppers == {3: "third", 1: "first"}
    assert loaded.field_keys == ensure_secrets(tmp_path).field_keys


def test_each_secret_that_is_not_given_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_SECRET_KEY", "from the environment")
    monkeypatch.setenv("PENSTOCK_KEY_PEPPERS", '{"1": "first"}')
    assert missing(load_secrets(tmp_path)) == ["PENSTOCK_FIELD_KEYS"]
    monkeypatch.setenv("PENSTOCK_FIELD_KEYS", Fernet.generate_key().decode())
    assert missing(load_secrets(tmp_path)) == []


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PENSTOCK_KEY_PEPPERS", "hush-hush", "PENSTOCK_KEY_PEPPERS must be a JSON object"),
        ("PENSTOCK_KEY_PEPPERS", '["hush-hush"]', "PENSTOCK_KEY_PEPPERS must be a JSON object"),
        ("PENSTOCK_KEY_PEPPERS", '{"first": "hush-hush"}', "PENSTOCK_KEY_PEPPERS must be a JSON object"),
        ("PENSTOCK_KEY_PEPPERS", '{"1": null, "2": "hush-hush"}', "PENSTOCK_KEY_PEPPERS must be a JSON object"),
        ("PENSTOCK_KEY_PEPPERS", '{"1": "", "2": "hush-hush"}', "PENSTOCK_KEY_PEPPERS must be a JSON object"),
        ("PENSTOCK_FIELD_KEYS", "hush-hush", "PENSTOCK_FIELD_KEYS must be Fernet keys"),
        ("PENSTOCK_FIELD_KEYS", f"{base64.urlsafe_b64encode(b'k' * 32).decode()},hush-hush", "number 2 is none"),
    ],
)
def test_a_malformed_secret_is_refused_with_the_expected_shape_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingError, match=expected) as caught:
        load_secrets(tmp_path)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("{", "must hold a JSON object"),
        ("[]", "must hold a JSON object"),
        ('{"key_peppers": "x"}', "key_peppers in .*secrets.json must be"),
        ('{"field_keys": ["x"]}', "field_keys in .*secrets.json must be Fernet keys"),
    ],
)
def test_a_broken_secrets_file_is_named(tmp_path: Path, stored: str, expected: str) -> None:
    secrets_path(tmp_path).write_text(stored)
    with pytest.raises(SettingError, match=expected):
        load_secrets(tmp_path)


def test_a_secrets_file_of_somebody_else_is_named(tmp_path: Path) -> None:
    secrets_path(tmp_path).mkdir()
    with pytest.raises(SettingError, match="cannot be read: Is a directory"):
        load_secrets(tmp_path)
