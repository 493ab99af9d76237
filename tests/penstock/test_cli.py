"""The command line: what it refuses before anything starts, and what it becomes."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import roles
from penstock.cli import main
from penstock.cli.parser import build_parser
from penstock.cli.up import UsageError, become, refuse_contradictions
from penstock.roles import Options, RoleError
from penstock.secrets import ensure_secrets


def penstock(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "penstock", *arguments],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(data: Path, *arguments: str) -> str:
    parsed = build_parser().parse_args(["up", "--data", str(data), *arguments])
    options = Options(data=data, host=parsed.host, port=parsed.port, api_port=parsed.api_port)
    with pytest.raises(UsageError) as caught:
        refuse_contradictions(parsed, options)
    return str(caught.value)


def test_a_model_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert f"{missing} is not a folder" in refused(tmp_path, "--model", str(missing))
    missing.mkdir()
    assert "has no config.json" in refused(tmp_path, "--model", str(missing))
    (missing / "config.json").write_text("{}")
    for model in (str(missing), "org/name"):
        parsed = build_parser().parse_args(["up", "--data", str(tmp_path), "--model", model])
        refuse_contradictions(parsed, Options(data=tmp_path))


def test_without_a_command_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "penstock up" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["up", "--port", "70000"], ["up", "--gateways", "0"], ["launch"]])
def test_nonsense_is_refused_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: penstock" in capsys.readouterr().err


def test_a_bad_variable_is_named_without_a_traceback() -> None:
    done = penstock("up", PENSTOCK_PORT="http")
    assert done.returncode == 2
    assert done.stderr == "penstock: PENSTOCK_PORT must be a whole number, not 'http'\n"


def test_the_version_is_told() -> None:
    done = penstock("version")
    assert done.stdout.startswith("penstock 0.")
    assert done.returncode == 0


def test_the_demo_stays_on_this_machine(tmp_path: Path) -> None:
    assert "--allow-remote-demo" in refused(tmp_path, "--host", "0.0.0.0")
    allowed = build_parser().parse_args(["up", "--host", "0.0.0.0", "--allow-remote-demo"])
    refuse_contradictions(allowed, Options(data=tmp_path, host="0.0.0.0"))


def test_a_demo_that_was_made_earlier_stays_on_this_machine_too(tmp_path: Path) -> None:
    empty = build_parser().parse_args(["up", "--host", "0.0.0.0", "--no-demo"])
    refuse_contradictions(empty, Options(data=tmp_path, host="0.0.0.0"))
    (tmp_path / "quickstart.json").write_text(json.dumps({"demo": True}))
    assert "demo" in refused(tmp_path, "--host", "0.0.0.0", "--no-demo")


def test_the_ports_must_differ_and_the_check_needs_the_demo(tmp_path: Path) -> None:
    assert "--api-port" in refused(tmp_path, "--port", "9000", "--api-port", "9000")
    assert "--no-demo" in refused(tmp_path, "--check", "--no-demo")


def test_a_second_start_on_the_same_folder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "up.lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = penstock("up", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "(pid 4711)" in done.stderr
    assert "--data" in done.stderr


def test_a_taken_port_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        done = penstock("up", "--data", str(tmp_path / "data"), "--port", port)
    assert done.returncode == 1
    assert f"port {port}" in done.stdout
    assert "--port" in done.stdout
    assert not (tmp_path / "data" / "secrets.json").exists()


def test_a_role_that_is_not_set_up_says_so(tmp_path: Path) -> None:
    with pytest.raises(RoleError, match="penstock setup"):
        become("web", Options(data=tmp_path), instance=1)
    ensure_secrets(tmp_path)
    with pytest.raises(RoleError, match="enrol this host"):
        become("agent", Options(data=tmp_path), instance=1)
    with pytest.raises(RoleError, match="REDIS_URL"):
        become("state", Options(data=tmp_path, redis_url="redis://elsewhere"), instance=1)


@pytest.mark.parametrize("name", ["web", "loops"])
def test_a_role_does_not_start_under_public_keys(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of its own, with two of the three secrets."""
    monkeypatch.setenv("PENSTOCK_SECRET_KEY", "from the environment")
    monkeypatch.setenv("PENSTOCK_KEY_PEPPERS", '{"1": "from the environment"}')
    with pytest.raises(RoleError, match=r"not set up \(PENSTOCK_FIELD_KEYS\)"):
        become(name, Options(data=tmp_path), instance=1)


def test_the_loops_end_with_one_line_under_public_keys(tmp_path: Path) -> None:
    """Also where a process manager starts Celery itself."""
    done = subprocess.run(
        roles.loops_role(Options(data=tmp_path)).argv,
        env=os.environ | {"PENSTOCK_DATA": str(tmp_path), "DATABASE_URL": "", "REDIS_URL": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("loops: ")
    assert "PENSTOCK_FIELD_KEYS" in line


def test_one_role_replaces_the_process(tmp_path: Path) -> None:
    """The process that was started is the server itself: its pid answers, and a signal ends it."""
    data = tmp_path / "d"
    command = [sys.executable, "-P", "-m", "penstock", "up", "--only", "state", "--data", str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("eady to accept connections" in line for line in process.stdout)
            assert "valkey" in Path(f"/proc/{process.pid}/cmdline").read_text()
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("host", "is_local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)]
)
def test_what_counts_as_this_machine(host: str, is_local: bool) -> None:
    assert roles.is_loopback(host) is is_local


def test_gateway_and_console_believe_the_same_proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway does not read files that NAME_FILE names: the launcher does."""
    (tmp_path / "proxies").write_text("10.0.0.0/8\n")
    monkeypatch.setenv("PENSTOCK_TRUSTED_PROXIES_FILE", str(tmp_path / "proxies"))
    for role in (roles.gateway_role(Options(data=tmp_path), 1), roles.web_role(Options(data=tmp_path))):
        assert role.env["PENSTOCK_TRUSTED_PROXIES"] == "10.0.0.0/8"


def test_urls_can_be_opened_on_this_machine(tmp_path: Path) -> None:
    assert Options(data=tmp_path, host="0.0.0.0").api_url == "http://127.0.0.1:8080/v1"
    assert Options(data=tmp_path, host="::1", port=81).console_url == "http://[::1]:81"
    assert Options(data=tmp_path, host="::").api_url == "http://[::1]:8080/v1"
    assert Options(data=tmp_path, host="fd00::7").console_url == "http://[fd00::7]:8000"


def test_a_remote_host_is_allowed_by_its_names_and_never_by_a_wildcard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PENSTOCK_ALLOWED_HOSTS", raising=False)
    names = roles.role_environment(Options(data=tmp_path, host="0.0.0.0"))["PENSTOCK_ALLOWED_HOSTS"].split(",")
    assert socket.gethostname() in names
    assert "*" not in names
    monkeypatch.setenv("PENSTOCK_ALLOWED_HOSTS", "mine.example")
    assert "PENSTOCK_ALLOWED_HOSTS" not in roles.role_environment(Options(data=tmp_path, host="0.0.0.0"))


def test_the_agents_processes_are_found_by_their_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PENSTOCK_AGENT_DIR": str(tmp_path / "agent"), "PENSTOCK_REPLICA_ID": "r1"}
    sleeper = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    with subprocess.Popen(sleeper, env=environment, stdout=subprocess.PIPE) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        try:
            assert roles.agent_processes(tmp_path) == {engine.pid: "r1"}
            assert roles.agent_processes(tmp_path / "other") == {}
        finally:
            engine.kill()
