"""From the models to the published snapshot: every change, in order, and nothing that is not there any more."""

import json
from datetime import timedelta

import pytest
import redis
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from capacity.models import CostProfile, HardwareType, Model, Pool, Reservation
from penstock import publish
from penstock.loops.lease import acquire
from serving.models import Deployment, Replica, Revision
from tenants.changes import record_change
from tenants.models import ApiKey, Lease, Limit, Tenant
from tests.penstock.publishing import check, make_key, make_tenant, published


def test_everything_a_gateway_needs_is_published(state, served):
    pool, deployment, revision, replicas = served
    tenant = make_tenant()
    key = make_key(tenant)
    Limit.objects.create(tenant=tenant, kind="requests_per_min", value=60, set_by="operator")
    Limit.objects.create(tenant=tenant, api_key=key, kind="concurrency", value=3, model="demo", set_by="tenant")
    publish.publish_pending()
    check(state)
    assert published(state, "tenant")[str(tenant.pk)]["limits"][0]["value"] == 60.0
    record = published(state, "key")["abc"]
    assert (record["uuid"], record["tenant"], record["pepper"]) == (str(key.pk), str(tenant.pk), 1)
    assert [(limit["kind"], limit["model"]) for limit in record["limits"]] == [("concurrency", "demo")]
    assert published(state, "pool")[str(pool.pk)]["profile"]["long_input_tiers"] == [[8000, 2.0]]
    record = published(state, "deployment")[str(deployment.pk)]
    assert (record["name"], record["label"], record["max_model_len"]) == ("demo", "simulated", 1000)
    assert record["revision"] == str(revision.pk)
    assert set(published(state, "replica")) == {str(replica.pk) for replica in replicas}
    assert published(state, "replica")[str(replicas[0].pk)]["target_concurrency"] == 7


def test_what_is_lent_to_whom_and_how_fast_it_comes_back_is_published(state, served):
    pool = served[0]
    tenant = make_tenant()
    publish.publish_pending()
    assert "best_effort" not in published(state, "tenant")[str(tenant.pk)], "it may, as always"
    record = published(state, "pool")[str(pool.pk)]
    assert "best_effort" not in record
    assert record.get("best_effort_wait_s", 5.0) == 5.0
    # 8,192 tokens of 0.001 MU, of 372 ms each, and 0.35 s.
    assert record["claw_back_s"] == 3.4
    Pool.objects.filter(pk=pool.pk).update(best_effort=False, tolerable_wait_s=7.5, ttft_objective_ms=400)
    Tenant.objects.filter(pk=tenant.pk).update(best_effort=False)
    Model.objects.filter(pk=pool.model_id).update(context_tokens=20_000)
    record_change(kind="pool", object_id=pool.pk)
    record_change(kind="tenant", object_id=tenant.pk)
    publish.publish_pending()
    record = published(state, "pool")[str(pool.pk)]
    assert (record["best_effort"], record["best_effort_wait_s"], record["ttft_objective_ms"]) == (False, 7.5, 400.0)
    assert record["claw_back_s"] == 7.8
    assert published(state, "tenant")[str(tenant.pk)]["best_effort"] is False


def test_what_is_sold_is_published_from_the_sale_until_it_is_over(state, served):
    pool, tenant = served[0], make_tenant()
    starts = timezone.now() + timedelta(days=1)
    fields = {"pool": pool, "tenant": tenant, "profile": pool.profiles.get(), "mu_per_min": 60.0, "starts_at": starts}
    wish = Reservation.objects.create(**fields, state="requested")
    row = Reservation.objects.create(**fields, state="draft", burst_mu=25.0, ends_at=starts + timedelta(days=2))
    for one in (wish, row):
        record_change(kind="reservation", object_id=one.pk)
    publish.publish_pending()
    check(state)
    assert list(published(state, "reservation")) == [str(row.pk)]
    record = published(state, "reservation")[str(row.pk)]
    assert (record["tenant"], record["pool"]) == (str(tenant.pk), str(pool.pk))
    assert (record["mu_per_min"], record["burst_mu"], record["profile"]["version"]) == (60.0, 25.0, 1)
    assert record["starts_at"] == starts.timestamp()
    assert record["ends_at"] - record["starts_at"] == 2 * 86400
    Reservation.objects.filter(pk=row.pk).update(state="ended")
    record_change(kind="reservation", object_id=row.pk)
    publish.publish_pending()
    check(state)
    assert not published(state, "reservation")


