"""Every list, form and row of the admin: it opens, asks few queries and shows no secret."""

from __future__ import annotations

import datetime

from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from capacity.models import BooksState, CostProfile, EnrolmentToken, Host, UsageRecord, Watermark
from capacity.services import enrolment_token_create
from capacity.usage.books import finalise_minutes
from capacity.usage.writer import write_batch
from serving.models import Replica, Revision
from serving.services import incident_open, provider_credential_set, scaling_decision_record
from tenants.crypto import decrypt
from tenants.models import AccessToken, ApiKey, AuditEntry, IdempotentAnswer, Invitation, SignInLink, Tenant
from tenants.services import access_token_create, invitation_create, limit_set, membership_add, sign_in_link_create
from tests import factories
from tests.admin.addresses import change_form, change_list

OURS = ("tenants", "capacity", "serving")
REGISTERED = sorted(
    (model for model in admin.site._registry if model._meta.app_label in OURS), key=lambda model: model._meta.label
)
MOST_QUERIES = 12
"""Of a list page, session and user included, whatever the number of rows."""


def populate(times: int) -> None:
    """``times`` rows at least of every model of ours."""
    for _ in range(times):
        person, tenant = factories.user(), factories.tenant()
        membership_add(tenant=tenant, user=person, actor="t")
        key, _ = factories.api_key(tenant)
        limit_set(tenant=tenant, api_key=key, kind="concurrency", value=4, set_by="tenant", actor="t")
        sign_in_link_create(user=person, actor="t")
        invitation_create(tenant=tenant, email=f"invited.{person.email}", actor=person)
        host = factories.host()
        host.accelerators.create(index=0, uuid="u", name="GPU", memory_bytes=1 << 30)
        deployment = factories.deployment()
        replica = factories.replica(deployment, host=host)
        incident_open(kind="crash", summary="it broke", replica=replica)
        enrolment_token_create(name=f"rack {host.name}", hardware_type=host.hardware_type, actor=person)
        access_token_create(user=person, name=f"token {person.email}", actor="t")
        IdempotentAnswer.objects.create(caller=f"user:{person.pk}", key="k", fingerprint="f", body=b"hidden-value")
        scaling_decision_record(deployment=deployment, before=1, after=2, reason="load", inputs={"offered_mu": 3.0})
        provider_credential_set(name=f"cred {deployment.name}", provider="openai", secret="hidden-value", actor="t")
        profile = deployment.pool.profiles.get()
        tenant.reservations.create(pool=deployment.pool, profile=profile, mu_per_min=5, starts_at=timezone.now())
        traffic = factories.Traffic(tenant=str(tenant.pk), key=str(key.pk), deployment=str(deployment.pk))
        good = traffic.pair(timezone.now().timestamp() - 300)
        bad = traffic.pair(timezone.now().timestamp() - 300, mu=-1.0)
        write_batch(factories.batch(good, bad, segment=f"seg {deployment.name}"))
    finalise_minutes(timezone.now())


def test_every_model_has_an_admin() -> None:
    from django.apps import apps

    wanted = {model for label in OURS for model in apps.get_app_config(label).get_models()}
    assert wanted == set(REGISTERED)


def test_lists_do_not_ask_more_with_more_rows(client: Client) -> None:
    populate(1)
    counts: dict[str, int] = {}
    for model in REGISTERED:
        with CaptureQueriesContext(connection) as queries:
            assert client.get(change_list(model)).status_code == 200, model
        counts[model._meta.label] = len(queries)
    populate(3)
    for model in REGISTERED:
        with CaptureQueriesContext(connection) as queries:
            response = client.get(change_list(model))
        assert response.status_code == 200, model
        assert len(queries) <= counts[model._meta.label], (model, [q["sql"][:120] for q in queries])
        assert len(queries) <= MOST_QUERIES, model


def test_every_row_opens_and_no_secret_shows(client: Client) -> None:
    populate(1)
    secrets = [*ApiKey.objects.values_list("digest", flat=True), *SignInLink.objects.values_list("digest", flat=True)]
    secrets += AccessToken.objects.values_list("digest", flat=True)
    secrets += EnrolmentToken.objects.values_list("digest", flat=True)
    secrets += Invitation.objects.values_list("digest", flat=True)
    secrets += [decrypt(host.secret).hex() for host in Host.objects.all()] + ["hidden-value"]
    secrets += [bytes(host.secret).decode() for host in Host.objects.all()]
    for model in REGISTERED:
        row = model._default_manager.first()
        if row is None:
            continue
        for url in (change_list(model), change_form(row)):
            response = client.get(url)
            assert response.status_code == 200, url
            shown = response.content.decode()
            assert not [secret for secret in secrets if secret in shown], url


def test_search_works_on_every_list_that_offers_it(client: Client) -> None:
    populate(1)
    for model in REGISTERED:
        if admin.site._registry[model].search_fields:
            assert client.get(change_list(model), {"q": "a b"}).status_code == 200, model


def test_histories_cannot_be_written(client: Client) -> None:
    populate(1)
    for model in (AuditEntry, UsageRecord, CostProfile, Revision, Watermark, BooksState):
        row = model._default_manager.first()
        assert row is not None
        assert client.post(change_form(row), {"reason": "x"}).status_code == 403, model
        delete = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_delete", args=[row.pk])
        assert client.post(delete, {"post": "yes"}).status_code == 403, model


def test_members_who_are_no_operators_stay_out(db: None) -> None:
    client = Client()
    client.force_login(factories.user())
    response = client.get(change_list(Tenant))
    assert response.status_code == 302
    assert "login" in response.headers["Location"]


def test_the_admin_signs_in_where_guessing_is_slowed_down(db: None) -> None:
    response = Client().get("/admin/login/", {"next": "/admin/"})
    assert response.status_code == 302
    assert response.headers["Location"].startswith(reverse("sign-in"))


def test_replicas_show_their_state(client: Client) -> None:
    replica = factories.replica()
    page = client.get(change_list(Replica)).content.decode()
    assert str(replica) in page
    assert "Pending" in page


def test_expired_and_revoked_keys_are_filtered(client: Client) -> None:
    factories.api_key(name="fresh")
    key, _ = factories.api_key(name="stale")
    past = timezone.now() - datetime.timedelta(days=2)
    ApiKey.objects.filter(pk=key.pk).update(created_at=past, expires_at=past + datetime.timedelta(days=1))
    expired = client.get(change_list(ApiKey), {"state": "expired"}).content.decode()
    assert "stale" in expired
    assert "fresh" not in expired
