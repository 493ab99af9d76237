"""Every page, for every role, with figures, empty, and with the state down."""

import re
from datetime import timedelta

import pytest
import redis
from django.db import connection
from django.test import Client
from django.urls import URLResolver, get_resolver
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from capacity.models import Host
from penstock.web.csp import POLICY
from serving.models import Deployment, Replica
from tenants.models import AuditEntry, Tenant, User
from tests.web.seed import Seeded

PAGES = {
    "home": "/",
    "sign-in": "/sign-in/",
    "sign-in-link": "/sign-in/link/some-token",
    "invitation": "/invitations/some-token",
    "sign-out": "/sign-out/",
    "console": "/console/",
    "console-live": "/console/live",
    "console-series": "/console/series.json",
    "console-accelerators": "/console/accelerators.json?hardware=h200",
    "style-guide": "/console/style-guide/",
    "tenants": "/tenants/",
    "tokens": "/tokens",
    "token-revoke": "/tokens/{deployment}/revoke",
    "tenant": "/t/{tenant}/",
    "tenant-series": "/t/{tenant}/series.json?pool=chat-32b",
    "tenant-gauge": "/t/{tenant}/gauge?pool=chat-32b",
    "tenant-refusals": "/t/{tenant}/refusals.json",
    "healthz": "/healthz",
    "admin/login/": "/admin/login/",
    "admin/password_change/": "/admin/password_change/",
}
OPERATOR_PAGES = ("console", "console-live", "console-series", "console-accelerators", "style-guide")
TENANT_PAGES = ("tenant", "tenant-series", "tenant-gauge", "tenant-refusals")


def path_of(name: str, platform: Seeded) -> str:
    return PAGES[name].format(deployment=platform.chat.pk, tenant=platform.northwind.slug)


def test_every_url_of_the_control_plane_is_in_the_table_of_this_test() -> None:
    all_of_it = get_resolver().url_patterns
    # Each has a table and walls of its own: test_operator_walls, test_tenant_walls, tests/api/test_schema, the admin's.
    tables = {str(pattern.pattern) for pattern in all_of_it if isinstance(pattern, URLResolver)}
    assert tables == {"console/", "t/<slug:slug>/", "api/", "admin/"}
    patterns = [pattern for pattern in all_of_it if not isinstance(pattern, URLResolver)]
    assert {pattern.name or str(pattern.pattern) for pattern in patterns} == set(PAGES)


@pytest.mark.parametrize("name", [*OPERATOR_PAGES, *TENANT_PAGES, "tenants", "tokens", "home"])
def test_a_visitor_is_sent_to_sign_in(client: Client, platform: Seeded, name: str) -> None:
    answer = client.get(path_of(name, platform))
    assert answer.status_code == 302
    assert answer["Location"].startswith("/sign-in/")


def test_a_fragment_of_a_visitor_tells_the_page_to_go_to_sign_in(client: Client, db: None) -> None:
    answer = client.get("/console/live", headers={"HX-Request": "true"})
    assert (answer.status_code, answer["HX-Redirect"]) == (401, "/sign-in/")


@pytest.mark.parametrize("name", OPERATOR_PAGES)
def test_operator_pages_are_forbidden_to_members(client: Client, platform: Seeded, name: str) -> None:
    client.force_login(platform.owner)
    answer = client.get(path_of(name, platform))
    assert answer.status_code == 403
    assert b"northwind" not in answer.content


@pytest.mark.parametrize("name", TENANT_PAGES)
def test_the_pages_of_a_tenant_do_not_exist_for_others(client: Client, platform: Seeded, name: str) -> None:
    client.force_login(platform.stranger)
    answer = client.get(path_of(name, platform))
    assert answer.status_code == 404
    assert b"Northwind" not in answer.content


@pytest.mark.parametrize("name", TENANT_PAGES)
@pytest.mark.parametrize("who", ["owner", "viewer", "operator"])
def test_members_and_operators_see_the_tenant(client: Client, platform: Seeded, name: str, who: str) -> None:
    client.force_login(getattr(platform, who))
    assert client.get(path_of(name, platform)).status_code == 200


def test_an_operator_in_a_tenant_is_marked_as_such(client: Client, platform: Seeded) -> None:
    client.force_login(platform.operator)
    assert b"seen as operator" in client.get("/t/northwind/").content
    client.force_login(platform.owner)
    assert b"seen as operator" not in client.get("/t/northwind/").content


