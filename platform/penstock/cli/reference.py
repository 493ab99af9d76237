"""``penstock help [commands|settings]``: the references, as their pages in ``docs/`` have them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from penstock.reference import page as settings_page

_HEAD = (
    "# Commands\n"
    "\n"
    "Every command with its arguments, as `penstock help commands` prints it. How they go together: "
    "[command-line.md](command-line.md); installing and operating: [install.md](install.md), "
    "[operating.md](operating.md).\n"
)


def run(arguments: argparse.Namespace) -> int:
    from penstock.cli.parser import build_parser

    if arguments.topic is None:
        build_parser().print_help()
    else:
        print(settings_page() if arguments.topic == "settings" else commands_page(build_parser()), end="")
    return 0


def commands_page(parser: argparse.ArgumentParser) -> str:
    """Every command of ``parser``, in Markdown."""
    return _HEAD + "".join(_sections(parser, "penstock", 2))


def _sections(parser: argparse.ArgumentParser, called: str, depth: int) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest.partition(" ")[0]: choice.help or "" for choice in action._choices_actions}
        for name, text in helps.items():
            child: argparse.ArgumentParser = action.choices[name]
            rows = list(_rows(child))
            yield f"\n{'#' * depth} `{called} {name}`\n{_capital(child.description or text)}\n"
            if rows:
                yield "\n| argument | what |\n| --- | --- |\n" + "\n".join(rows) + "\n"
            yield from _sections(child, f"{called} {name}", depth + 1)


def _rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        words = ", ".join(action.option_strings)
        value = "" if action.nargs == 0 else _value(action)
        text = (action.help or "").replace("%(default)s", _default(action)).replace("%(default)g", _default(action))
        required = " (needed)" if action.required and action.option_strings else ""
        called = _escaped(" ".join(part for part in (words, value) if part))
        yield f"| `{called}` | {_escaped(text.replace('%%', '%'))}{required} |"


def _value(action: argparse.Action) -> str:
    if action.metavar is not None:
        return str(action.metavar)
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.dest.upper()


def _default(action: argparse.Action) -> str:
    """What somebody gets who sets nothing, wherever this is printed."""
    if action.dest == "data":
        return "`.data` of a checkout, else `~/.local/share/penstock`"
    return f"{action.default:g}" if isinstance(action.default, float) else str(action.default)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ":")) else ".")
