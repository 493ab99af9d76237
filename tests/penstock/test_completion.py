"""The completion scripts, as shells run them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from penstock.cli import main

_ASK = """
source /dev/stdin
COMP_WORDS=({words}) COMP_CWORD={at}
_penstock
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def complete(text: str, *words: str) -> set[str]:
    """What bash offers for the last of ``words``."""
    quoted = " ".join(f"'{word}'" for word in ("penstock", *words))
    ask = _ASK.format(words=quoted, at=len(words))
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run([bash, "-c", ask], input=text, capture_output=True, text=True, timeout=20, check=True)
    return set(done.stdout.split())


def test_bash_completes_commands_verbs_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    text = script("bash", capsys)
    assert {"up", "doctor", "keys", "tenants", "login", "completion"} <= complete(text, "")
    assert complete(text, "ke") == {"keys"}
    assert {"list", "show", "create", "set", "rotate", "revoke"} <= complete(text, "keys", "")
    assert complete(text, "keys", "create", "--sc") == {"--scopes"}
    assert complete(text, "keys", "revoke", "ci", "--y") == {"--yes"}
    assert complete(text, "up", "--gate") == {"--gateways"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_get_the_same_words(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert "scopes" in text
    assert "penstock" in text
    program = shutil.which(shell)
    if program:
        subprocess.run([program, "-n"], input=text, text=True, check=True, timeout=20)
