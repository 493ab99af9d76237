"""The arguments of ``penstock``."""

import argparse
from pathlib import Path
from typing import Any

from penstock import env, paths
from penstock.cli.remote.arguments import (
    add_calibrate,
    add_chat,
    add_completion,
    add_deploy,
    add_manifests,
    add_nouns,
    add_selling,
    add_session,
)
from penstock.roles import ROLES

_DESCRIPTION = "Penstock sells, serves and watches LLM inference capacity in model units."
_EPILOG = """\
start here:
  penstock up              run everything in the foreground, with a demo on an empty database
  penstock doctor          can this machine run it, and what to do if not

Settings come from the environment (docs/settings.md): PENSTOCK_DATA, DATABASE_URL, REDIS_URL and others.
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Defaults that come from the environment may raise SettingError."""
    parser = argparse.ArgumentParser(
        prog="penstock",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_up(commands.add_parser("up", help="run all roles in the foreground; Ctrl-C stops everything"))
    _add_doctor(commands.add_parser("doctor", help="look at this machine and say what to do"))
    _add_setup(commands.add_parser("setup", help="migrate, make secrets and (asked for) the demo, without starting"))
    _add_join(commands.add_parser("join", help="make this machine a host of an installation elsewhere"))
    _add_backup(commands)
    _add_test(commands.add_parser("test", help="run the tests; what follows goes to pytest", allow_abbrev=False))
    add_session(commands)
    add_deploy(commands)
    add_selling(commands)
    add_calibrate(commands)
    add_manifests(commands)
    add_nouns(commands)
    add_chat(commands)
    add_completion(commands)
    commands.add_parser("manage", help="Django's commands: penstock manage help", add_help=False)
    commands.add_parser("version", help="print the version")
    help_ = commands.add_parser("help", help="print this help, or a whole reference")
    help_.add_argument("topic", nargs="?", choices=("commands", "settings"), help="a reference, in Markdown")
    return parser


def port(text: str) -> int:
    """A TCP port number."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535")
    return number


def positive(text: str) -> int:
    """A whole number from 1 on."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return number


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0")
    return number


def _add_place(parser: argparse.ArgumentParser) -> None:
    default = Path(env.text("PENSTOCK_DATA") or paths.default_data())
    parser.add_argument(
        "--data", type=Path, default=default, metavar="DIR", help="data folder (PENSTOCK_DATA; default: %(default)s)"
    )


def _add_listen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        default=env.text("PENSTOCK_HOST") or "127.0.0.1",
        help="address that web and gateway listen on (PENSTOCK_HOST; default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=port, default=env.integer("PENSTOCK_PORT", 8000), help="the console (default: %(default)s)"
    )
    parser.add_argument(
        "--api-port",
        type=port,
        default=env.integer("PENSTOCK_API_PORT", 8080),
        metavar="PORT",
        help="the gateway, /v1 (default: %(default)s)",
    )


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        choices=("auto", "vllm", "simulated"),
        default="auto",
        help="the demo's engines: auto = simulated, and real vLLM where it can run; simulated = without vLLM; "
        "vllm = refuse to start without it (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="what the demo's vLLM serves: a local folder or a hub id (default: a tiny model built on the spot)",
    )


def _add_up(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Start state, gateways, web, loops and the host agent, keep them running, and stop them in order on Ctrl-C. "
        "The first start makes secrets, migrates and, on an empty database, sets up a demo; later starts keep it all."
    )
    _add_place(parser)
    _add_listen(parser)
    parser.add_argument(
        "--gateways", type=positive, default=1, metavar="N", help="gateway processes that share the API port"
    )
    _add_demo(parser)
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show every line of the roles, not only warnings (log/ has all)"
    )
    parser.add_argument("--no-demo", action="store_true", help="set up an empty installation with one operator")
    parser.add_argument(
        "--allow-remote-demo",
        action="store_true",
        help="let the demo, with its known tenants, listen on more than this machine",
    )
    parser.add_argument(
        "--stop-within",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="bound on an orderly stop, engines included (default: %(default)g)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="start, get one streamed answer and its usage row from each demo deployment, stop; the exit code says "
        "whether all of it held",
    )
    parser.add_argument(
        "--check-timeout",
        type=seconds,
        default=900.0,
        metavar="SECONDS",
        help="how long --check waits for a deployment to be ready (default: %(default)g)",
    )
    parser.add_argument(
        "--only", choices=ROLES, metavar="ROLE", help=f"become this one role (systemd, containers): {', '.join(ROLES)}"
    )
    parser.add_argument(
        "--instance", type=positive, default=1, metavar="N", help="with --only gateway: its number on this machine"
    )


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = "Look at the machine. The exit code is 0 unless something keeps Penstock from running."
    _add_place(parser)
    _add_listen(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def _add_setup(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What `up` does before it starts: make secrets, migrate, enrol this host's agent. Safe to repeat; run it after "
        "each upgrade where systemd or containers run the roles."
    )
    _add_place(parser)
    parser.add_argument("--no-host", action="store_true", help="no engines on this machine: do not enrol it")
    parser.add_argument("--demo", action="store_true", help="set the demo up when the database is empty")
    parser.add_argument("--engine", choices=("vllm", "simulated"), default="simulated", help="the demo's engines")
    parser.add_argument("--model", metavar="PATH_OR_ID", help="what the demo's vLLM serves")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON, secrets of a new demo included")


def _add_join(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Enrol this machine with the token of a join command, which the console's page of hosts makes "
        "(PENSTOCK_ENROLMENT_TOKEN, or standard input). Then start its agent: penstock up --only agent."
    )
    parser.add_argument("url", metavar="URL", help="the console's address, as this machine reaches it")
    parser.add_argument("--name", default="", help="of the host (default: this machine's)")
    _add_place(parser)


def _add_backup(commands: Any) -> None:
    backup = commands.add_parser(
        "backup",
        help="write one file with all that cannot be made again",
        description="Write database, secrets and journals of an installation to one file, while it runs. "
        "For PostgreSQL it needs pg_dump.",
    )
    backup.add_argument("-o", "--output", type=Path, metavar="FILE", help="(penstock-<time>.tar.gz in this folder)")
    restore = commands.add_parser(
        "restore",
        help="make an installation from a backup",
        description="Put a backup into an empty data folder (and, for PostgreSQL, into the empty database that "
        "DATABASE_URL names). 'penstock up' then migrates and goes on where the backup was made.",
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="what 'penstock backup' wrote")
    restore.add_argument("--check", action="store_true", help="tell what is in it, and restore nothing")
    for parser, act in ((backup, "backup"), (restore, "restore")):
        parser.set_defaults(command="backup", act=act)
        parser.add_argument("--json", action="store_true", help="JSON for programs")
        _add_place(parser)


def _add_test(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run all tests; those that use the database run on SQLite and on PostgreSQL."
    parser.add_argument(
        "--database",
        choices=("sqlite", "postgresql", "both"),
        help="keep to one database (default: both, or sqlite when pytest is told which tests)",
    )
    parser.add_argument(
        "--allow-skip",
        action="append",
        default=[],
        metavar="REGEX",
        help="under CI=true: a reason for which a test may be skipped (repeatable; none by default)",
    )
