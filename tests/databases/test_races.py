"""Compare-and-swap holds when many try at once: exactly one wins. Threads with connections of their own."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from capacity.models import Host, Pool, Reservation, UsageRecord, UsageRollup, Watermark
from capacity.policy.profiles import default_profile
from capacity.services import (
    host_cordon,
    host_enrol,
    model_create,
    pool_create,
    pool_remove,
    pool_tenants_set,
    profile_add,
)
from capacity.usage.writer import WriteResult, write_batch
from penstock.demo import seed_demo
from serving.models import Deployment, Incident, Replica
from serving.services import deployment_create, deployment_remove, incident_open, replica_transition, revision_create
from tenants.models import ApiKey, AuditEntry, Limit, Membership, TakenError, Tenant, User
from tenants.needed import StillNeeded
from tenants.services import (
    SignInLinkError,
    api_key_revoke,
    api_key_rotate,
    limit_remove,
    limit_set,
    membership_add,
    membership_change,
    sign_in_link_create,
    sign_in_link_redeem,
    tenant_create,
    user_create,
)
from tenants.signin import sign_in_by_password
from tests import factories
from tests.capacity.test_writer import T, check_rollups
from tests.factories import Traffic, batch, race

pytestmark = pytest.mark.django_db(transaction=True)

THREADS = 6


def test_one_of_many_transitions_wins() -> None:
    replica = factories.replica(host=factories.host())
    copies = [Replica.objects.get(pk=replica.pk) for _ in range(THREADS)]

    def move(copy: Replica, index: int) -> bool:
        return replica_transition(replica=copy, to="ready", reason=f"thread {index}", address=f"http://h:{index}")

    outcomes = race(*[lambda c=copy, i=index: move(c, i) for index, copy in enumerate(copies)])  # type: ignore[misc]
    assert outcomes.count(True) == 1, outcomes
    assert outcomes.count(False) == THREADS - 1
    replica.refresh_from_db()
    assert replica.reason == f"thread {outcomes.index(True)}"
    assert replica.address == f"http://h:{outcomes.index(True)}"
    assert AuditEntry.objects.filter(action="replica.ready").count() == 1


def test_one_of_many_redeems_the_link() -> None:
    person = factories.user()
    token = sign_in_link_create(user=person, actor="t")
    outcomes = race(*[lambda: sign_in_link_redeem(token)] * THREADS)
    assert [out for out in outcomes if isinstance(out, User)] == [person]
    assert sum(isinstance(out, SignInLinkError) for out in outcomes) == THREADS - 1


def test_one_of_many_revokes_and_cordons() -> None:
    key, _ = factories.api_key()
    host = factories.host()
    assert race(*[lambda: api_key_revoke(key=ApiKey.objects.get(pk=key.pk), actor="t")] * THREADS).count(True) == 1
    assert race(*[lambda: host_cordon(host=host, actor="t")] * THREADS).count(True) == 1


def test_a_key_is_rotated_once() -> None:
    key, _ = factories.api_key()
    copies = [ApiKey.objects.get(pk=key.pk) for _ in range(THREADS)]
    outcomes = race(*[lambda c=copy: api_key_rotate(key=c, actor="t") for copy in copies])  # type: ignore[misc]
    assert sum(isinstance(out, ValidationError) for out in outcomes) == THREADS - 1, outcomes
    assert ApiKey.objects.count() == 2


def test_versions_and_numbers_never_collide() -> None:
    pool = factories.pool()
    deployment = factories.deployment(pool=pool)
    profile = default_profile()

    def add() -> int:
        own = Pool.objects.get(pk=pool.pk)
        return profile_add(pool=own, hardware_type=factories.hardware(), profile=profile, actor="t").version

    assert sorted(race(*[add] * THREADS)) == list(range(2, THREADS + 2))
    numbers = race(*[lambda: revision_create(deployment=deployment, runtime="vllm", actor="t").number] * THREADS)
    assert sorted(numbers) == list(range(2, THREADS + 2))
    assert deployment.revisions.filter(is_current=True).get().number == THREADS + 1


def test_a_pool_restricted_by_two_is_open_to_one_list_only() -> None:
    pool = factories.pool()
    tenants = [factories.tenant() for _ in range(THREADS)]

    def restrict(tenant: Tenant) -> None:
        own = Pool.objects.get(pk=pool.pk)
        pool_tenants_set(pool=own, tenants=[tenant], is_public=False, actor="t")

    outcomes = race(*[lambda t=tenant: restrict(t) for tenant in tenants])  # type: ignore[misc]
    assert outcomes == [None] * THREADS
    (left,) = pool.tenants.all()
    newest = AuditEntry.objects.filter(action="pool.set_tenants").order_by("-at")[0]
    assert newest.after["tenants"] == [str(left.pk)]
    pool.refresh_from_db()
    assert pool.version == THREADS + 2


def test_two_owners_cannot_both_leave() -> None:
    tenant = Tenant.objects.get(pk=factories.tenant().pk)
    owners = [membership_add(tenant=tenant, user=factories.user(), role="owner", actor="t") for _ in range(4)]
    outcomes = race(
        *[lambda m=owner: membership_change(membership=m, role="viewer", actor="t") for owner in owners]  # type: ignore[misc]
    )
    assert sum(isinstance(out, ValidationError) for out in outcomes) == 1, outcomes
    assert Membership.objects.filter(tenant=tenant, role="owner").count() == 1


def test_a_limit_set_and_removed_by_many_is_one_limit() -> None:
    tenant = factories.tenant()

    def put(value: int) -> int:
        return limit_set(tenant=tenant, kind="tokens_per_min", value=value, set_by="operator", actor="t").value

    outcomes = race(*[lambda v=value: put(v) for value in range(1, THREADS + 1)])  # type: ignore[misc]
    assert sorted(outcomes, key=str) == list(range(1, THREADS + 1)), outcomes
    limit = Limit.objects.get()
    copies = [Limit.objects.get(pk=limit.pk) for _ in range(THREADS)]
    removed = race(*[lambda c=copy: limit_remove(limit=c, actor="t") for copy in copies])  # type: ignore[misc]
    assert removed.count(True) == 1, removed
    assert removed.count(False) == THREADS - 1, removed
    assert AuditEntry.objects.filter(action="limit.remove").count() == 1


def test_guessing_at_once_does_not_slip_past_the_limit(settings: object) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # type: ignore[attr-defined]
    person = factories.user(password="the right one, long")
    tries = race(*[lambda: sign_in_by_password(email=person.email, password="wrong", address="192.0.2.1").message] * 12)
    looked_at = [message for message in tries if isinstance(message, str) and "is wrong" in message]
    assert len(looked_at) <= 5, tries
    assert len(tries) == 12


def test_the_same_batch_in_parallel_is_written_once() -> None:
    sent = batch(*[Traffic().pair(T + second) for second in range(40)])
    outcomes = race(*[lambda: write_batch(sent)] * THREADS)
    assert all(isinstance(out, WriteResult) for out in outcomes), outcomes
    assert sorted(out.written for out in outcomes) == [0] * (THREADS - 1) + [40]
    assert UsageRecord.objects.count() == 40
    check_rollups()


def test_many_gateways_write_into_the_same_rows() -> None:
    """Overlapping batches of several segments, each sent twice, onto the same roll-up rows."""
    rng = random.Random(7)
    traffics = [Traffic() for _ in range(3)]
    sent = []
    for segment in range(3):
        for sequence in (1, 2):
            pairs = [rng.choice(traffics).pair(T + rng.uniform(0, 240)) for _ in range(20)]
            sent.append(batch(*pairs, segment=f"s{segment}", sequence=sequence, watermark=T + sequence))
    outcomes = race(*[lambda b=usage_batch: write_batch(b) for usage_batch in sent + sent])  # type: ignore[misc]
    assert all(isinstance(out, WriteResult) for out in outcomes), outcomes
    assert sum(out.written for out in outcomes) == 120
    assert sum(row.requests for row in UsageRollup.objects.filter(period="day")) == 120
    check_rollups()
    for usage_batch in sent:
        write_batch(usage_batch)
    assert set(Watermark.objects.values_list("sequence", flat=True)) == {2}


def test_an_incident_is_opened_once() -> None:
    replica = factories.replica()
    outcomes = race(*[lambda: incident_open(kind="hang", summary="no tokens", replica=replica)] * THREADS)
    assert {out.pk for out in outcomes} == {Incident.objects.get().pk}
    assert AuditEntry.objects.filter(action="incident.open").count() == 1


def test_the_demo_is_seeded_once() -> None:
    outcomes = race(*[lambda: seed_demo(engine="simulated")] * 3)
    assert [getattr(out, "is_new", None) for out in outcomes].count(True) == 1
    assert Tenant.objects.count() == 2
    assert User.objects.count() == 5


def test_of_many_who_make_the_same_one_does_and_the_others_are_told_at_the_field() -> None:
    """PostgreSQL lets all of them look before the first has written: its constraint decides, in words for people."""
    model, pool, hardware = factories.model(), factories.pool(), factories.hardware()
    makers: dict[str, tuple[str, Callable[[], object]]] = {
        "tenants": ("slug", lambda: tenant_create(name="Same", actor="t")),
        "users": ("email", lambda: user_create(email="same@example.org", actor="t")),
        "hosts": ("name", lambda: host_enrol(name="same", hardware_type=hardware, actor="t")),
        "models": ("slug", lambda: model_create(name="Same", artifact_kind="tiny", actor="t")),
        "pools": ("slug", lambda: pool_create(model=model, slug="same", hardware_type=hardware, actor="t")),
        "deployments": ("name", lambda: deployment_create(pool=pool, name="same", runtime="simulated", actor="t")),
    }
    for noun, (field, make) in makers.items():
        outcomes = race(*[make] * THREADS)
        refused = [one for one in outcomes if isinstance(one, ValidationError)]
        assert len(refused) == THREADS - 1, (noun, outcomes)
        assert all(list(one.message_dict) == [field] for one in refused), (noun, refused)
        assert all("already" in one.message_dict[field][0] for one in refused), (noun, refused)


def test_a_constraint_that_only_the_database_has_seen_is_told_at_its_field() -> None:
    """Without any race: what is checked beforehand is passed over."""
    tenant = factories.tenant(name="Same")
    with pytest.raises(TakenError) as refused, transaction.atomic():
        Tenant(name="Other", slug=tenant.slug).save(force_insert=True)
    assert refused.value.message_dict == {"slug": ["Tenant with this Slug already exists."]}
    host = factories.host(name="same")
    with pytest.raises(TakenError) as refused, transaction.atomic():
        Host(name="same", hardware_type=host.hardware_type, secret=b"x").save(force_insert=True)
    assert refused.value.message_dict == {"name": ["There is a host of this name already."]}
    assert isinstance(refused.value, IntegrityError), "who waits for the database's word still hears it"


def test_nothing_is_made_of_what_is_being_removed() -> None:
    for _ in range(3):
        pool = factories.pool()
        outcomes = race(
            lambda pool=pool: pool_remove(pool=pool, actor="t"),
            lambda pool=pool: deployment_create(pool=pool, name=f"on {pool.slug}", runtime="simulated", actor="t"),
        )
        is_removed = not Pool.objects.filter(pk=pool.pk).exists()
        is_served = Deployment.objects.filter(pool=pool.pk).exists()
        assert is_removed != is_served, outcomes


def test_of_two_that_serve_what_is_sold_one_stays_when_both_are_removed_at_once() -> None:
    for index in range(4):
        pool = factories.pool()
        Reservation.objects.create(
            tenant=factories.tenant(),
            pool=pool,
            profile=pool.profiles.get(),
            mu_per_min=1.0,
            burst_mu=1.0,
            starts_at=timezone.now(),
            state="active",
        )
        both = [factories.deployment(pool=pool, name=f"served-{index}-{which}") for which in "ab"]
        outcomes = race(*[lambda one=one: deployment_remove(deployment=one, actor="t") for one in both])  # type: ignore[misc]
        assert outcomes.count(True) == 1, outcomes
        assert [type(one) for one in outcomes if one is not True] == [StillNeeded]
        assert Deployment.objects.filter(pool=pool, is_enabled=True).count() == 1
