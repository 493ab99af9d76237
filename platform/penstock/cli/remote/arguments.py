"""The arguments of the nouns, from their table."""

from __future__ import annotations

import argparse
import datetime
import json
from typing import Any

from penstock.cli.remote import nouns_of_operators, nouns_of_reservations, nouns_of_tenants
from penstock.cli.remote.manifest_kinds import SECTIONS
from penstock.cli.remote.resources import Field, Resource, Verb

RESOURCES = (
    nouns_of_tenants.TENANTS,
    nouns_of_tenants.MEMBERS,
    nouns_of_tenants.INVITATIONS,
    nouns_of_tenants.KEYS,
    nouns_of_tenants.LIMITS,
    nouns_of_tenants.USAGE,
    nouns_of_tenants.ANCHORS,
    nouns_of_tenants.GUARANTEES,
    nouns_of_tenants.INVOICES,
    nouns_of_tenants.AUDIT,
    nouns_of_operators.HOSTS,
    nouns_of_operators.HARDWARE_TYPES,
    nouns_of_operators.ENROLMENT_TOKENS,
    nouns_of_operators.ACCELERATORS,
    nouns_of_operators.MODELS,
    nouns_of_operators.POOLS,
    nouns_of_reservations.RESERVATIONS,
    nouns_of_operators.DEPLOYMENTS,
    nouns_of_operators.REPLICAS,
    nouns_of_operators.CALIBRATIONS,
    nouns_of_operators.INCIDENTS,
    nouns_of_operators.USERS,
)


def add_nouns(commands: Any) -> None:
    """``commands``: argparse's sub-parsers of ``penstock``."""
    for resource in RESOURCES:
        aliases = (resource.alias,) if resource.alias else ()
        description = _capital(resource.help) + "."
        noun = commands.add_parser(resource.noun, aliases=aliases, help=resource.help, description=description)
        noun.set_defaults(resource=resource, command="remote.nouns")
        verbs = noun.add_subparsers(dest="verb_name", metavar="VERB", title="verbs", required=True)
        _add_list(verbs.add_parser("list", help="show all"), resource)
        if resource.has_rows:
            show = verbs.add_parser("show", help="show one")
            _common(show, resource)
            _row(show, resource)
        for verb in resource.verbs:
            _add_verb(
                verbs.add_parser(verb.name, help=verb.help, description=_capital(verb.help) + "."), resource, verb
            )
        if resource in (nouns_of_tenants.USAGE, nouns_of_tenants.INVOICES):
            _add_verify(verbs)
        if resource is nouns_of_tenants.INVOICES:
            _add_invoices(verbs)


def add_session(commands: Any) -> None:
    """``login``, ``logout`` and ``whoami``."""
    login = commands.add_parser("login", help="speak to an installation from now on", description="Keep who you are.")
    login.add_argument("url", metavar="URL", help="the console's address")
    commands.add_parser("logout", help="forget the installation and the token")
    whoami = commands.add_parser("whoami", help="who you are there, and what you may do")
    whoami.add_argument("--json", action="store_true", help="JSON for programs")
    for name in ("login", "logout", "whoami"):
        commands.choices[name].set_defaults(command="remote.login", act=name)


def add_chat(commands: Any) -> None:
    """``chat``."""
    chat = commands.add_parser(
        "chat",
        help="talk to a model, streaming",
        description="Talk to a model: one question as arguments, or line by line. /bye ends it.",
    )
    chat.set_defaults(command="remote.chat")
    chat.add_argument("model", metavar="MODEL", help="its served name")
    chat.add_argument("question", nargs="*", metavar="WORDS", help="ask this and leave")
    chat.add_argument("--tenant", default="", help="slug or id (PENSTOCK_TENANT; else your only one)")
    chat.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    chat.add_argument("--max-tokens", type=int, metavar="N", help="at most so many tokens an answer")


def add_manifests(commands: Any) -> None:
    """``apply`` and ``export``."""
    apply = commands.add_parser(
        "apply",
        help="make an installation as a file says",
        description="Make and change what FILE names. What it does not name stays as it is; nothing is removed.",
    )
    apply.set_defaults(command="remote.apply", act="apply")
    apply.add_argument("-f", "--file", required=True, metavar="FILE", help="YAML or JSON; - reads standard input")
    apply.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    apply.add_argument("--json", action="store_true", help="JSON for programs")
    export = commands.add_parser(
        "export",
        help="print an installation as a file for apply",
        description="Print what there is as YAML that 'penstock apply' takes. Secrets are not in it.",
    )
    export.set_defaults(command="remote.apply", act="export")
    export.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all that you may see)")
    export.add_argument("--json", action="store_true", help="JSON instead of YAML")


