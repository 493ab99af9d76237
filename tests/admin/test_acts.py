"""What is done in the admin: by its forms and actions, through the services, with secrets shown once."""

from __future__ import annotations

import re
from typing import Any

from django.db import models
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from capacity.models import EnrolmentToken, Host, Pool, QuarantinedUsage, Reservation, UsageRecord
from capacity.services import reservation_request
from capacity.usage.writer import write_batch
from serving.models import Deployment, ProviderCredential
from tenants.crypto import decrypt
from tenants.models import ApiKey, AuditEntry, Invitation, Limit, Membership, SignInLink, User
from tenants.services import limit_set
from tests import factories, selling
from tests.admin.addresses import change_form, change_list


def act(client: Client, row: models.Model, action: str, *others: models.Model, confirmed: bool) -> Any:
    data = {"action": action, "_selected_action": [str(each.pk) for each in (row, *others)]}
    return client.post(change_list(type(row)), {**data, "confirmed": "yes"} if confirmed else data)


def test_revoking_asks_first_and_goes_through_the_service(client: Client, operator: User) -> None:
    key, _ = factories.api_key()
    page = act(client, key, "revoke", confirmed=False)
    assert b"it cannot be undone" in page.content
    key.refresh_from_db()
    assert key.revoked_at is None
    assert act(client, key, "revoke", confirmed=True).status_code == 302
    key.refresh_from_db()
    assert key.revoked_at is not None
    assert AuditEntry.objects.get(action="api_key.revoke").actor == operator.email


def test_an_action_on_several_rows_is_done_for_all_or_for_none(client: Client) -> None:
    """A rotated key's new secret is shown on the answer's page only: without that page there must be no new key."""
    good, _ = factories.api_key(name="a good one")
    revoked, _ = factories.api_key(name="b revoked one")
    act(client, revoked, "revoke", confirmed=True)
    page = client.get(act(client, good, "rotate", revoked, confirmed=True).headers["Location"])
    assert b"is revoked, expired or rotated already" in page.content
    assert set(ApiKey.objects.all()) == {good, revoked}
    good.refresh_from_db()
    assert (good.expires_at, good.rotated_at) == (None, None)
    shown = act(client, good, "rotate", confirmed=True)
    assert b"mu_" in shown.content
    assert ApiKey.objects.count() == 3


def test_a_new_key_is_shown_once_and_works(client: Client) -> None:
    tenant = factories.tenant()
    data = {"tenant": tenant.pk, "name": "from the admin", "scopes": '["inference"]', "models_allowed": "[]"}
    response = client.post(reverse("admin:tenants_apikey_add"), {**data, "allowed_ips": "[]"})
    assert response.status_code == 200, response.headers
    text = re.search(r"mu_[A-Za-z0-9]+_[A-Za-z0-9]+", response.content.decode())
    assert text is not None
    assert "no-store" in response.headers["Cache-Control"]
    assert text[0].split("_")[1] == ApiKey.objects.get().public_id
    assert text[0] not in client.get(change_form(ApiKey.objects.get())).content.decode()


def test_an_enrolment_token_is_shown_once_and_revoked(client: Client) -> None:
    data = {"name": "row 7", "labels": '{"zone": "a"}', "uses_left": "3"}
    data |= {"expires_at_0": "2100-01-01", "expires_at_1": "00:00:00"}
    response = client.post(reverse("admin:capacity_enrolmenttoken_add"), data)
    assert response.status_code == 200, response.headers
    text = re.search(r"pse_[A-Za-z0-9]+_[A-Za-z0-9]+", response.content.decode())
    assert text is not None
    token = EnrolmentToken.objects.get()
    assert (token.uses_left, token.labels, token.is_usable) == (3, {"zone": "a"}, True)
    assert text[0] not in client.get(change_form(token)).content.decode()
    assert act(client, token, "revoke", confirmed=True).status_code == 302
    token.refresh_from_db()
    assert not token.is_usable


def test_a_bad_scope_is_said_at_its_field(client: Client) -> None:
    data = {"tenant": factories.tenant().pk, "name": "x", "scopes": '["root"]', "models_allowed": "[]"}
    response = client.post(reverse("admin:tenants_apikey_add"), {**data, "allowed_ips": "[]"})
    assert response.status_code == 200
    assert b"Unknown scope" in response.content
    assert not ApiKey.objects.exists()


def test_a_sign_in_link_made_in_the_admin_signs_in(client: Client) -> None:
    person = factories.user()
    page = act(client, person, "create_sign_in_link", confirmed=True).content.decode()
    link = re.search(r"https?://testserver(/sign-in/link/[^<\s]+)", page)
    assert link is not None
    assert SignInLink.objects.get(user=person).used_at is None