def test_a_private_pool_is_no_ones_but_its_tenants(client: Client, platform: Seeded) -> None:
    pool = platform.chat.pool
    pool.is_public = False
    pool.save()
    pool.tenants.add(platform.northwind)
    client.force_login(platform.stranger)
    assert client.get("/t/alder/series.json?pool=chat-32b").status_code == 404
    assert b'"model": "chat-32b"' not in client.get("/t/alder/?model=chat-32b").content
    client.force_login(platform.owner)
    assert client.get("/t/northwind/series.json?pool=chat-32b").status_code == 200


@pytest.mark.parametrize(
    ("who", "target"), [("operator", "/console/"), ("owner", "/t/northwind/"), ("viewer", "/t/northwind/")]
)
def test_home_goes_to_where_the_work_is(client: Client, platform: Seeded, who: str, target: str) -> None:
    client.force_login(getattr(platform, who))
    assert client.get("/")["Location"] == target


def test_home_offers_the_choice_between_several_tenants(client: Client, platform: Seeded) -> None:
    platform.owner.memberships.create(tenant=platform.alder, role="viewer")
    client.force_login(platform.owner)
    answer = client.get("/", follow=True)
    assert answer.redirect_chain[-1][0] == "/tenants/"
    assert b"Northwind Bank" in answer.content
    assert b"Alder Health" in answer.content


def test_a_user_without_a_tenant_is_told_what_to_do(client: Client, db: None) -> None:
    client.force_login(User.objects.create_user("new@somewhere.example"))
    answer = client.get("/", follow=True)
    assert b"You belong to no tenant" in answer.content
    assert b"new@somewhere.example" in answer.content


def test_the_chooser_searches(client: Client, platform: Seeded) -> None:
    platform.owner.memberships.create(tenant=platform.alder, role="viewer")
    client.force_login(platform.owner)
    answer = client.get("/tenants/?q=alder").content.decode()
    table = answer[answer.index("<table>") :]
    assert "Alder Health" in table
    assert "Northwind" not in table
    assert b"No tenant has" in client.get("/tenants/?q=zzz").content


def test_operators_have_a_list_of_tenants_of_their_own(as_operator: Client) -> None:
    assert as_operator.get("/tenants/")["Location"] == "/console/tenants/"


def test_the_console_opens_with_its_answer(as_operator: Client) -> None:
    page = as_operator.get("/console/").content.decode()
    # chat-32b has 3 and demo-sim 2 ready reference replicas; 150 + 90 of 100 MU/min are sold.
    assert re.search(r"We have 5 replica-equivalents, have sold 2\.40 and use [1-4]\.\d+\.", page)
    assert page.count('class="badge">simulated') == 1
    assert "41 of 65 GB" in page
    assert "not enough memory for a KV cache" in page
    assert "253 MU/min offered needs 3.4 replicas" in page
    assert "A replica of chat-32b hung" in page


def test_one_pool_is_told_in_its_own_model_units(as_operator: Client, platform: Seeded) -> None:
    platform.sim.replicas.all().delete()
    platform.sim.delete()
    page = as_operator.get("/console/").content.decode()
    assert re.search(r"We have 300 MU/min of chat-32b, have sold 240 and use \d+", page)


def test_live_figures_come_from_the_rings(as_operator: Client, platform: Seeded, state: redis.Redis) -> None:
    key = f"penstock:ring:deployment:{platform.chat.pk}"
    state.delete(key)
    now = timezone.now().timestamp()
    # 30 samples of 2 MU and 4 requests a second: 120 MU/min and 4 requests/s.
    for back in reversed(range(30)):
        state.lpush(
            key, f'{{"at": {now - back}, "offered_mu": 2, "offered_requests": 4, "in_flight": 17, "refused": 0.5}}'
        )
    answer = as_operator.get("/console/")
    row = next(row for row in answer.context["console"].deployments if row.deployment == platform.chat)
    assert row.now.offered_mu_per_min == pytest.approx(120)
    assert row.now.requests_per_s == pytest.approx(4)
    assert row.now.refused_per_s == pytest.approx(0.5)
    assert row.now.in_flight == 17
    assert row.offered_share == pytest.approx(0.4)


def test_requests_in_flight_are_those_that_the_gateways_hold(
    as_operator: Client, platform: Seeded, state: redis.Redis
) -> None:
    rows = as_operator.get("/console/").context["console"].replicas
    held = [row.in_flight for row in rows if row.deployment == platform.chat and row.state == "ready"]
    assert sorted(held) == [11, 11, 12]
    state.delete("penstock:gw:gateway-1")
    rows = as_operator.get("/console/").context["console"].replicas
    assert sum(row.in_flight for row in rows if row.deployment == platform.chat and row.state == "ready") == 19
    state.delete("penstock:gw:gateway-0")
    rows = as_operator.get("/console/").context["console"].replicas
    assert {row.in_flight for row in rows} == {None}