def add_deploy(commands: Any) -> None:
    """``deploy`` and ``logs``."""
    deploy = commands.add_parser(
        "deploy",
        help="serve a model, and show its states until it does",
        description="Serve a pool or a model. What is missing is made: a hub id or folder becomes a model with a pool. "
        "A deployment of that name that is there gets a new revision where something differs.",
    )
    deploy.set_defaults(command="remote.deploy")
    deploy.add_argument("source", metavar="MODEL", help="pool, model, hub id (org/name) or folder on the hosts (/path)")
    deploy.add_argument("--json", action="store_true", help="JSON for programs")
    deploy.add_argument("--name", default="", help="what clients send as model (the pool's slug)")
    for field in (
        *nouns_of_operators.REVISION_FIELDS,
        *nouns_of_operators.BOUNDS,
        Field("hardware_type", "of a pool that is made: slug of what its price is for"),
    ):
        _add(deploy, field)
    deploy.add_argument("--no-wait", action="store_true", help="do not wait until it serves")
    deploy.add_argument("--timeout", type=_number, default=1800.0, metavar="S", help="wait at most so long (1800)")
    logs = commands.add_parser(
        "logs",
        help="the log of a replica's engine",
        description="Print the end of an engine's log, as its host's agent has it now.",
    )
    logs.set_defaults(command="remote.logs")
    logs.add_argument("name", metavar="NAME", help="deployment, or id of a replica (its end is enough)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on printing what is added")
    logs.add_argument("-n", "--lines", type=_count, default=100, metavar="N", help="begin with so many (100)")


def add_calibrate(commands: Any) -> None:
    """``calibrate``."""
    calibrate = commands.add_parser(
        "calibrate",
        help="measure what a request costs on a deployment's hardware",
        description="Take a replica out of rotation, measure it, fit the price, and give it back. It goes on without "
        "this command: with --wait, one that is under way is found again.",
    )
    calibrate.set_defaults(command="remote.calibrate")
    calibrate.add_argument("deployment", metavar="DEPLOYMENT", help="its name or id")
    calibrate.add_argument(
        "--grid", choices=("small", "medium", "thorough"), default="medium", help="how many shapes (%(default)s)"
    )
    calibrate.add_argument(
        "--allow-outage", action="store_true", help="take the only ready replica too: clients get 503 meanwhile"
    )
    calibrate.add_argument("--adopt", action="store_true", help="make it the price as soon as it is fitted")
    calibrate.add_argument(
        "--from", dest="effective_from", type=_moment, metavar="DATE", help="with --adopt: in force from then on"
    )
    calibrate.add_argument("--wait", action="store_true", help="show its progress until it is over")
    calibrate.add_argument("--json", action="store_true", help="JSON for programs")


def add_selling(commands: Any) -> None:
    """``sell`` and ``calculate``."""
    sell = commands.add_parser(
        "sell",
        help="promise a tenant MU/min of a pool, if it can be kept",
        description="Sell a reservation. What does not fit by the pool's rules is refused with what is missing.",
    )
    sell.set_defaults(command="remote.sell", act="sell")
    sell.add_argument("tenant", metavar="TENANT", help="slug or id")
    sell.add_argument("pool", metavar="POOL", help="slug or id")
    sell.add_argument("--dry-run", action="store_true", help="only ask; the exit code is 0 where it fits, else 1")
    calculate = commands.add_parser(
        "calculate",
        help="from requests to MU/min, and from MU/min to requests",
        description="Say what requests of a shape come to in a pool's MU/min, or how many fit into MU/min.",
    )
    calculate.set_defaults(command="remote.sell", act="calculate")
    calculate.add_argument("pool", metavar="POOL", help="slug or id")
    calculate.add_argument("--tenant", default="", help="slug or id (PENSTOCK_TENANT; else your only one)")
    for parser in (sell, calculate):
        parser.add_argument("--json", action="store_true", help="JSON for programs")
        for field in nouns_of_reservations.SHAPE:
            _add(parser, field)
    for field in nouns_of_reservations.TERMS:
        _add(sell, field)


def add_completion(commands: Any) -> None:
    """``completion``."""
    completion = commands.add_parser("completion", help="print a script that completes commands in your shell")
    completion.set_defaults(command="remote.completion")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))


def _add_list(parser: argparse.ArgumentParser, resource: Resource) -> None:
    _common(parser, resource)
    parser.add_argument("--limit", type=_count, default=None, metavar="N", help="show at most so many")
    for field in resource.filters:
        _add(parser, field)