def test_an_invitation_made_in_the_admin_has_a_link_shown_once(client: Client) -> None:
    form = {"tenant": factories.tenant().pk, "email": "New@example.org", "role": "viewer"}
    answer = client.post(reverse("admin:tenants_invitation_add"), form)
    assert "no-store" in answer.headers["Cache-Control"]
    link = re.search(r"https?://testserver(/invitations/[^<\s]+)", answer.content.decode())
    assert link is not None
    invitation = Invitation.objects.get(email="new@example.org")
    assert b"new@example.org" in Client().get(link[1]).content
    act(client, invitation, "revoke", confirmed=True)
    assert Client().get(link[1]).status_code == 410


def test_hosts_are_cordoned_and_deployments_retried(client: Client) -> None:
    host, deployment = factories.host(), factories.deployment()
    act(client, host, "cordon", confirmed=True)
    act(client, deployment, "retry", confirmed=True)
    host.refresh_from_db()
    deployment.refresh_from_db()
    assert host.state == Host.State.CORDONED
    assert deployment.retry_attempt == 1
    assert AuditEntry.objects.filter(action__in=("host.cordon", "deployment.retry")).count() == 2


def test_pools_and_deployments_are_made_by_form(client: Client) -> None:
    model, hardware = factories.model(), factories.hardware()
    form = {
        "name": "New pool",
        "slug": "new-pool",
        "model": model.pk,
        "hardware_type": hardware.pk,
        "is_public": "on",
        "ttft_objective_ms": 800,
        "tpot_objective_ms": 40,
        "tolerable_wait_s": 5,
        "slo_share": 0.01,
        "oversell_factor": 1.5,
        "adoption_error_limit": 0.15,
        "profiles-TOTAL_FORMS": 0,
        "profiles-INITIAL_FORMS": 0,
    }
    response = client.post(reverse("admin:capacity_pool_add"), form)
    assert response.status_code == 302, response.context["adminform"].form.errors
    pool = Pool.objects.get(slug="new-pool")
    assert not pool.profiles.get().calibrated
    bare = {"name": "served", "pool": pool.pk, "runtime": "simulated", "options": "{}", "target_concurrency": 8}
    management = {f"{name}-{kind}_FORMS": 0 for name in ("revisions", "replicas") for kind in ("TOTAL", "INITIAL")}
    bounds = {"min_replicas": 3, "max_replicas": 2, "cold_start_s": 10, **management}
    response = client.post(reverse("admin:serving_deployment_add"), {**bare, **bounds})
    assert b"must be at least the minimum" in response.content
    response = client.post(reverse("admin:serving_deployment_add"), {**bare, **bounds, "max_replicas": 4})
    assert response.status_code == 302, response.context["adminform"].form.errors
    deployment = Deployment.objects.get()
    assert deployment.revisions.get().target_concurrency == 8
    changed = {"name": "another", "min_replicas": 1, "max_replicas": 9, "cold_start_s": 10, **management}
    response = client.post(change_form(deployment), {**changed, "revisions-TOTAL_FORMS": 0})
    assert response.status_code == 302, response.context["adminform"].form.errors
    deployment.refresh_from_db()
    assert deployment.max_replicas == 9
    assert deployment.name == "served", "its replicas were launched under that name"
    assert AuditEntry.objects.get(action="deployment.update").after == {"min_replicas": 1, "max_replicas": 9}


def test_the_last_owner_cannot_be_removed(client: Client) -> None:
    owner = factories.user()
    tenant = factories.tenant(owner=owner)
    membership = Membership.objects.get(tenant=tenant)
    act(client, membership, "remove", confirmed=True)
    assert Membership.objects.filter(pk=membership.pk).exists()
    response = client.post(change_form(membership), {"role": "viewer"}, follow=True)
    assert b"keeps at least one owner" in response.content
    membership.refresh_from_db()
    assert membership.role == "owner"


def test_a_credential_is_written_and_never_read(client: Client) -> None:
    form = {"name": "openai", "provider": "openai", "base_url": "https://api.example.org", "new_secret": "sk-first"}
    assert client.post(reverse("admin:serving_providercredential_add"), form).status_code == 302
    credential = ProviderCredential.objects.get()
    assert decrypt(credential.secret) == b"sk-first"
    changed = {"provider": "other", "base_url": "https://api.example.org", "new_secret": ""}
    assert client.post(change_form(credential), changed).status_code == 302
    credential.refresh_from_db()
    assert (credential.provider, decrypt(credential.secret)) == ("other", b"sk-first")
    assert "sk-first" not in str(list(AuditEntry.objects.values()))