def test_a_failed_replica_is_shown_until_a_younger_one_is_ready(as_operator: Client, platform: Seeded) -> None:
    failed = Replica.objects.filter(state="failed").first()
    assert failed is not None
    shown = {row.id for row in as_operator.get("/console/").context["console"].replicas}
    assert failed.pk in shown
    younger = Replica.objects.filter(state="ready").first()
    assert younger is not None
    created_at = failed.state_since + timedelta(seconds=1)
    Replica.objects.filter(pk=younger.pk).update(deployment=failed.deployment, created_at=created_at)
    shown = {row.id for row in as_operator.get("/console/").context["console"].replicas}
    assert failed.pk not in shown
    assert younger.pk in shown


def test_only_streams_have_a_time_to_the_first_token(as_operator: Client, platform: Seeded) -> None:
    before = as_operator.get("/console/").context["console"].deployments
    assert any(row.ttft_p95_ms is not None for row in before)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE capacity_usagerecord SET stream = %s", [False])
    assert {row.ttft_p95_ms for row in as_operator.get("/console/").context["console"].deployments} == {None}
    latest = as_operator.get("/t/northwind/").context["data"].latest
    assert {row.ttft_ms for row in latest} == {None}


def test_the_console_is_useful_with_the_state_down(as_operator: Client, no_state: None) -> None:
    answer = as_operator.get("/console/")
    page = answer.content.decode()
    assert answer.status_code == 200
    assert "The shared state does not answer" in page
    assert "chat-32b" in page
    assert "gpu-01" in page
    assert as_operator.get("/console/series.json?range=6h").status_code == 200


def test_the_console_says_that_the_observe_loop_has_stopped(
    as_operator: Client, platform: Seeded, state: redis.Redis
) -> None:
    old = timezone.now().timestamp() - 34
    for row in (platform.chat, platform.sim):
        state.delete(f"penstock:ring:deployment:{row.pk}")
        state.lpush(f"penstock:ring:deployment:{row.pk}", f'{{"at": {old}}}')
    Host.objects.update(last_report_at=timezone.now() - timedelta(seconds=34))
    page = as_operator.get("/console/").content.decode()
    assert "Loads are 34 s old" in page
    assert "is silent" not in page


def test_a_silent_host_is_called_out(as_operator: Client) -> None:
    Host.objects.filter(name="gpu-02").update(last_report_at=timezone.now() - timedelta(seconds=64))
    assert "gpu-02 is silent for 1 min 4 s" in as_operator.get("/console/").content.decode()


def test_an_empty_platform_says_what_to_do_next(client: Client, state: redis.Redis, db: None) -> None:
    client.force_login(User.objects.create_user("op@penstock.example", is_operator=True))
    page = client.get("/console/").content.decode()
    assert "Nothing is deployed yet" in page
    assert "/console/deployments/new" in page
    assert "/console/hosts/new" in page
    assert "No host yet" in page
    assert "penstock up" in page
    assert "There is no tenant yet" in client.get("/console/tenants/").content.decode()


def test_above_twenty_replicas_the_cards_become_a_table(as_operator: Client, platform: Seeded) -> None:
    revision = platform.sim.revisions.get()
    for _ in range(20):
        Replica.objects.create(
            deployment=platform.sim,
            revision=revision,
            host=Host.objects.get(name="node-01"),
            state="ready",
            address="http://127.0.0.1:9000",
            state_since=timezone.now(),
        )
    page = as_operator.get("/console/").content.decode()
    assert 'class="reps"' not in page
    assert page.count('<tr id="r-') == 27


# The charts' tables are of the page alone: what moves asks every two seconds.
@pytest.mark.parametrize(("path", "most"), [("/console/", 34), ("/console/live", 20)])
def test_the_console_asks_the_database_as_often_for_many_as_for_few(
    as_operator: Client, platform: Seeded, django_assert_num_queries: DjangoAssertNumQueries, path: str, most: int
) -> None:
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(
        connection,
    ) as few:
        as_operator.get(path)
    assert len(few) <= most
    pool = platform.chat.pool
    for index in range(8):
        deployment = Deployment.objects.create(pool=pool, name=f"more-{index}")
        revision = deployment.revisions.create(number=1, runtime="simulated")
        Replica.objects.create(deployment=deployment, revision=revision, state_since=timezone.now())
        Tenant.objects.create(slug=f"tenant-{index}", name=f"Tenant {index}")
    with django_assert_num_queries(len(few)):
        as_operator.get(path)


