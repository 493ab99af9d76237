"""Operators' pages of hosts: what they do there, and what they are told."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from capacity.models import EnrolmentToken, Host
from capacity.services import enrolment_token_find, enrolment_token_redeem
from serving.models import Replica
from tests import factories
from tests.web.acting import acts, text, undo
from tests.web.seed import Seeded

GIB = 1 << 30


def test_the_list_of_hosts_answers_what_is_free(as_operator: Client, platform: Seeded) -> None:
    page = text(as_operator.get("/console/hosts/"))
    assert "3 hosts with 4 accelerators, 0 free." in page
    Replica.objects.filter(deployment=platform.chat, state="starting").update(state="stopped")
    Host.objects.filter(name="node-01").update(last_report_at=timezone.now() - timedelta(minutes=3))
    page = text(as_operator.get("/console/hosts/"))
    assert "3 hosts with 4 accelerators, 1 free. node-01 is silent." in page
    assert 'aria-label="1 of 2 accelerators in use, 0 failing"' in page


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("q=gpu", ["gpu-01", "gpu-02"]),
        ("hardware=cpu", ["node-01"]),
        ("state=cordoned", []),
        ("sort=-name", ["node-01", "gpu-02", "gpu-01"]),
        ("sort=nonsense&page=77", ["gpu-01", "gpu-02", "node-01"]),
        ("q=%00", ["gpu-01", "gpu-02", "node-01"]),
    ],
)
def test_hosts_are_filtered_and_sorted_by_the_address(as_operator: Client, query: str, names: list[str]) -> None:
    views = as_operator.get(f"/console/hosts/?{query}").context["views"]
    assert [view.host.name for view in views] == names


def test_long_lists_come_in_pages(as_operator: Client) -> None:
    kind = factories.hardware()
    Host.objects.bulk_create(Host(name=f"rack-{n:03}", hardware_type=kind, secret=b"x") for n in range(60))
    first = as_operator.get("/console/hosts/?q=rack")
    assert len(first.context["views"]) == 50
    assert "1 to 50 of 60" in text(first)
    second = as_operator.get("/console/hosts/?q=rack&page=2")
    assert second.context["views"][0].host.name == "rack-050"
    assert 'rel="prev" href="?q=rack&amp;page=1"' in text(second)


def test_the_moving_part_is_sent_alone(as_operator: Client, platform: Seeded) -> None:
    for path in ("/console/hosts/", "/console/hosts/gpu-01/", f"/console/deployments/{platform.chat.pk}/"):
        part = as_operator.get(path, headers={"HX-Request": "true"})
        assert "<html" not in text(part)
        assert "gpu-01" in text(part)
        assert "no-store" in part["Cache-Control"]


def test_cordon_and_undo(as_operator: Client, platform: Seeded) -> None:
    page = text(as_operator.post("/console/hosts/gpu-01/cordon", follow=True))
    assert Host.objects.get(name="gpu-01").state == "cordoned"
    assert "nothing new is placed there" in page
    assert "Uncordon" in page
    page = text(undo(as_operator, page))
    assert Host.objects.get(name="gpu-01").state == "active"
    assert "takes replicas again" in page
    assert acts("host.cordon", "host.uncordon") == ["host.cordon", "host.uncordon"]
    # The offer is made once.
    undo(as_operator, page)
    as_operator.get("/console/hosts/gpu-01/")
    assert ">Undo<" not in text(as_operator.get("/console/hosts/gpu-01/"))


def test_a_lost_host_is_not_cordoned(as_operator: Client) -> None:
    Host.objects.filter(name="gpu-01").update(state="lost")
    page = text(as_operator.post("/console/hosts/gpu-01/cordon", follow=True))
    assert "gpu-01 is lost: wait until its agent reports again." in page
    assert not acts("host.cordon")


def test_labels_are_replaced_refused_and_taken_back(as_operator: Client) -> None:
    Host.objects.filter(name="gpu-01").update(labels={"zone": "a"})
    page = text(as_operator.post("/console/hosts/gpu-01/labels", {"labels": "zone=b\nrack = r1"}, follow=True))
    assert Host.objects.get(name="gpu-01").labels == {"zone": "b", "rack": "r1"}
    undo(as_operator, page)
    assert Host.objects.get(name="gpu-01").labels == {"zone": "a"}
    for given, why in (
        ("zone", "“zone” is no label"),
        ("=a", "“=a” is no label"),
        ("zone=a\nzone=b", "zone stands there twice"),
        (f"zone={'x' * 201}", "is too long"),
        ("zone=\0", "holds a NUL"),
    ):
        wrong = as_operator.post("/console/hosts/gpu-01/labels", {"labels": given})
        assert wrong.status_code == 400
        assert why in text(wrong)
        assert 'aria-invalid="true"' in text(wrong)
    assert Host.objects.get(name="gpu-01").labels == {"zone": "a"}


def test_a_new_secret_is_asked_about_and_shown_once(as_operator: Client) -> None:
    before = bytes(Host.objects.get(name="gpu-01").secret)
    question = text(as_operator.get("/console/hosts/gpu-01/secret"))
    assert "Within two seconds its agent is refused" in question
    assert bytes(Host.objects.get(name="gpu-01").secret) == before
    answer = as_operator.post("/console/hosts/gpu-01/secret")
    secret = re.search(r"\b[0-9a-f]{64}\b", text(answer))
    assert secret is not None
    assert "no-store" in answer["Cache-Control"]
    assert secret[0] not in text(as_operator.get("/console/hosts/gpu-01/"))
    assert acts("host.renew_secret") == ["host.renew_secret"]


def test_a_join_command_comes_with_a_fresh_token_that_lets_a_host_in(as_operator: Client, settings: Any) -> None:
    settings.PENSTOCK_AGENT_REDIS_URL = "rediss://agent:pw@state.example.org:6380/0"
    form = as_operator.get("/console/hosts/new")
    assert "No other machine can join yet" not in text(form)
    given = {"name": "row 7", "uses": "2", "hours": "1", "labels": "zone=a"}
    answer = as_operator.post("/console/hosts/new", given)
    command = re.search(r">([^<>]*penstock join[^<>]*)</pre>", text(answer))
    assert command is not None
    assert command[1] == "./penstock join http://testserver", "a shell keeps what is typed: no token"
    shown = re.search(r">(pse_\w+)</pre>", text(answer))
    assert shown is not None
    assert text(answer).count(shown[1]) == 1
    token = enrolment_token_find(shown[1])
    assert token is not None
    assert (token.name, token.uses_left, token.labels) == ("row 7", 2, {"zone": "a"})
    assert token.expires_at < timezone.now() + timedelta(hours=1, seconds=5)
    again = text(as_operator.get("/console/hosts/new"))
    assert shown[1] not in again
    assert f"pse_{token.public_id}_…" in again
    arrivals = f"/console/hosts/tokens/{token.pk}/arrivals"
    assert "Waiting for the machine" in text(as_operator.get(arrivals))
    enrolment_token_redeem(token=token, name="rack-1", hardware="NVIDIA L4", memory_bytes=24 * GIB)
    assert "rack-1 has joined; its agent has not reported yet" in text(as_operator.get(arrivals))
    Host.objects.filter(name="rack-1").update(last_report_at=timezone.now(), report={"cores": 8})
    assert "rack-1 has joined and reports" in text(as_operator.get(arrivals))
    question = text(as_operator.get(f"/console/hosts/tokens/{token.pk}/revoke"))
    assert "1 could have" in question
    as_operator.post(f"/console/hosts/tokens/{token.pk}/revoke")
    token.refresh_from_db()
    assert token.revoked_at is not None


def test_one_press_is_enough_for_a_join_command_and_errors_stand_at_their_fields(as_operator: Client) -> None:
    page = text(as_operator.get("/console/hosts/new"))
    assert "PENSTOCK_AGENT_REDIS_URL is not set" in page
    fields = dict(re.findall(r'name="(name|uses)" value="([^"]+)"', page))
    assert as_operator.post("/console/hosts/new", {**fields, "hours": "24"}).status_code == 200
    wrong = as_operator.post("/console/hosts/new", {"name": "x", "uses": "0", "hours": "24", "labels": ""})
    assert wrong.status_code == 400
    assert "greater than or equal to 1" in text(wrong)
    assert EnrolmentToken.objects.count() == 1