def test_a_quarantined_request_is_booked_again_from_the_admin(client: Client) -> None:
    traffic = factories.Traffic()
    admit, end = traffic.pair(timezone.now().timestamp() - 5)
    end.actual_mu = -1.0
    write_batch(factories.batch((admit, end)))
    item = QuarantinedUsage.objects.get()
    act(client, item, "retry", confirmed=True)
    item.refresh_from_db()
    assert item.resolved_at is None
    item.payload = item.payload.replace("-1.0", "1.0")
    item.save()
    act(client, item, "retry", confirmed=True)
    item.refresh_from_db()
    assert item.resolution == "booked"
    assert UsageRecord.objects.get().actual_mu == 1.0


def test_limits_are_changed_in_place(client: Client) -> None:
    key, _ = factories.api_key()
    limit = limit_set(tenant=key.tenant, api_key=key, kind="requests_per_min", value=10, set_by="tenant", actor="t")
    assert client.post(change_form(limit), {"value": 25}).status_code == 302
    assert Limit.objects.get().value == 25
    response = client.post(change_form(limit), {"value": 0})
    assert b"at least 1" in response.content


def test_an_operator_sets_the_operators_limit_and_sees_what_holds(client: Client) -> None:
    tenant = factories.tenant()
    limit_set(tenant=tenant, kind="concurrency", value=10, set_by="tenant", actor="t")
    form = client.get(reverse("admin:tenants_limit_add")).content.decode()
    assert '<option value="operator" selected' in form
    sent = {
        "tenant": str(tenant.pk),
        "api_key": "",
        "kind": "concurrency",
        "model": "",
        "value": 20,
        "set_by": "operator",
    }
    assert client.post(reverse("admin:tenants_limit_add"), sent).status_code == 302
    page = client.get(change_list(Limit)).content.decode()
    assert page.count("The smaller one beside it holds") == 1
    stored = Limit.objects.get(set_by="operator")
    assert "The smaller one beside it holds" in client.get(change_form(stored)).content.decode()
    assert client.post(change_form(stored), {"value": 5}).status_code == 302
    assert {(one.set_by, one.value, one.is_in_force) for one in Limit.objects.all()} == {
        ("operator", 5, True),
        ("tenant", 10, False),
    }


def test_reservations_are_decided_about_by_the_services_and_never_oversold(client: Client, operator: User) -> None:
    selling.host("node-1")
    pool = selling.pool("Chat")
    selling.serve(pool, name="chat")
    tenant = factories.tenant()
    small, large, unwanted = (
        reservation_request(tenant=tenant, pool=pool, mu_per_min=mu, actor="t") for mu in (200.0, 500.0, 1.0)
    )
    page = client.get(act(client, small, "approve", large, confirmed=True).headers["Location"])
    assert re.search(rb"Short by [24]00 MU/min", page.content), "with how much is missing"
    assert {row.state for row in Reservation.objects.all()} == {"requested"}, "none of them, where one does not fit"
    assert act(client, small, "approve", confirmed=True).status_code == 302
    small.refresh_from_db()
    assert (small.state, small.verdict, small.decided_by) == ("active", "fits", operator.email)
    assert AuditEntry.objects.get(action="reservation.approve").actor == operator.email
    act(client, unwanted, "refuse", confirmed=True)
    unwanted.refresh_from_db()
    assert (unwanted.state, unwanted.reason) == ("refused", "An operator declined it.")
    act(client, unwanted, "restore", confirmed=True)
    act(client, unwanted, "cancel", confirmed=True)
    unwanted.refresh_from_db()
    assert unwanted.state == "cancelled"
    page = client.get(act(client, small, "restore", confirmed=True).headers["Location"])
    assert b"can" in page.content
    small.refresh_from_db()
    assert small.state == "active"


def test_nothing_of_a_reservation_can_be_typed(client: Client) -> None:
    tenant, deployment = factories.tenant(), factories.deployment()
    row = tenant.reservations.create(
        pool=deployment.pool,
        profile=deployment.pool.profiles.get(),
        mu_per_min=5,
        burst_mu=1,
        starts_at=timezone.now(),
        note="for the shop",
    )
    client.post(change_form(row), {"mu_per_min": 500, "state": "active", "verdict": "fits"})
    assert client.post(reverse("admin:capacity_reservation_add"), {"mu_per_min": 500}).status_code == 403
    row.refresh_from_db()
    assert (row.mu_per_min, row.state) == (5.0, "draft")
    page = client.get(f"{change_list(Reservation)}?q=shop&state__exact=draft")
    assert b"for the shop" in page.content
    assert b"for the shop" not in client.get(f"{change_list(Reservation)}?q=nothing").content