@pytest.mark.parametrize(
    ("runtime", "options", "speaks"),
    [
        ("simulated", {}, ["generate"]),
        ("vllm", {"tensor_parallel_size": 2}, ["generate"]),
        ("vllm", {"task": "embed", "accelerators": 1}, ["embed", "score"]),
        ("mlflow", {"memory_bytes": 1}, ["invocations"]),
        ("command", {"argv": ["s"], "speaks": ["http"]}, ["http"]),
        ("command", {"argv": []}, []),
        ("vllm", ["no", "object"], ["generate"]),
    ],
)
def test_what_a_deployment_speaks_is_published(state, served, runtime, options, speaks):
    _, deployment, revision, _ = served
    Revision.objects.filter(pk=revision.pk).update(is_current=False)
    new = Revision.objects.create(
        deployment=deployment, number=2, runtime=runtime, options=options, target_concurrency=7
    )
    Replica.objects.filter(deployment=deployment).update(revision=new)
    publish.publish_pending()
    check(state)
    record = published(state, "deployment")[str(deployment.pk)]
    assert record.get("speaks", ["generate"]) == speaks
    assert "invocations_path" not in record, "where it is the usual one"


def test_where_a_server_of_its_own_is_asked_is_published(state, served):
    _, deployment, revision, _ = served
    Revision.objects.filter(pk=revision.pk).update(is_current=False)
    options = {"argv": ["s"], "speaks": ["http"], "invocations_path": "/v2/models/m/infer"}
    new = Revision.objects.create(
        deployment=deployment, number=2, runtime="command", options=options, target_concurrency=7
    )
    Replica.objects.filter(deployment=deployment).update(revision=new)
    publish.publish_pending()
    check(state)
    assert published(state, "deployment")[str(deployment.pk)]["invocations_path"] == "/v2/models/m/infer"


def test_a_change_is_published_once_and_only_what_changed(state, served):
    publish.publish_all()
    tenant = make_tenant()
    key = make_key(tenant)
    assert publish.publish_pending() == 2
    assert publish.publish_pending() == 0
    before = int(state.hget("penstock:snap:meta", "version"))
    ApiKey.objects.filter(pk=key.pk).update(revoked_at=timezone.now())
    record_change(kind="key", object_id=key.pk)
    record_change(kind="tenant", object_id=tenant.pk)
    assert publish.publish_pending() == 1
    (entry,) = state.xrange("penstock:snap:log", min=f"({before}-0")
    assert entry[0] == f"{before + 1}-0".encode()
    ((kind, name, record),) = json.loads(entry[1][b"delta"])
    assert (kind, name, record["revoked"]) == ("key", "abc", True)
    check(state)


def test_what_is_gone_is_removed(state, served):
    _, deployment, _, replicas = served
    tenant = make_tenant()
    key = make_key(tenant)
    publish.publish_pending()
    gone = [("key", key.pk), ("tenant", tenant.pk)]
    tenant.delete()
    Replica.objects.filter(pk=replicas[1].pk).update(state="stopped")
    gone.append(("replica", replicas[1].pk))
    for kind, pk in gone:
        record_change(kind=kind, object_id=pk)
    assert publish.publish_pending() == 4
    assert published(state, "key") == published(state, "tenant") == {}
    assert list(published(state, "replica")) == [str(replicas[0].pk)]
    assert published(state, "deployment")[str(deployment.pk)]["max_model_len"] == 2000, "its dependant moved too"
    assert state.hgetall("penstock:snap:key-ids") == {}
    Deployment.objects.filter(pk=deployment.pk).update(is_enabled=False)
    record_change(kind="deployment", object_id=deployment.pk)
    publish.publish_pending()
    assert published(state, "deployment")[str(deployment.pk)]["is_stopped"], "owners' requests count while it is"
    Deployment.objects.filter(pk=deployment.pk).update(removed_at=timezone.now())
    record_change(kind="deployment", object_id=deployment.pk)
    publish.publish_pending()
    assert published(state, "deployment") == {}
    check(state)


def test_an_emptied_state_is_filled_again(state, served):
    publish.publish_pending()
    before = state.hgetall("penstock:snap:replica")
    state.flushall()
    assert publish.publish_pending() == 4
    assert state.hgetall("penstock:snap:replica") == before
    check(state)


def test_a_state_that_fell_back_is_mended(state, served):
    """The newest second of the state was lost with the power: its version is older than the database's."""
    publish.publish_pending()
    dumps = {name: state.dump(name) for name in state.keys("penstock:snap:*")}
    tenant = make_tenant()
    publish.publish_pending()
    for name in state.keys("penstock:snap:*"):
        state.delete(name)
    for name, dump in dumps.items():
        state.restore(name, 0, dump)
    assert publish.publish_pending() == 1
    assert list(published(state, "tenant")) == [str(tenant.pk)]
    check(state)


def test_a_rebuild_removes_strangers_and_heals_the_digest(state, served):
    publish.publish_pending()
    stranger = {"id": "x", "slug": "x"}
    state.hset("penstock:snap:tenant", "x", json.dumps(stranger))
    state.set("penstock:snap:rebuild", "1")
    assert publish.publish_pending() == 1
    assert published(state, "tenant") == {}
    check(state)


