"""What ``deploy/`` says is what this version understands: commands, settings, the gateway's addresses and limits."""

from __future__ import annotations

import configparser
import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from capacity.policy.enrolment import agent_url_fault
from penstock.bundled_state import AGENT_COMMANDS
from penstock.cli.parser import build_parser
from penstock.roles import ROLES
from serving.gateway.config import Config
from serving.gateway.dialects import DIALECTS

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
WORKER_OPTIONS = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "worker" / "__main__.py").read_text(encoding="utf-8")))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path, encoding="utf-8")
    return parser


def understood(words: list[str]) -> Any:
    return build_parser().parse_args(words)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_start_what_there_is(path: Path) -> None:
    service = unit(path)["Service"]
    command, *words = shlex.split(service["ExecStart"].replace("%i", "2"))
    if path.name == "penstock-agent-engines-stop.service":
        assert [command, *words[:2]] == ["/opt/penstock/bin/python", "-m", "worker"]
        assert {word for word in words if word.startswith("--")} <= WORKER_OPTIONS
        return
    assert command == "/opt/penstock/bin/penstock"
    arguments = understood(words)
    if arguments.command == "up":
        assert path.name.split("@")[0].removesuffix(".service") == f"penstock-{arguments.only}"
    assert service["EnvironmentFile"] == "/etc/penstock/penstock.env"


def test_every_role_has_a_unit_and_engines_outlive_their_agent() -> None:
    called = {re.split(r"[@.]", path.name)[0].removeprefix("penstock-") for path in UNITS}
    assert called == {*ROLES, "setup", "agent-engines-stop"}
    kill = {path.name: unit(path)["Service"].get("KillMode") for path in UNITS}
    assert {name for name, mode in kill.items() if mode == "process"} == {"penstock-agent.service"}


@pytest.mark.parametrize("name", ["systemd/penstock.env", "compose.env.example"])
def test_settings_are_those_of_the_page(name: str) -> None:
    lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
    given = [line.removeprefix("#").partition("=")[0] for line in lines if "=" in line and " " not in line]
    names = [one.removesuffix("_FILE") for one in given]
    assert len(names) == len(set(names)) > 5
    assert [one for one in names if f"`{one}`" not in SETTINGS] == []


def test_containers_run_what_there_is() -> None:
    """That they run, in the order of the file, is shown by tests/e2e/test_containers.py."""
    ours = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
    assert set(ours) == {"setup", "web", "loops", "gateway", "agent", "pod"}
    for name in set(ours) - {"pod"}:
        arguments = understood(ours[name]["command"])
        assert (arguments.only if arguments.command == "up" else arguments.command) == name
    assert {name for name, each in ours.items() if each.get("env_file") == "compose.env"} == set(ours) - {
        "agent",
        "pod",
    }
    assert ours["agent"]["volumes"] == ["agent:/var/lib/penstock"], "engines run model code: no secret is near them"
    for service in COMPOSE["services"].values():
        needed = service.get("depends_on", ())
        assert set(needed) <= set(COMPOSE["services"])
    used = [name for service in COMPOSE["services"].values() for name in service.get("volumes", ())]
    assert {name.partition(":")[0] for name in used if not name.startswith(".")} == set(COMPOSE["volumes"])


def test_the_state_of_the_containers_lets_agents_do_what_they_need() -> None:
    words = COMPOSE["services"]["state"]["command"]
    login = words[words.index("--user") + 1 :]
    assert [word for word in login if not word.startswith("+")] == [
        "agent",
        "on",
        ">${AGENT_PASSWORD:?put it into deploy/.env}",
        "resetkeys",
        "~agent:*",
        "resetchannels",
        "&agent:*",
        "-@all",
    ]
    assert [word.removeprefix("+") for word in login if word.startswith("+")] == AGENT_COMMANDS


def test_the_examples_of_the_containers_settings_belong_together() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    given = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(encoding="utf-8"), re.M))
    assert set(given) == asked
    assert len(set(given.values())) == len(given), "an agent's login must not be anybody else's"
    settings = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "compose.env.example").read_text(encoding="utf-8"), re.M))
    assert urlsplit(settings["DATABASE_URL"]).password == given["POSTGRES_PASSWORD"]
    assert urlsplit(settings["REDIS_URL"]).password == given["STATE_PASSWORD"]
    agents = urlsplit(settings["PENSTOCK_AGENT_REDIS_URL"])
    assert (agents.username, agents.password) == ("agent", given["AGENT_PASSWORD"])
    assert agent_url_fault(settings["PENSTOCK_AGENT_REDIS_URL"], own=settings["REDIS_URL"]) is None


def test_the_image_holds_no_secret_and_the_tools_of_its_database() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".data", ".git", ".venv", "deploy/.env", "deploy/compose.env", "deploy/tls"} <= set(ignored)
    kept = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {"deploy/.env", "deploy/compose.env", "deploy/tls/"} <= set(kept)
    # Debian 13 has the client programs of PostgreSQL 17; older ones refuse to back a newer server up.
    assert "-slim-trixie" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert COMPOSE["services"]["database"]["image"] == "postgres:17"


@pytest.mark.parametrize("name", ["penstock.conf", "compose.conf"])
def test_the_proxy_sends_the_gateways_what_is_theirs(name: str) -> None:
    text = (DEPLOY / "nginx" / name).read_text(encoding="utf-8")
    pattern = re.search(r"location ~ (\S+) \{", text)
    assert pattern is not None
    assert [path for path in DIALECTS if not re.search(pattern[1], path)] == []
    for of_web in ("/", "/tokens", "/t/acme/", "/api/v1/tenants", "/tokenizer", "/static/x.js"):
        assert not re.search(pattern[1], of_web)
    gateway = text[pattern.end() :].partition("}")[0]
    size = re.search(r"client_max_body_size (\d+)m", gateway)
    wait = re.search(r"proxy_read_timeout (\d+)s", gateway)
    assert size is not None
    assert wait is not None
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    assert int(size[1]) * 1024 * 1024 == defaults["max_body"]
    assert int(wait[1]) > defaults["total_s"]
    assert "proxy_buffering off" in gateway
    assert "X-Forwarded-For   $remote_addr" in text, "what a visitor says of where they come from is replaced"
