"""The reference of settings: what ``penstock help settings`` prints, and ``docs/settings.md`` is."""

from __future__ import annotations

from typing import NamedTuple


class Setting(NamedTuple):
    """``names`` and ``default`` as they are read by people, in Markdown."""

    names: str
    default: str
    what: str


_HEAD = (
    "# Settings\n"
    "\n"
    "All from the environment; the command line of `penstock up` goes first where it has the same thing. "
    "Any of them may be given as `NAME_FILE`, the path of a file that holds the value; a file that cannot"
    " be read is an error.\n"
)
_TAIL = (
    "Made by Penstock for its own processes, not to be set: `PENSTOCK_STATUS_TOKEN` (from `up` to the web"
    " role), `PENSTOCK_AGENT_DIR` and `PENSTOCK_REPLICA_ID` (marks of an agent's processes), "
    "`PENSTOCK_TEST_…` (from `test` to its rounds).\n"
    "\n"
    "Where more than one machine runs roles, `DATABASE_URL`, `REDIS_URL` and the three secrets must be "
    "the same on all that run `gateway`, `web` or `loops`.\n"
)
SETTINGS = (
    Setting(
        "`PENSTOCK_DATA`",
        "`.data` of a checkout, else `~/.local/share/penstock`",
        "data folder (`--data`)",
    ),
    Setting(
        "`PENSTOCK_HOST`",
        "`127.0.0.1`",
        "address that web and gateways listen on (`--host`)",
    ),
    Setting(
        "`PENSTOCK_PORT`, `PENSTOCK_API_PORT`",
        "8000, 8080",
        "console and gateway (`--port`, `--api-port`)",
    ),
    Setting(
        "`PENSTOCK_CONSOLE_URL`, `PENSTOCK_API_URL`",
        "from host and port",
        "what people and clients are told, e.g. behind a proxy; the latter ends in `/v1`",
    ),
    Setting(
        "`PENSTOCK_GATEWAY_URL`",
        "this machine's gateway, by host and port",
        "where the web role itself reaches a gateway for the playground, e.g. from another machine; ends in `/v1`",
    ),
    Setting(
        "`PENSTOCK_ALLOWED_HOSTS`",
        "this machine's names, by `--host`",
        "names by which the console may be asked, separated by commas",
    ),
    Setting(
        "`PENSTOCK_CSRF_TRUSTED_ORIGINS`",
        "–",
        "origins of the console behind a proxy, e.g. `https://console.example.org`",
    ),
    Setting(
        "`PENSTOCK_TLS`",
        "no",
        "the proxy in front speaks TLS: secure cookies, `X-Forwarded-Proto` is believed",
    ),
    Setting(
        "`PENSTOCK_HSTS_S`",
        "3600",
        "with `PENSTOCK_TLS`: seconds for which browsers ask the console by TLS alone; raise it (31536000 is a "
        "year) once all of it works, 0 leaves it out",
    ),
    Setting(
        "`DATABASE_URL`",
        "SQLite in the data folder",
        "`postgres://user:password@host:port/name`, or `sqlite:///absolute/path`",
    ),
    Setting(
        "`REDIS_URL`",
        "the bundled Valkey",
        "Valkey or Redis 6.2 or newer: `redis://…`, `rediss://…`, `unix:///path`",
    ),
    Setting(
        "`PENSTOCK_AGENT_REDIS_URL`",
        "–",
        "the server of `REDIS_URL` as hosts that enrol themselves are told it: an address that they "
        "reach, with a user of their own that may see `agent:*` alone (its commands: `AGENT_COMMANDS` in "
        "`bundled_state.py`). Without it, or with the login of `REDIS_URL`, no host can enrol itself",
    ),
    Setting(
        "`PENSTOCK_SECRET_KEY`, `PENSTOCK_KEY_PEPPERS`, `PENSTOCK_FIELD_KEYS`",
        "`secrets.json` in the data folder",
        'signing key; peppers of API keys as JSON `{"1": "…"}`, the highest signs; Fernet keys, the first encrypts',
    ),
    Setting(
        "`PENSTOCK_ENVIRONMENTS_DIR`",
        "`agent/environments` in the data folder",
        "where engine environments are built and kept; several installations may share it",
    ),
    Setting(
        "`PENSTOCK_TRUSTED_PROXIES`",
        "–",
        "networks (CIDR, separated by commas) of proxies in front of gateways and console whose "
        "`X-Forwarded-For` is believed: it says from where a key is used and a password tried. The "
        "console also believes a proxy on its own machine",
    ),
    Setting(
        "`PENSTOCK_METRICS_TOKEN`",
        "–",
        "bearer token that a gateway's `/metrics` asks for; without it only this machine may read them",
    ),
    Setting(
        "`PENSTOCK_ACCESS_LOG`",
        "yes",
        "one log line per request in a gateway's log; `no` leaves it out",
    ),
    Setting(
        "`PENSTOCK_GATEWAY_<NAME>`",
        "",
        "limits of a gateway in seconds and bytes: `HEADER_S` 20, `BODY_S` 60, `CONNECT_S` 2, `IDLE_S` "
        "120, `TOTAL_S` 600, `QUEUE_S` 10, `DRAIN_S` 20 (less under `penstock up`, whose stop is "
        "bounded), `KEEP_ALIVE_S` 75, `QUEUE_MAX` 256, `MAX_BODY` 20971520",
    ),
    Setting(
        "`PENSTOCK_HOST_LOST_S`",
        "15",
        "a host that is silent for so long counts as lost",
    ),
    Setting(
        "`PENSTOCK_DRAIN_LIMIT_S`",
        "30",
        "a draining replica is stopped after this time",
    ),
    Setting(
        "`PENSTOCK_HISTORY_DAYS`, `PENSTOCK_USAGE_DAYS`",
        "30, 400",
        "how long ended replicas and decisions, and usage records, are kept",
    ),
    Setting(
        "`PENSTOCK_INVOICE_DAYS`",
        "3",
        "so many days after a month its invoices are issued, and from then on corrected when usage comes late; "
        "below 0: operators issue and correct them",
    ),
    Setting(
        "`PENSTOCK_CURRENCY`",
        "USD",
        "what prices per 1,000 MU and budgets in money are counted in, the same for all roles; nothing is converted",
    ),
    Setting(
        "`PENSTOCK_API_RATE`",
        "1200/min",
        "requests that one caller of the REST API may make in a second, minute, hour or day",
    ),
    Setting(
        "`PENSTOCK_DEBUG`",
        "no",
        "Django's debug pages; refused beyond loopback",
    ),
    Setting(
        "`PENSTOCK_AGENT_CONFIG`",
        "–",
        "a host agent's `agent.json`, where `--config` does not name it (Celery's own command line)",
    ),
    Setting(
        "`PENSTOCK_CHROMIUM`",
        "the Chromium found",
        "browser of `penstock test`",
    ),
    Setting(
        "`PENSTOCK_PYTHON`",
        "the newest Python found",
        "which Python the launcher uses",
    ),
    Setting(
        "`PENSTOCK_URL`, `PENSTOCK_TOKEN`, `PENSTOCK_TENANT`, `PENSTOCK_API_KEY`",
        "from `penstock login`",
        "the installation that the command line speaks to, as whom, for which tenant, and the key that "
        "`penstock chat` uses ([command-line.md](command-line.md))",
    ),
    Setting(
        "`PENSTOCK_ENROLMENT_TOKEN`",
        "asked for",
        "the token that `penstock join` enrols this machine with",
    ),
    Setting(
        "`NO_COLOR`, `FORCE_COLOR`",
        "–",
        "colours of the terminal",
    ),
)
"""Each variable that the code reads, or a family of them."""


def page() -> str:
    """The whole reference, in Markdown."""
    rows = [f"| {one.names} | {one.default} | {one.what} |" for one in SETTINGS]
    return "\n".join((_HEAD, "| variable | default | what |", "| --- | --- | --- |", *rows, "", _TAIL)).rstrip() + "\n"
