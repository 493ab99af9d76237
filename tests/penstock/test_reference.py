"""The references in ``docs/`` are what the command line prints."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.cli.parser import build_parser
from penstock.cli.reference import commands_page

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("topic", ["commands", "settings"])
def test_a_page_is_what_is_printed(
    topic: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PENSTOCK_DATA", "PENSTOCK_HOST", "PENSTOCK_PORT", "PENSTOCK_API_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert main(["help", topic]) == 0
    printed = capsys.readouterr().out
    assert printed == (DOCS / f"{topic}.md").read_text(encoding="utf-8"), f"penstock help {topic} > docs/{topic}.md"


def test_every_command_and_argument_is_in_it() -> None:
    page, parsers = commands_page(build_parser()), [(build_parser(), "penstock")]
    while parsers:
        parser, called = parsers.pop()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                shown = {choice.dest for choice in action._choices_actions}
                parsers += [(child, f"{called} {name}") for name, child in action.choices.items() if name in shown]
            elif action.option_strings and not isinstance(action, argparse._HelpAction):
                assert action.option_strings[-1] in page
        if called != "penstock":
            assert f"`{called}`\n" in page


def test_links_between_pages_lead_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_help_without_a_topic_is_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    assert "start here" in capsys.readouterr().out


def test_errors_that_are_explained_are_errors_that_are_told() -> None:
    gateway = DOCS.parent / "serving" / "gateway"
    told = set(re.findall(r'"([a-z]+(?:_[a-z]+)*)"', "".join(p.read_text("utf-8") for p in gateway.rglob("*.py"))))
    table = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").partition("## A deployment")[0]
    rows = re.findall(r"^\| (\d{3}[^|]*) \|", table, re.M)
    explained = {code for row in rows for code in re.findall(r"`([a-z_]+)`", row)}
    assert len(explained) > 15
    assert explained - told == set()


def test_commands_in_the_pages_are_understood() -> None:
    parser = build_parser()
    for page in DOCS.glob("*.md"):
        for line in re.findall(r"^penstock [^\n]*|`(penstock [a-z][^`]*)`", page.read_text(encoding="utf-8"), re.M):
            if page.name in ("commands.md", "settings.md") or not line or "…" in line or "|" in line:
                continue
            words = line.partition("#")[0].split()[1:]
            known = parser
            for word in words:
                below = [a for a in known._actions if isinstance(a, argparse._SubParsersAction)]
                if not below:
                    break
                if word == "NOUN":
                    break
                assert word in below[0].choices, f"{page.name}: {line}"
                known = below[0].choices[word]
            for option in [word.partition("=")[0] for word in words if word.startswith("--")]:
                assert option in known._option_string_actions, f"{page.name}: {line}: {option}"
