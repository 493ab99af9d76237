"""The bundled Valkey as it is started, and what a host agent's user may do on it."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time

import pytest
import redis

from penstock import bundled_state
from serving.gateway.state import connect


def agent_client(server):
    password = (server.data / "state" / "agent.password").read_text().strip()
    return redis.Redis(
        unix_socket_path=str(bundled_state.socket_path(server.data)), username="agent", password=password, protocol=2
    )


def test_files_are_private_and_no_port_is_open(valkey_server):
    server = valkey_server()
    folder = server.data / "state"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes["state"] == 0o700
    assert modes["valkey.sock"] == modes["users.acl"] == modes["agent.password"] == 0o600
    client = connect(server.url)
    assert client.config_get("port")["port"] == "0"
    assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    client.close()


def test_a_killed_servers_socket_does_not_block_a_start_and_data_survive(valkey_server):
    server = valkey_server()
    client = connect(server.url)
    client.set("kept", "1")
    server.stop(signal.SIGKILL)
    assert bundled_state.socket_path(server.data).exists()
    server.start()
    assert client.get("kept") == b"1"
    client.close()


def test_a_running_server_is_not_pushed_aside(valkey_server):
    server = valkey_server()
    with pytest.raises(bundled_state.StateFolderError, match="another server answers"):
        bundled_state.command(server.data)


def test_a_path_too_long_is_said(tmp_path):
    with pytest.raises(bundled_state.StateFolderError, match="shorter path"):
        bundled_state.command(tmp_path / ("x" * 100))


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "penstock:epoch"),
        ("HGETALL", "penstock:snap:key"),
        ("SET", "penstock:x", "1"),
        ("EVAL", "return redis.call('GET', 'penstock:epoch')", "0"),
        ("SUBSCRIBE", "penstock:agents"),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("FLUSHALL",),
        ("ACL", "LIST"),
    ],
)
def test_the_agents_user_sees_only_its_own(valkey_server, command):
    server = valkey_server()
    client = agent_client(server)
    with pytest.raises(redis.ResponseError, match=r"(?i)no permission|can't access|ACL"):
        client.execute_command(*command)
    assert client.get("agent:orders:1") is None
    client.close()


AGENT = """
    import sys
    from celery import Celery
    app = Celery("agent", broker=sys.argv[1], fixups=[])
    app.conf.update(
        broker_transport_options={"global_keyprefix": "agent:"}, worker_enable_remote_control=False,
        task_ignore_result=True, worker_pool="threads", worker_send_task_events=False,
        worker_hijack_root_logger=False, task_default_queue="host.1",
    )
    @app.task(name="probe")
    def probe(path):
        open(path, "w").write("done")
    if len(sys.argv) > 2:
        app.send_task("probe", [sys.argv[2]], queue="host.1")
    else:
        app.worker_main(["worker", "-P", "threads", "-c", "1", "-Q", "host.1", "-l", "warning", "--without-gossip",
                         "--without-mingle", "--without-heartbeat"])
"""


def test_a_celery_worker_works_as_the_agents_user(valkey_server, tmp_path):
    server = valkey_server()
    url = bundled_state.agent_url(server.data)
    source = tmp_path / "agent_app.py"
    source.write_text(textwrap.dedent(AGENT))
    out = tmp_path / "out"
    environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    log = (tmp_path / "log").open("w+")
    worker = subprocess.Popen([sys.executable, str(source), url], stdout=log, stderr=log, env=environment)
    try:
        subprocess.run([sys.executable, str(source), url, str(out)], check=True, timeout=60, env=environment)
        deadline = time.monotonic() + 60
        while not out.exists() and worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        log.seek(0)
        assert out.exists(), log.read()
    finally:
        worker.terminate()
        worker.wait(60)
    log.seek(0)
    text = log.read()
    log.close()
    assert "NOPERM" not in text, text
    client = connect(server.url)
    assert all(key.startswith(b"agent:") for key in client.keys("*")), client.keys("*")
    client.close()