def test_what_another_version_has_built_is_built_anew_once(state, served, monkeypatch):
    """A record says more after an upgrade, though nobody has changed the object."""
    publish.publish_pending()
    before = state.hgetall("penstock:snap:tenant") | state.hgetall("penstock:snap:replica")
    name, raw = next(iter(state.hgetall("penstock:snap:replica").items()))
    state.hset("penstock:snap:replica", name, raw.replace(b"supply", b"former"))
    state.hset("penstock:snap:meta", "shape", "of another")
    assert publish.publish_pending() == 0, "it has asked already"
    monkeypatch.setattr(publish, "_has_asked", False)
    # Another publisher, perhaps of the version before, has the turn: it is asked again.
    holder = acquire(publish.LEASE, now=timezone.now(), limit_s=60)
    assert publish.publish_pending() == 0
    Lease.objects.filter(name=publish.LEASE, holder=holder).update(until=timezone.now())
    assert publish.publish_pending() == 1
    state.hset("penstock:snap:meta", "shape", "of another")
    assert publish.publish_pending() == 0, "it has built everything once"
    state.hdel("penstock:snap:meta", "shape")
    assert state.hgetall("penstock:snap:tenant") | state.hgetall("penstock:snap:replica") == before
    monkeypatch.setattr(publish, "_has_asked", False)
    assert publish.publish_pending() == 0
    check(state)


def test_a_profile_comes_into_force_on_its_day(state, served, monkeypatch):
    pool, *_ = served
    CostProfile.objects.create(
        pool=pool,
        version=2,
        hardware_type=HardwareType.objects.get(),
        effective_from=timezone.now() + timedelta(hours=1),
        alpha=0.5,
        beta=0.5,
        replica_mu_per_min=250.0,
    )
    record_change(kind="pool", object_id=pool.pk)
    publish.publish_pending()
    assert published(state, "pool")[str(pool.pk)]["profile"]["version"] == 1
    assert publish.publish_pending() == 0
    later = timezone.now() + timedelta(hours=1, seconds=1)
    monkeypatch.setattr(publish.timezone, "now", lambda: later)
    assert publish.publish_pending() == 2
    assert published(state, "pool")[str(pool.pk)]["profile"]["version"] == 2
    assert next(iter(published(state, "deployment").values()))["replica_mu_per_min"] == 250.0
    assert publish.publish_pending() == 0
    check(state)


def test_a_quiet_second_costs_a_few_queries_and_says_that_it_is_current(state, served):
    Tenant.objects.bulk_create(Tenant(slug=f"t{i}", name=f"t{i}") for i in range(300))
    publish.publish_all()
    first = float(state.hget("penstock:snap:meta", "published_at"))
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert publish.publish_pending() == 0
    assert len(queries) <= 3
    assert not any('"tenants_tenant"' in query["sql"] for query in queries)
    assert float(state.hget("penstock:snap:meta", "published_at")) > first


def test_many_keys_are_published_in_versions_of_bounded_size(state):
    tenant = make_tenant()
    ApiKey.objects.bulk_create(
        ApiKey(tenant=tenant, name="k", public_id=f"id{i}", digest="0" * 64, pepper=1, scopes=[]) for i in range(1200)
    )
    assert publish.publish_all() == 1201
    assert state.hlen("penstock:snap:key") == 1200
    assert max(len(json.loads(f[b"delta"])) for _, f in state.xrange("penstock:snap:log")) <= 500
    check(state)


def test_a_version_that_does_not_follow_is_refused(state, served):
    publish.publish_pending()
    state.hset("penstock:snap:meta", "version", "7777")
    meta = publish._read_meta(state)._replace(version=3)
    with pytest.raises(publish.Outdated):
        publish._apply(state, meta, 4, [], now=timezone.now(), is_whole=True)


def test_a_busy_lease_leaves_it_to_the_other(state, served):
    publish.publish_all()
    make_tenant()
    with publish._turn() as held:
        assert held
        assert publish.publish_pending() == 0
    assert publish.publish_pending() == 1


def test_a_nudge_never_raises(settings, db, caplog):
    settings.REDIS_URL = "unix:///nowhere/at/all.sock"
    make_tenant()
    publish.nudge()
    assert "not published yet" in caplog.text


def test_a_commit_nudges(state, served, django_capture_on_commit_callbacks):
    publish.publish_all()
    with django_capture_on_commit_callbacks(execute=True):
        tenant = make_tenant()
        assert str(tenant.pk) not in published(state, "tenant")
    assert str(tenant.pk) in published(state, "tenant")


def test_connection_errors_are_not_swallowed_by_the_tick(settings, db):
    settings.REDIS_URL = "unix:///nowhere/at/all.sock"
    with pytest.raises(redis.ConnectionError):
        publish.publish_pending()
