"""The console script: ``penstock``. Nothing here imports Django; a command imports what it needs when it runs."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from penstock.cli.parser import build_parser
from penstock.env import SettingError


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``penstock`` with ``argv`` (default: the process's own) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["manage"]:
        return manage(words[1:])
    try:
        return _run(words)
    except SettingError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    parser = build_parser()
    if words[:1] == ["test"]:
        # pytest's own options follow, in any order.
        arguments, rest = parser.parse_known_args(words)
        arguments.pytest_arguments = rest
    else:
        arguments = parser.parse_args(words)
    if arguments.command is None:
        parser.print_help()
        return 0
    return _command("reference" if arguments.command == "help" else arguments.command)(arguments)


def manage(arguments: Sequence[str], *, program: str = "penstock manage") -> int:
    """Django's command line."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "penstock.settings")
    from django.core.management import ManagementUtility  # 0.2 s that the other commands need not pay

    utility = ManagementUtility([program, *arguments])
    utility.prog_name = program
    utility.execute()
    return 0


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    # Imported by name when it runs: `version` and `doctor` stay fast.
    run: Callable[[argparse.Namespace], int] = import_module(f"penstock.cli.{name}").run
    return run