def _add_verb(parser: argparse.ArgumentParser, resource: Resource, verb: Verb) -> None:
    _common(parser, resource, names_tenant=verb.at != "platform")
    parser.set_defaults(verb=verb)
    if not verb.is_on_list:
        _row(parser, resource)
    if not verb.is_undoable:
        parser.add_argument("-y", "--yes", action="store_true", help="do not ask; this cannot be undone")
    for field in verb.fields:
        _add(parser, field)


def _add_verify(verbs: Any) -> None:
    verify = verbs.add_parser(
        "verify",
        help="check that the books were not changed, and recompute what was billed",
        description="Check a tenant's usage without trusting the installation: the hash chain of its records, the "
        "daily anchors, the MU of each record from its tokens and price, the daily sums, and the invoices.",
    )
    verify.set_defaults(command="remote.verify")
    verify.add_argument("file", nargs="?", metavar="FILE", help="a file that was kept; - reads it from standard input")
    verify.add_argument("--since", default="", metavar="DAY", help="from this day (UTC, ISO) on; else all that is kept")
    verify.add_argument("--keep", default="", metavar="FILE", help="keep the file that is checked")
    verify.add_argument("--anchors", default="", metavar="FILE", help="compare with anchors that you kept (JSON)")
    _common(verify, nouns_of_tenants.USAGE, is_of_all=False)


def _add_invoices(verbs: Any) -> None:
    show = verbs.add_parser("show", help="show one, with its lines")
    _row(show, nouns_of_tenants.INVOICES)
    preview = verbs.add_parser("preview", help="what a month comes to by what is booked now: no invoice, and not kept")
    preview.add_argument("--month", default="", metavar="MONTH", help="as 2026-11 (UTC; this month)")
    for parser in (show, preview):
        _common(parser, nouns_of_tenants.INVOICES, is_of_all=parser is show)
    issue = verbs.add_parser(
        "issue", help="issue the invoice of a month that is final, or a note of what has changed since"
    )
    issue.add_argument("tenant", metavar="TENANT", help="slug or id")
    issue.add_argument("month", metavar="MONTH", help="as 2026-11 (UTC)")
    issue.add_argument("-y", "--yes", action="store_true", help="do not ask; this cannot be undone")
    issue.add_argument("--json", action="store_true", help="JSON for programs")
    for name in ("show", "preview", "issue"):
        verbs.choices[name].set_defaults(command="remote.invoices", act=name)


def _row(parser: argparse.ArgumentParser, resource: Resource) -> None:
    called = resource.names[0].rpartition(".")[2].upper()
    parser.add_argument("row", metavar=called, help=f"{', '.join(resource.names)} or id")


def _common(
    parser: argparse.ArgumentParser, resource: Resource, *, names_tenant: bool = True, is_of_all: bool = True
) -> None:
    """``is_of_all``: who operates the platform may leave the tenant out, where the rows of all can be had."""
    parser.add_argument("--json", action="store_true", help="JSON for programs")
    if resource.is_of_tenant and names_tenant:
        is_of_all = is_of_all and bool(resource.platform_path)
        others = "all of them for operators, else your only one" if is_of_all else "else your only one"
        parser.add_argument("--tenant", default="", help=f"slug or id (PENSTOCK_TENANT; {others})")
        _under(parser, resource)


def _under(parser: argparse.ArgumentParser, resource: Resource) -> None:
    if resource.under:
        group = parser.add_mutually_exclusive_group()
        for name, holder in resource.under.items():
            called = holder.names[0].rpartition(".")[2]
            group.add_argument(
                f"--{name}", default="", metavar=called.upper(), help=f"of one {name}, by {called} or id; else of all"
            )


def _add(parser: argparse.ArgumentParser, field: Field) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "text": {"metavar": "TEXT"},
        "number": {"type": _number, "metavar": "N"},
        "optional-number": {"type": _optional_number, "metavar": "N|none"},
        "switch": {"type": _switch, "metavar": "yes|no"},
        "words": {"type": _words, "metavar": "A,B"},
        "json": {"type": _json, "metavar": "JSON"},
    }
    options = kinds[field.kind]
    if field.is_place:
        parser.add_argument(field.name, help=field.help, **options | {"metavar": field.name.upper()})
    else:
        parser.add_argument(field.flag, dest=field.name, help=field.help, required=field.is_required, **options)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _moment(text: str) -> datetime.datetime:
    """An ISO date or time; without a zone, in the viewer's own. Raises argparse.ArgumentTypeError."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date: give 2030-01-31 or 2030-01-31T09:00") from None
    return found if found.tzinfo else found.astimezone()


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def _optional_number(text: str) -> int | float | str:
    return "" if text == "none" else _number(text)


def _switch(text: str) -> bool:
    if text.lower() not in ("yes", "no", "true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: say yes or no")
    return text.lower() in ("yes", "true")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
