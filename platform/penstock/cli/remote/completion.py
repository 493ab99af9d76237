"""``penstock completion bash|zsh|fish``: a script that completes commands, verbs and flags, made from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple


class Word(NamedTuple):
    """A place in the command line: the words that lead there, and what may follow with its help."""

    path: tuple[str, ...]
    commands: dict[str, str]
    flags: dict[str, str]


def run(arguments: argparse.Namespace) -> int:
    from penstock.cli.parser import build_parser

    places = list(walk(build_parser()))
    print({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell](places))
    return 0


def walk(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[Word]:
    """Every place that the parser knows, parents first."""
    commands: dict[str, str] = {}
    flags: dict[str, str] = {}
    below: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            commands |= {choice.dest: choice.help or "" for choice in action._choices_actions}
            below |= {name: action.choices[name] for name in commands}
        for flag in action.option_strings:
            if flag.startswith("--"):
                flags[flag] = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
    yield Word(path, commands, flags)
    for name, child in below.items():
        yield from walk(child, (*path, name))


def bash(places: list[Word]) -> str:
    cases = "\n".join(
        f'    "{" ".join(place.path)}") words="{" ".join((*place.commands, *place.flags))}" ;;' for place in places
    )
    deepest = max(len(place.path) for place in places)
    return f"""\
# bash completion of penstock: source this, or put it into ~/.local/share/bash-completion/completions/penstock
_penstock() {{
  local words="" path="" word at
  for ((at = 1; at < COMP_CWORD && at <= {deepest}; at++)); do
    word="${{COMP_WORDS[at]}}"
    [[ "$word" == -* ]] && break
    path="${{path:+$path }}$word"
  done
  while :; do
    case "$path" in
{_indent(cases)}
    esac
    [[ -n "$words" || "$path" != *" "* ]] && break
    path="${{path% *}}"
  done
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _penstock penstock ./penstock"""


def zsh(places: list[Word]) -> str:
    return f"""\
# zsh completion of penstock: source this from ~/.zshrc
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
{bash(places)}"""


def fish(places: list[Word]) -> str:
    lines = ["# fish completion of penstock: put this into ~/.config/fish/completions/penstock.fish"]
    for place in places:
        if len(place.path) == 0:
            seen = "__fish_use_subcommand"
        elif len(place.path) == 1 and place.commands:
            verbs = " ".join(place.commands)
            seen = f"__fish_seen_subcommand_from {place.path[0]}; and not __fish_seen_subcommand_from {verbs}"
        else:
            seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in place.path)
        for name, text in place.commands.items():
            lines.append(f"complete -c penstock -f -n {_quoted(seen)} -a {name} -d {_quoted(text)}")
        for flag, text in place.flags.items():
            lines.append(f"complete -c penstock -n {_quoted(seen)} -l {flag[2:]} -d {_quoted(text)}")
    return "\n".join(lines)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _quoted(text: str) -> str:
    plain = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ")
    return f"'{plain}'"
