"""Settings from the environment."""

from pathlib import Path

import pytest

from penstock import env


def test_a_file_may_hold_the_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("value\n")
    monkeypatch.setenv("THING", "other")
    monkeypatch.setenv("THING_FILE", str(tmp_path / "secret"))
    assert env.text("THING") == "value"


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THING_FILE", str(tmp_path / "absent"))
    with pytest.raises(env.SettingError, match=r"THING_FILE names .*absent.*No such file"):
        env.text("THING")


@pytest.mark.parametrize(("value", "meaning"), [("yes", True), ("1", True), ("Off", False), ("false", False)])
def test_flags(value: str, meaning: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THING", value)
    assert env.flag("THING", default=not meaning) is meaning


def test_a_flag_that_is_neither_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THING", "perhaps")
    with pytest.raises(env.SettingError, match="THING must be yes or no"):
        env.flag("THING")


def test_numbers_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBER", " 12 ")
    monkeypatch.setenv("WORDS", "a, b ,,c")
    assert env.integer("NUMBER", 1) == 12
    assert env.integer("ABSENT", 7) == 7
    assert env.words("WORDS") == ["a", "b", "c"]
    monkeypatch.setenv("NUMBER", "twelve")
    with pytest.raises(env.SettingError, match="NUMBER must be a whole number"):
        env.integer("NUMBER", 1)


def test_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.networks("ABSENT") == ()
    monkeypatch.setenv("NETS", "10.0.0.0/8, 192.0.2.7")
    assert [str(network) for network in env.networks("NETS")] == ["10.0.0.0/8", "192.0.2.7/32"]
    monkeypatch.setenv("NETS", "the proxy")
    with pytest.raises(env.SettingError, match=r"NETS must list networks such as 10\.0\.0\.0/8.*'the proxy'"):
        env.networks("NETS")
