"""Operators' pages that take things out of service: what they ask, what they refuse, and what they offer to undo."""

from __future__ import annotations

from django.test import Client
from django.utils import timezone

from capacity.models import HardwareType, Host, Reservation
from capacity.selectors import HOLDING
from serving.models import Deployment, Replica
from serving.services import deployment_remove
from tests import factories
from tests.web.acting import acts, text, undo
from tests.web.seed import Seeded
from tests.web.seed import host as add_host
from tests.web.seed import replica as add_replica


def test_a_drain_says_what_will_happen_and_is_taken_back(as_operator: Client, platform: Seeded) -> None:
    question = text(as_operator.get("/console/hosts/gpu-01/drain"))
    assert "Nothing new is placed on it." in question
    assert "no other host has room for" in question
    assert Host.objects.get(name="gpu-01").state == "active"
    page = text(as_operator.post("/console/hosts/gpu-01/drain", {"reason": "a <new> fan"}, follow=True))
    assert Host.objects.get(name="gpu-01").state == "draining"
    held = Replica.objects.filter(host__name="gpu-01", state__in=("starting", "ready")).count()
    assert f"0 replicas left it, {held} to go." in page
    assert "a &lt;new&gt; fan" in page
    listed = text(as_operator.get("/console/hosts/?state=draining"))
    assert "gpu-01" in listed
    assert "gpu-02" not in listed
    page = text(undo(as_operator, page))
    assert Host.objects.get(name="gpu-01").state == "active"
    assert acts("host.drain", "host.uncordon") == ["host.drain", "host.uncordon"]
    wrong = as_operator.post("/console/hosts/gpu-01/drain", {"reason": "x" * 201})
    assert wrong.status_code == 400
    assert Host.objects.get(name="gpu-01").state == "active"


def test_what_is_taken_back_is_as_it_was_before(as_operator: Client) -> None:
    """A drain of a cordoned host goes back to its cordon, an end of a drain goes back to the drain; each with why."""

    def is_now() -> tuple[str, str]:
        row = Host.objects.get(name="gpu-01")
        return row.state, row.state_reason

    def post(act: str, **fields: str) -> str:
        return text(as_operator.post(f"/console/hosts/gpu-01/{act}", fields, follow=True))

    post("cordon", reason="noisy")
    assert is_now() == ("cordoned", "noisy")
    page = post("drain", reason="a new fan")
    assert is_now() == ("draining", "a new fan")
    undo(as_operator, page)
    assert is_now() == ("cordoned", "noisy")
    post("drain", reason="a new fan")
    for act, state in (("uncordon", "active"), ("cordon", "cordoned")):
        page = post(act)
        assert is_now() == (state, "")
        undo(as_operator, page)
        assert is_now() == ("draining", "a new fan")
    undo(as_operator, post("uncordon"))
    assert is_now()[0] == "draining"


def test_what_did_nothing_is_not_taken_back(as_operator: Client) -> None:
    for act in ("drain", "cordon", "uncordon"):
        first, again = (text(as_operator.post(f"/console/hosts/gpu-01/{act}", follow=True)) for _ in range(2))
        assert ">Undo<" in first, act
        assert ">Undo<" not in again, act
    assert acts("host.drain", "host.cordon", "host.uncordon") == ["host.drain", "host.cordon", "host.uncordon"]


def test_room_for_one_of_two_is_not_promised_to_both(as_operator: Client, platform: Seeded) -> None:
    add_host("gpu-03", HardwareType.objects.get(slug="h200"), timezone.now(), accelerators=1)
    question = text(as_operator.get("/console/hosts/gpu-01/drain"))
    assert "Each of its 2 replicas is replaced on another host first" in question
    assert "no other host has room for chat-32b: after 30 s 1 of them stop without a replacement" in question
    add_host("gpu-04", HardwareType.objects.get(slug="h200"), timezone.now(), accelerators=1)
    assert "no other host has room" not in text(as_operator.get("/console/hosts/gpu-01/drain"))


def test_a_drain_counts_all_that_its_host_holds(as_operator: Client, platform: Seeded) -> None:
    node, revision = Host.objects.get(name="node-01"), platform.sim.revisions.get()
    for _ in range(55):
        add_replica(platform.sim, revision, node, "ready", timezone.now())
    assert "Each of its 57 replicas is replaced" in text(as_operator.get("/console/hosts/node-01/drain"))
    Replica.objects.filter(host=node).update(state="draining")
    assert "it can be switched off when that has stopped" in text(as_operator.get("/console/hosts/node-01/drain"))


def test_a_drained_host_says_so(as_operator: Client, platform: Seeded) -> None:
    as_operator.post("/console/hosts/gpu-01/drain")
    Replica.objects.filter(host__name="gpu-01").update(state="stopped")
    page = text(as_operator.get("/console/hosts/gpu-01/"))
    assert "It is drained: it can be switched off." in page
    assert "It is drained: no replica is left." in page


def test_a_lost_host_is_not_drained(as_operator: Client) -> None:
    Host.objects.filter(name="gpu-01").update(state="lost")
    page = text(as_operator.post("/console/hosts/gpu-01/drain", follow=True))
    assert "gpu-01 is lost: wait until its agent reports again, or remove it." in page
    assert not acts("host.drain")


