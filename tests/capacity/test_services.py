"""Hosts, models, pools and prices."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from capacity.models import CostProfile, HardwareType, Host, Model, Pool, Reservation
from capacity.models.pools import BUILT_IN
from capacity.policy.cost import CostProfile as Price
from capacity.selectors import profile_in_force, profiles_in_force
from capacity.services import (
    hardware_type_get_or_create,
    host_cordon,
    host_enrol,
    host_secret_renew,
    host_uncordon,
    model_create,
    model_update,
    pool_create,
    pool_tenants_set,
    pool_update,
    profile_add,
    profile_restore,
    profile_withdraw,
    reservations_end,
)
from penstock.crypto import rotate_field_keys
from serving.models import ProviderCredential
from serving.services import provider_credential_set
from tenants.crypto import DecryptionError, decrypt, encrypt
from tenants.models import AuditEntry, Change
from tests import factories
from worker.weights import TINY_NAMES

pytestmark = pytest.mark.django_db

PRICE = Price(version=1, base=0.1, alpha=0.01, beta=0.05, gamma=0.0, epsilon=0.0, cached_factor=0.1)


def test_a_hosts_secret_is_encrypted_at_rest() -> None:
    host, secret = host_enrol(name="rack-1", hardware_type=factories.hardware(), actor="t", labels={"zone": "a"})
    stored = Host.objects.get(pk=host.pk)
    assert secret not in bytes(stored.secret)
    assert decrypt(stored.secret) == secret
    assert len(secret) == 32
    fresh = host_secret_renew(host=stored, actor="t")
    assert decrypt(Host.objects.get(pk=host.pk).secret) == fresh != secret
    assert secret.hex() not in str(list(AuditEntry.objects.values()))
    with pytest.raises(ValidationError) as error:
        host_enrol(name="rack-1", hardware_type=factories.hardware(), actor="t")
    assert list(error.value.message_dict) == ["name"]


def test_field_keys_are_rotated_and_old_ones_dropped(settings: Any) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.PENSTOCK_FIELD_KEYS = (old,)
    host, secret = host_enrol(name="h", hardware_type=factories.hardware(), actor="t")
    provider_credential_set(name="c", provider="p", secret="sk", actor="t")
    settings.PENSTOCK_FIELD_KEYS = (new, old)
    assert rotate_field_keys(actor="t") == {"capacity.host": 1, "serving.providercredential": 1}
    settings.PENSTOCK_FIELD_KEYS = (new,)
    assert decrypt(Host.objects.get(pk=host.pk).secret) == secret
    assert decrypt(ProviderCredential.objects.get().secret) == b"sk"
    settings.PENSTOCK_FIELD_KEYS = (old,)
    with pytest.raises(DecryptionError, match="PENSTOCK_FIELD_KEYS"):
        decrypt(Host.objects.get(pk=host.pk).secret)


def test_the_key_of_a_removed_host_is_rotated_until_it_is_forgotten(settings: Any) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.PENSTOCK_FIELD_KEYS = (old,)
    (waiting, secret), (told, _) = (
        host_enrol(name=name, hardware_type=factories.hardware(), actor="t") for name in ("waiting", "told")
    )
    Host.objects.filter(pk=told.pk).update(removed_at=timezone.now(), secret=b"")
    Host.objects.filter(pk=waiting.pk).update(removed_at=timezone.now())
    settings.PENSTOCK_FIELD_KEYS = (new, old)
    assert rotate_field_keys(actor="t")["capacity.host"] == 1
    settings.PENSTOCK_FIELD_KEYS = (new,)
    assert decrypt(Host.everything.get(pk=waiting.pk).secret) == secret, "its last orders can be sealed"
    assert bytes(Host.everything.get(pk=told.pk).secret) == b""


def test_a_secret_that_no_key_opens_keeps_no_other_from_its_new_key(settings: Any) -> None:
    lost, old, new = (Fernet.generate_key().decode() for _ in range(3))
    settings.PENSTOCK_FIELD_KEYS = (lost,)
    host_enrol(name="shut", hardware_type=factories.hardware(), actor="t")
    settings.PENSTOCK_FIELD_KEYS = (old,)
    host, secret = host_enrol(name="open", hardware_type=factories.hardware(), actor="t")
    provider_credential_set(name="c", provider="p", secret="sk", actor="t")
    settings.PENSTOCK_FIELD_KEYS = (new, old)
    for _ in range(2):
        with pytest.raises(DecryptionError, match="opens the secrets of host shut: add the key"):
            rotate_field_keys(actor="t")
    settings.PENSTOCK_FIELD_KEYS = (new,)
    assert decrypt(Host.objects.get(pk=host.pk).secret) == secret
    assert decrypt(ProviderCredential.objects.get().secret) == b"sk"


def test_encryption_does_not_repeat_itself() -> None:
    assert encrypt(b"same") != encrypt(b"same")


def test_hosts_are_cordoned_by_swap() -> None:
    host = factories.host()
    assert host_cordon(host=host, actor="t")
    assert not host_cordon(host=host, actor="t")
    assert host_uncordon(host=host, actor="t")
    Host.objects.filter(pk=host.pk).update(state=Host.State.LOST)
    assert not host_uncordon(host=host, actor="t")
    assert not host_cordon(host=host, actor="t")


def test_hardware_of_a_name_is_made_once() -> None:
    first = hardware_type_get_or_create(name="NVIDIA H100", memory_bytes=80 << 30, actor="t")
    assert hardware_type_get_or_create(name="NVIDIA H100", actor="t") == first
    assert HardwareType.objects.count() == 1
    with pytest.raises(ValidationError) as error:
        hardware_type_get_or_create(name="odd", memory_bytes=-1, actor="t")
    assert list(error.value.message_dict) == ["memory_bytes"]


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"artifact_kind": "path"}, "artifact_value"),
        ({"artifact_kind": "tiny", "artifact_value": "huge"}, "artifact_value"),
        ({"artifact_kind": "floppy", "artifact_value": "a"}, "artifact_kind"),
        ({"parameters": 0}, "parameters"),
        ({"context_tokens": 0}, "context_tokens"),
    ],
)
def test_a_bad_model_is_refused_at_its_field(fields: dict[str, Any], at: str) -> None:
    with pytest.raises(ValidationError) as error:
        model_create(**{"name": "M", "artifact_kind": "tiny", "actor": "t", **fields})
    assert at in error.value.message_dict


def test_there_are_three_built_in_models() -> None:
    assert set(BUILT_IN) == set(TINY_NAMES), "the agent builds what the control plane offers"
    for value in BUILT_IN:
        assert factories.model(artifact_kind="tiny", artifact_value=value).artifact_value == value


def test_a_model_is_changed_with_an_audit_entry() -> None:
    model = factories.model()
    model_update(model=model, actor="t", parameters=8_000_000_000)
    assert AuditEntry.objects.get(action="model.update").after == {"parameters": 8_000_000_000}


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"oversell_factor": 0.5}, "oversell_factor"),
        ({"slo_share": 1.0}, "slo_share"),
        ({"tolerable_wait_s": 0.0}, "tolerable_wait_s"),
        ({"ttft_objective_ms": 0}, "ttft_objective_ms"),
        ({"tpot_objective_ms": 0}, "tpot_objective_ms"),
    ],
)
def test_a_bad_pool_is_refused_at_its_field(fields: dict[str, Any], at: str) -> None:
    with pytest.raises(ValidationError) as error:
        pool_create(model=factories.model(), hardware_type=factories.hardware(), actor="t", **fields)
    assert list(error.value.message_dict) == [at]
    assert not Pool.objects.exists()


def test_a_pool_begins_with_an_uncalibrated_price_from_size_and_hardware() -> None:
    gpu = hardware_type_get_or_create(name="NVIDIA H100", memory_bytes=80 << 30, actor="t")
    small = pool_create(model=factories.model(parameters=1_000_000_000), hardware_type=gpu, actor="t")
    large = pool_create(model=factories.model(parameters=70_000_000_000), hardware_type=gpu, actor="t")
    first, second = small.profiles.get(), large.profiles.get()
    assert not first.calibrated
    assert (first.version, first.replica_mu_per_min) == (1, 100.0)
    assert 0 < first.alpha < second.alpha
    assert first.beta > first.alpha


def test_prices_are_versions_from_a_date() -> None:
    pool = factories.pool()
    now = timezone.now()
    soon = now + datetime.timedelta(days=1)
    added = profile_add(pool=pool, hardware_type=factories.hardware(), profile=PRICE, effective_from=soon, actor="t")
    assert (added.version, added.alpha) == (2, 0.01)
    assert profile_in_force(pool_id=pool.pk, at=now) == pool.profiles.get(version=1)
    assert profile_in_force(pool_id=pool.pk, at=soon) == added
    assert profiles_in_force(at=soon + datetime.timedelta(hours=1)) == {pool.pk: added}
    assert profiles_in_force(at=now - datetime.timedelta(days=9)) == {}
    assert pool.version == 3
    assert Change.objects.filter(kind="pool", object_id=pool.pk).count() == 2


def test_a_price_is_withdrawn_until_it_is_in_force() -> None:
    pool = factories.pool()
    first, hour = pool.profiles.get(), datetime.timedelta(hours=1)
    soon, hardware = timezone.now() + hour, factories.hardware()
    added = profile_add(
        pool=pool, hardware_type=hardware, profile=PRICE, effective_from=soon, price_per_1000_mu=7.0, actor="t"
    )
    with pytest.raises(ValidationError, match="Version 1 is in force since"):
        profile_withdraw(profile=first, actor="t")
    with pytest.raises(ValidationError, match="Version 2 is not withdrawn"):
        profile_restore(profile=added, actor="t")
    profile_withdraw(profile=added, actor="t")
    assert profile_in_force(pool_id=pool.pk, at=soon + hour) == first
    assert profiles_in_force(at=soon + hour) == {pool.pk: first}
    with pytest.raises(ValidationError, match="Version 2 is withdrawn already"):
        profile_withdraw(profile=added, actor="t")
    profile_restore(profile=added, actor="t")
    assert profile_in_force(pool_id=pool.pk, at=soon + hour) == added
    profile_withdraw(profile=added, actor="t")
    third = profile_add(pool=pool, hardware_type=hardware, profile=PRICE, effective_from=soon, actor="t")
    assert (third.version, third.price_per_1000_mu) == (3, first.price_per_1000_mu), "what was withdrawn is no model"
    CostProfile.objects.filter(pk=added.pk).update(withdrawn_at=timezone.now() - 3 * hour)
    models.QuerySet(CostProfile).filter(pk=added.pk).update(effective_from=timezone.now() - hour)
    with pytest.raises(ValidationError, match="which has passed"):
        profile_restore(profile=CostProfile.objects.get(pk=added.pk), actor="t")
    acts = AuditEntry.objects.filter(object_id=str(added.pk)).order_by("at", "id")
    assert [row.action.split(".")[1] for row in acts] == ["add", "withdraw", "restore", "withdraw"]


def test_a_price_that_would_never_count_is_refused() -> None:
    pool = factories.pool()
    first = pool.profiles.get()
    hour = datetime.timedelta(hours=1)

    def add(effective_from: datetime.datetime) -> CostProfile:
        hardware = factories.hardware()
        return profile_add(pool=pool, hardware_type=hardware, profile=PRICE, effective_from=effective_from, actor="t")

    with pytest.raises(ValidationError, match="Version 1 is in force since") as error:
        add(first.effective_from - hour)
    assert list(error.value.message_dict) == ["effective_from"]
    pool.refresh_from_db()
    assert (pool.version, pool.profiles.count()) == (2, 1)
    later = add(timezone.now() + 3 * hour)
    between = add(timezone.now() + hour)
    assert profile_in_force(pool_id=pool.pk, at=timezone.now() + 2 * hour) == between
    assert profile_in_force(pool_id=pool.pk, at=timezone.now() + 4 * hour) == later


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"modalities": {"image_tile": -1}}, "modalities"),
        ({"long_input_tiers": [[1000, 0.5]]}, "long_input_tiers"),
        ({"long_input_tiers": [[1000, 3.0], [2000, 2.0]]}, "long_input_tiers"),
        ({"long_input_tiers": "no"}, "long_input_tiers"),
        ({"alpha": float("nan")}, "alpha"),
        ({"replica_mu_per_min": 0.0}, "replica_mu_per_min"),
        ({"cached_factor": 1.5}, "cached_factor"),
        ({"alpha": 0.0, "beta": 0.0}, "alpha"),
    ],
)
def test_a_bad_price_is_refused_at_its_field(fields: dict[str, Any], at: str) -> None:
    pool = factories.pool()
    row = CostProfile(
        **{
            "pool": pool,
            "version": 9,
            "hardware_type": factories.hardware(),
            "effective_from": timezone.now(),
            "alpha": 0.1,
            "beta": 0.2,
            **fields,
        }
    )
    with pytest.raises(ValidationError) as error:
        row.full_clean()
    assert at in error.value.message_dict


def test_who_may_use_a_pool_is_audited_and_told() -> None:
    pool, tenant = factories.pool(), factories.tenant()
    version = pool.version
    pool_tenants_set(pool=pool, tenants=[tenant], is_public=False, actor="t")
    pool_tenants_set(pool=pool, tenants=[tenant], is_public=False, actor="t")
    pool.refresh_from_db()
    assert list(pool.tenants.all()) == [tenant]
    assert pool.version == version + 1
    assert AuditEntry.objects.get(action="pool.set_tenants").after == {"is_public": False, "tenants": [str(tenant.pk)]}
    pool_update(pool=pool, actor="t", oversell_factor=1.5)
    assert pool.version == version + 2


def test_nobody_is_locked_out_of_what_they_have_reserved() -> None:
    pool, owner, other = factories.pool(), factories.tenant(), factories.tenant()
    row = Reservation.objects.create(
        tenant=owner, pool=pool, profile=pool.profiles.get(), mu_per_min=5.0, starts_at=pool.created_at, state="active"
    )
    with pytest.raises(ValidationError, match=f"Reservations of {owner.slug} are not over"):
        pool_tenants_set(pool=pool, tenants=[other], is_public=False, actor="t")
    assert (pool.is_public, pool.tenants.count()) == (True, 0)
    pool_tenants_set(pool=pool, tenants=[other, owner], is_public=False, actor="t")
    with pytest.raises(ValidationError, match="list them too"):
        pool_tenants_set(pool=pool, tenants=[], actor="t")
    Reservation.objects.filter(pk=row.pk).update(state="ended")
    pool_tenants_set(pool=pool, tenants=[], actor="t")
    assert pool.tenants.count() == 0


def test_who_may_use_a_new_pool_is_audited() -> None:
    tenant = factories.tenant()
    pool = factories.pool(is_public=False, tenants=[tenant])
    entry = AuditEntry.objects.get(action="pool.create", object_id=str(pool.pk))
    assert (entry.after["is_public"], entry.after["tenants"]) == (False, [str(tenant.pk)])


def test_who_may_use_a_pool_is_not_taken_from_a_stale_page() -> None:
    pool, tenant = factories.pool(), factories.tenant()
    stale = Pool.objects.get(pk=pool.pk)
    pool_tenants_set(pool=pool, is_public=False, actor="t")
    pool_tenants_set(pool=stale, tenants=[tenant], actor="t")
    assert (stale.is_public, Pool.objects.get(pk=pool.pk).is_public) == (False, False)
    newest = AuditEntry.objects.filter(action="pool.set_tenants").order_by("-at")[0]
    assert (newest.before, newest.after) == ({"tenants": []}, {"tenants": [str(tenant.pk)]})


def test_changes_of_pools_and_models_are_told_as_they_are() -> None:
    pool, model = factories.pool(), factories.model()
    stale_pool, stale_model = Pool.objects.get(pk=pool.pk), Model.objects.get(pk=model.pk)
    pool_update(pool=pool, actor="t", oversell_factor=1.5)
    model_update(model=model, actor="t", parameters=7)
    pool_update(pool=stale_pool, actor="t", keep_spare=False)
    model_update(model=stale_model, actor="t", context_tokens=9)
    assert AuditEntry.objects.filter(action="pool.update").order_by("-at")[0].after == {"keep_spare": False}
    assert AuditEntry.objects.filter(action="model.update").order_by("-at")[0].after == {"context_tokens": 9}
    assert (stale_pool.oversell_factor, stale_model.parameters) == (1.5, 7)


def test_a_reservation_ends_with_its_time_in_the_audit_and_for_the_pool() -> None:
    pool, now = factories.pool(), timezone.now()
    day = datetime.timedelta(days=1)
    common = {"tenant": factories.tenant(), "pool": pool, "profile": pool.profiles.get(), "mu_per_min": 5.0}
    over, running = (
        Reservation.objects.create(**common, state="active", starts_at=now - 2 * day, ends_at=ends)
        for ends in (now - day, now + day)
    )
    version = pool.version
    Change.objects.all().delete()
    assert reservations_end(now=now, actor="t") == 1
    assert reservations_end(now=now, actor="t") == 0
    over.refresh_from_db()
    running.refresh_from_db()
    pool.refresh_from_db()
    assert (over.state, running.state, pool.version) == ("ended", "active", version + 1)
    entry = AuditEntry.objects.get(action="reservation.end")
    assert (entry.object_id, entry.tenant_id, entry.before) == (str(over.pk), over.tenant_id, {"state": "active"})
    assert list(Change.objects.values_list("kind", "object_id")) == [("pool", pool.pk), ("reservation", over.pk)]


def test_a_new_version_costs_as_much_money_as_the_one_before_unless_it_says_so() -> None:
    pool, hardware = factories.pool(), factories.hardware()

    def add(**fields: Any) -> float | None:
        return profile_add(pool=pool, hardware_type=hardware, profile=PRICE, actor="t", **fields).price_per_1000_mu

    assert [add(), add(price_per_1000_mu=2.5), add(), add(price_per_1000_mu=None), add()] == [
        None,
        2.5,
        2.5,
        None,
        None,
    ]
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValidationError) as error:
            add(price_per_1000_mu=wrong)
        assert "price_per_1000_mu" in error.value.message_dict