def test_the_dashboard_asks_the_database_as_often_for_many_as_for_few(
    client: Client, platform: Seeded, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    client.force_login(platform.owner)
    with django_assert_max_num_queries(27):
        client.get("/t/northwind/")


def test_retry_raises_the_attempt_and_leaves_an_audit_entry(as_operator: Client, platform: Seeded) -> None:
    answer = as_operator.post(f"/console/deployments/{platform.chat.pk}/retry", follow=True)
    platform.chat.refresh_from_db()
    assert platform.chat.retry_attempt == 1
    assert AuditEntry.objects.filter(action="deployment.retry", actor_id=platform.operator.pk).count() == 1
    assert "failed replicas start again" in answer.content.decode()


def test_retry_is_for_operators_and_by_post_only(client: Client, platform: Seeded) -> None:
    path = f"/console/deployments/{platform.chat.pk}/retry"
    client.force_login(platform.owner)
    assert client.post(path).status_code == 403
    client.force_login(platform.operator)
    assert client.get(path).status_code == 405
    checked = Client(enforce_csrf_checks=True)
    checked.force_login(platform.operator)
    assert checked.post(path).status_code == 403
    platform.chat.refresh_from_db()
    assert platform.chat.retry_attempt == 0


@pytest.mark.parametrize("name", [*OPERATOR_PAGES, "tokens", "tenant"])
def test_pages_carry_the_policy_and_nothing_inline(as_operator: Client, platform: Seeded, name: str) -> None:
    answer = as_operator.get(path_of(name, platform))
    assert answer["Content-Security-Policy"] == POLICY
    assert "no-store" in answer["Cache-Control"]
    body = answer.content.decode()
    assert not re.search(r"\sstyle=|<style|\son\w+=|<script>|javascript:", body)
    assert not re.search(r'(?:src|href)="(?:https?:)?//', body)


def test_the_admin_has_a_policy_of_its_own(as_operator: Client) -> None:
    docs = as_operator.get("/api/docs")["Content-Security-Policy"]
    assert "script-src 'self';" in docs
    assert "style-src 'self' 'unsafe-inline'" in docs
    assert "unsafe-inline" in as_operator.get("/admin/")["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/console/", "/t/northwind/", "/console/tenants/", "/console/style-guide/"])
def test_pages_can_be_used_by_keyboard_and_screen_reader(as_operator: Client, path: str) -> None:
    body = as_operator.get(path).content.decode()
    assert '<html lang="en">' in body
    assert '<a class="skip" href="#main">' in body
    assert 'id="main"' in body
    assert body.count("<h1") == 1
    assert 'aria-current="page"' in body
    identifiers = re.findall(r'\sid="([^"]+)"', body)
    assert len(identifiers) == len(set(identifiers))
    for label in re.findall(r'aria-labelledby="([^"]+)"', body):
        assert label in identifiers
    for button in re.findall(r"<button[^>]*>.*?</button>", body, re.S):
        assert "aria-label=" in button or re.sub(r"<[^>]+>", "", button).strip(), button
    for inside in re.findall(r"<(?:input|select)[^>]*>", body):
        assert 'type="hidden"' in inside or re.search(r'id="([^"]+)"', inside)


def test_the_admin_signs_in_at_the_same_door_and_turns_members_away(client: Client, platform: Seeded) -> None:
    answer = client.get("/admin/", follow=True)
    assert answer.redirect_chain[-1][0] == "/sign-in/?next=%2Fadmin%2F"
    client.force_login(platform.owner)
    answer = client.get("/admin/", follow=True)
    assert answer.status_code == 403
    assert b"The admin is for operators" in answer.content


def test_error_pages_are_in_the_look(client: Client, db: None) -> None:
    answer = client.get("/nothing-here")
    assert answer.status_code == 404
    assert b"There is no such page" in answer.content
    assert b"tokens.css" in answer.content


def test_a_fault_shows_no_traceback(client: Client, db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret-detail")

    monkeypatch.setattr("penstock.web.console.gather", explode)
    client.force_login(User.objects.create_user("op@penstock.example", is_operator=True))
    client.raise_request_exception = False
    answer = client.get("/console/")
    assert answer.status_code == 500
    assert b"secret-detail" not in answer.content
    assert b"Something broke on our side" in answer.content
