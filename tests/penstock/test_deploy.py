"""``penstock deploy`` and ``logs`` against the real API; the replicas' states are moved as the loops and agents do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection

from capacity.models import Host, Model, Pool
from penstock.cli.remote import deploy, logs
from serving.agents.logs import logs_keep
from serving.models import Deployment, Replica, Revision
from serving.shared_state import client
from tenants.models import User
from tests import factories
from tests.penstock.test_remote import Shell, people, shell, sign_in
from worker.spec import HostReport, LogPiece

__all__ = ["people", "shell"]
pytestmark = pytest.mark.django_db(transaction=True)

People = dict[str, tuple[User, str]]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "_LOOK_S", 0.05)
    monkeypatch.setattr(logs, "_LOOK_S", 0.05)


@pytest.fixture
def host() -> Host:
    return factories.host(name="rack-1")


@contextmanager
def meanwhile(*steps: Callable[[], Any]) -> Iterator[None]:
    """Takes ``steps`` one after the other, in a thread of its own, once each can be taken."""

    def act() -> None:
        for step in steps:
            end = time.monotonic() + 20
            while time.monotonic() < end:
                try:
                    step()
                    break
                except (Deployment.DoesNotExist, Replica.DoesNotExist):
                    time.sleep(0.02)
            time.sleep(0.3)
        connection.close()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def place(host: Host) -> None:
    made = factories.replica(Deployment.objects.get(), host=host)
    Replica.objects.filter(pk=made.pk).update(state="starting")


def move(**fields: Any) -> Callable[[], Any]:
    return lambda: Replica.objects.filter(pk=Replica.objects.get().pk).update(**fields)


def test_from_a_hub_id_to_replicas_that_serve(shell: Shell, people: People, host: Host) -> None:
    sign_in(shell, people, "operator")
    with meanwhile(
        lambda: place(host),
        move(phase="weights", progress={"step": "downloading", "share": 0.42}),
        move(phase="", progress={}, state="ready", address="http://127.0.0.1:9"),
    ):
        code, out, err = shell("deploy", "org/some-model", "--target-concurrency", "4", "--timeout", "30")
    assert code == 0, err
    assert out == "some-model\n"
    told = [line.strip() for line in err.splitlines()]
    assert told[0] == "model some-model is made: org/some-model"
    assert told[1].startswith("pool some-model is made, with a default price for")
    assert told[2] == "deployment some-model is made: it serves the pool some-model"
    assert any(line.endswith("on rack-1 starting weights downloading 42%") for line in told)
    assert told[-1] == "some-model serves: 1 of 1 replicas ready"
    model = Model.objects.get()
    assert (model.artifact_kind, model.artifact_value) == ("hub", "org/some-model")
    assert Pool.objects.get().is_public
    assert Revision.objects.get().target_concurrency == 4
    # Once more with the same words changes nothing, and with others makes a revision.
    code, out, err = shell("deploy", "org/some-model", "--target-concurrency", "4")
    assert (code, out) == (0, "some-model\n"), err
    assert Revision.objects.count() == 1
    code, _, err = shell("deploy", "some-model", "--target-concurrency", "8", "--max-replicas", "3", "--no-wait")
    assert code == 0, err
    assert "revision 2 takes over from revision 1" in err
    assert Deployment.objects.get().max_replicas == 3
    assert Model.objects.count() == Pool.objects.count() == 1


def test_a_launch_that_fails_says_why_and_what_to_do(shell: Shell, people: People, host: Host) -> None:
    sign_in(shell, people, "operator")
    pool = factories.pool()
    with meanwhile(lambda: place(host), move(state="failed", reason="no such model on the hub")):
        code, _, err = shell("deploy", pool.slug, "--name", "chat", "--timeout", "30")
    assert code == 1
    assert "chat does not serve: no such model on the hub" in err
    assert f"penstock logs {Replica.objects.get().pk}" in err
    assert "penstock deployments retry chat" in err


def test_waiting_ends(shell: Shell, people: People, host: Host) -> None:
    sign_in(shell, people, "operator")
    pool = factories.pool()
    code, _, err = shell("deploy", pool.slug, "--name", "chat", "--timeout", "0.1")
    assert code == 1
    assert "chat is not ready after 0 s; it goes on by itself" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nothing-known",), "no pool and no model is called 'nothing-known'"),
        (("./folder",), "give the whole path on the hosts"),
        (("org/model",), "there is no host yet"),
    ],
)
def test_what_cannot_be_served_is_told(shell: Shell, people: People, words: tuple[str, ...], told: str) -> None:
    sign_in(shell, people, "operator")
    code, _, err = shell("deploy", *words)
    assert code == 1
    assert told in err
    assert not Pool.objects.exists()


def test_another_pool_is_another_name(shell: Shell, people: People, host: Host) -> None:
    sign_in(shell, people, "operator")
    made = factories.deployment()
    other = factories.pool(slug="other-pool")
    code, _, err = shell("deploy", other.slug, "--name", made.name)
    assert code == 1
    assert "give another --name" in err


def tell(replica: Replica, data: bytes, end: int) -> None:
    report = HostReport(
        host_id=str(replica.host_id), boot_id="b", sequence=1, generation=0, agent_version="1", agent_pid=1,
        hostname="h", cores=1, memory_bytes=1, memory_available_bytes=1, load_1m=0.0,
        logs={str(replica.pk): LogPiece(data=data, end=end)},
    )  # fmt: skip
    assert replica.host is not None
    logs_keep(report, replica.host, client=client())


def test_a_log_is_followed(
    shell: Shell, people: People, host: Host, state_url: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REDIS_URL = state_url
    sign_in(shell, people, "operator")
    replica = factories.replica(factories.deployment(name="chat"), host=host)
    log, looks = [b"one\ntwo\n"], 0
    tell(replica, log[0], 8)

    def rest(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            tell(replica, b"one\ntwo\nthree\nfo", 16)
        elif looks == 2:
            tell(replica, b"\x1b[2Jfour\n", 9)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(logs.time, "sleep", rest)
    code, out, err = shell("logs", "chat", "-f", "-n", "1")
    assert (code, out) == (130, "two\nthree\n[2Jfour\n")
    assert "some lines are missing here" in err
    code, out, _ = shell("logs", str(replica.pk)[-8:])
    assert (code, out) == (0, "[2Jfour\n")
    factories.replica(replica.deployment, host=host)
    code, _, err = shell("logs", "chat")
    assert code == 1
    assert "chat has 2 replicas, name one" in err
    assert "no replica or deployment called 'x'" in shell("logs", "x")[2]


def test_the_runtime_that_was_chosen_is_told_and_another_starts_from_its_own_options(
    shell: Shell, people: People, host: Host
) -> None:
    sign_in(shell, people, "operator")
    factories.pool(slug="vectors", model=factories.model(artifact_kind="tiny", artifact_value="embed"))
    code, _, err = shell("deploy", "vectors", "--no-wait")
    assert code == 0, err
    assert "runtime vllm: The built-in tiny embedding model" in err
    options = '{"argv": ["server", "--port", "{port}"], "speaks": ["embed"]}'
    code, _, err = shell("deploy", "vectors", "--no-wait", "--runtime", "command", "--options", options)
    assert code == 0, err
    assert "runtime command: Set by hand." in err
    code, _, err = shell("deploy", "vectors", "--no-wait", "--runtime", "vllm")
    assert code == 0, err
    assert [(row.runtime, row.options.get("task")) for row in Revision.objects.order_by("number")] == [
        ("vllm", "embed"),
        ("command", None),
        ("vllm", "embed"),
    ]