def test_the_question_says_beforehand_what_holds_the_host(as_operator: Client, platform: Seeded) -> None:
    """Each replica by its own page, and what is to be done first in the place of the button."""
    held = Replica.objects.filter(host__name="gpu-01", state__in=HOLDING)
    names = [
        f'<a href="/console/replicas/{one.pk}/" title="{one.pk}">replica {str(one.pk)[-8:]}</a>: {one.deployment.name}'
        for one in held
    ]
    assert len(names) > 1
    page = text(as_operator.get("/console/hosts/gpu-01/remove"))
    assert f"gpu-01 cannot be removed: {len(names)} replicas still hold a part of it." in page
    assert all(name in page for name in names)
    assert 'href="/console/hosts/gpu-01/drain">Drain gpu-01…<' in page
    assert ">Remove gpu-01</button>" not in page
    assert 'role="alert"' not in page, "nobody has tried yet"
    Host.objects.filter(name="gpu-01").update(state="draining")
    page = text(as_operator.get("/console/hosts/gpu-01/remove"))
    assert "remove it when the last of them has stopped" in page
    assert 'href="/console/hosts/gpu-01/">See its drain<' in page
    held.update(state="stopped")
    page = text(as_operator.get("/console/hosts/gpu-01/remove"))
    assert "cannot be removed" not in page
    assert ">Remove gpu-01</button>" in page


def test_of_a_lost_host_the_replicas_are_named_that_are_given_up(as_operator: Client, platform: Seeded) -> None:
    Host.objects.filter(name="gpu-01").update(state="lost")
    page = text(as_operator.get("/console/hosts/gpu-01/remove"))
    assert "Its agent is gone, and" in page
    assert "Force it to give them up" in page
    assert "/console/replicas/" in page
    assert ">Remove gpu-01</button>" in page, "with the force that is asked for"


def test_a_host_that_is_held_is_not_removed(as_operator: Client, platform: Seeded) -> None:
    assert "Its agent is refused at once" in text(as_operator.get("/console/hosts/gpu-01/remove"))
    answer = as_operator.post("/console/hosts/gpu-01/remove", {"force": "on"})
    assert answer.status_code == 409
    assert "Drain it first" in text(answer)
    assert platform.chat.name in text(answer)
    assert Host.objects.filter(name="gpu-01").exists()


def test_a_lost_host_is_removed_by_force_and_its_history_stays(as_operator: Client, platform: Seeded) -> None:
    host = Host.objects.get(name="gpu-01")
    Host.objects.filter(pk=host.pk).update(state="lost")
    assert "Give up its replicas" in text(as_operator.get("/console/hosts/gpu-01/remove"))
    assert as_operator.post("/console/hosts/gpu-01/remove").status_code == 409
    page = text(as_operator.post("/console/hosts/gpu-01/remove", {"force": "on"}, follow=True))
    assert "gpu-01 is removed" in page
    assert as_operator.get("/console/hosts/gpu-01/").status_code == 404
    gone = text(as_operator.get(f"/console/hosts/{host.pk}/"))
    assert "What it did stays to be read." in gone
    assert "/drain" not in gone
    assert f"/console/hosts/{host.pk}/" in text(as_operator.get("/console/hosts/?state=removed"))
    factories.host(name="gpu-01")
    assert as_operator.get("/console/hosts/gpu-01/").context["host"].pk != host.pk
    replica = Replica.objects.filter(host=host).first()
    assert replica is not None
    assert f"/console/hosts/{host.pk}/" in text(as_operator.get(f"/console/replicas/{replica.pk}/"))


def test_a_deployment_is_removed_by_its_name(as_operator: Client, platform: Seeded) -> None:
    path, name = f"/console/deployments/{platform.chat.pk}", platform.chat.name
    assert f"{path}/remove" in text(as_operator.get(f"{path}/"))
    question = text(as_operator.get(f"{path}/remove"))
    assert f"Clients that ask for {name} get 404" in question
    answer = as_operator.post(f"{path}/remove", {"confirm": name})
    assert (answer.status_code, "not over, and nothing else serves it" in text(answer)) == (409, True)
    Reservation.objects.update(state=Reservation.State.ENDED)
    for given in ({}, {"confirm": "something else"}):
        answer = as_operator.post(f"{path}/remove", given)
        assert answer.status_code == 409
        assert "have not ended" in text(answer)
    page = text(as_operator.post(f"{path}/remove", {"confirm": name}, follow=True))
    assert f"{name} is removed" in page
    assert not Deployment.objects.filter(pk=platform.chat.pk).exists()
    for tab in ("replicas", "events", "revisions", "logs", "audit", "settings"):
        gone = as_operator.get(f"{path}/?tab={tab}")
        assert gone.status_code == 200
        assert "It was removed: clients find it no more." in text(gone)
        assert f"{path}/remove" not in text(gone)
    assert as_operator.post(f"{path}/start").status_code == 404
    assert f"{path}/" in text(as_operator.get("/console/deployments/?state=removed"))
    assert acts("deployment.remove") == ["deployment.remove"]


def test_usage_of_what_is_removed_keeps_its_name(client: Client, platform: Seeded) -> None:
    client.force_login(platform.owner)
    before = text(client.get("/t/northwind/usage/?range=30d"))
    assert platform.chat.name in before
    Reservation.objects.update(state=Reservation.State.ENDED)
    deployment_remove(deployment=platform.chat, actor="t", confirm=platform.chat.name)
    again = text(client.get("/t/northwind/usage/?range=30d"))
    assert platform.chat.name in again
    assert "deleted" not in again.replace(before, "")
