"""What the models promise as a whole."""

from __future__ import annotations

import datetime
import uuid

import pytest
from django.apps import apps
from django.db import connection, models
from django.utils import timezone

from capacity.models import UsageRecord
from capacity.usage.writer import write_batch
from serving.models import ScalingDecision
from serving.services import decisions_delete_old, scaling_decision_record
from tenants.audit import audit
from tenants.models import AuditEntry, WrittenOnce, WrittenOnceError
from tests import factories
from tests.factories import Traffic, batch

LAYERS = ["tenants", "capacity", "serving", "penstock"]
OURS = [model for label in LAYERS for model in apps.get_app_config(label).get_models(include_auto_created=True)]


def test_foreign_keys_run_down_the_layers_only() -> None:
    for model in OURS:
        for field in model._meta.get_fields(include_hidden=False):
            target = field.related_model
            if not field.concrete or not isinstance(target, type) or target._meta.app_label not in LAYERS:
                continue
            own, other = LAYERS.index(model._meta.app_label), LAYERS.index(target._meta.app_label)
            assert other <= own, f"{model._meta.label}.{field.name} points up to {target._meta.label}"


def test_history_holds_no_foreign_key() -> None:
    for name in ("tenants.AuditEntry", "capacity.UsageRecord", "capacity.UsageRollup", "serving.ScalingDecision"):
        fields = apps.get_model(name)._meta.concrete_fields
        assert not [field.name for field in fields if field.is_relation], name


def test_every_constraint_is_named_and_speaks_to_people() -> None:
    for model in OURS:
        for constraint in model._meta.constraints:
            assert constraint.name.startswith(model._meta.app_label), constraint.name
            message = str(constraint.violation_error_message)
            assert message.endswith("."), constraint.name
            assert "Constraint" not in message, constraint.name
            code = constraint.violation_error_code
            assert code is None or code in {field.name for field in model._meta.get_fields()}, constraint.name


def test_every_choice_is_held_by_the_database() -> None:
    for model in OURS:
        kept = " ".join(str(constraint.deconstruct()) for constraint in model._meta.constraints)
        for field in model._meta.concrete_fields:
            if field.choices:
                assert f"'{field.name}__in'" in kept, f"{model._meta.label}.{field.name}"


def rows_written_once() -> list[WrittenOnce]:
    traffic = Traffic()
    write_batch(batch(traffic.pair(timezone.now().timestamp())))
    deployment = factories.deployment()
    scaling_decision_record(deployment=deployment, before=1, after=2, reason="load", inputs={})
    return [
        AuditEntry.objects.all()[0],
        UsageRecord.objects.get(),
        ScalingDecision.objects.get(),
        deployment.pool.profiles.get(),
        deployment.revisions.get(),
    ]


@pytest.mark.django_db
def test_what_is_written_once_stays() -> None:
    names = {AuditEntry: "action", UsageRecord: "actual_mu", ScalingDecision: "reason"}
    for row in rows_written_once():
        kind = type(row)
        field = names.get(kind, "created_at")
        with pytest.raises(WrittenOnceError):
            row.save()
        with pytest.raises(WrittenOnceError):
            row.delete()
        with pytest.raises(WrittenOnceError):
            kind.objects.filter(pk=row.pk).update(**{field: getattr(row, field)})
        with pytest.raises(WrittenOnceError):
            kind.objects.all().delete()
        with pytest.raises(WrittenOnceError):
            kind.objects.bulk_update([row], [field])
        assert kind.objects.filter(pk=row.pk).exists()


@pytest.mark.django_db
def test_a_second_row_under_a_used_key_is_refused() -> None:
    row = rows_written_once()[1]
    assert isinstance(row, UsageRecord)
    copy = UsageRecord(**{field.name: getattr(row, field.name) for field in UsageRecord._meta.concrete_fields})
    copy.actual_mu = 1e9
    from django.db import IntegrityError, transaction

    with pytest.raises(IntegrityError), transaction.atomic():
        copy.save()
    assert UsageRecord.objects.get().actual_mu != 1e9


@pytest.mark.django_db
def test_the_newest_decisions_of_a_deployment_are_found_by_an_index() -> None:
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, ScalingDecision._meta.db_table).values()
    indexes = [(each["columns"], each["orders"]) for each in found if each["index"]]
    assert (["deployment_id", "at"], ["ASC", "DESC"]) in indexes


@pytest.mark.django_db
def test_only_retention_deletes_decisions() -> None:
    rows_written_once()
    assert decisions_delete_old(before=timezone.now() - datetime.timedelta(hours=1)) == 0
    assert decisions_delete_old(before=timezone.now() + datetime.timedelta(seconds=1)) == 1


@pytest.mark.django_db
def test_audit_keeps_what_differs_and_no_secret() -> None:
    target = factories.tenant()
    entry = audit(
        actor="t",
        action="thing.change",
        target=target,
        before={"a": 1, "b": 2, "secret": "x", "nested": {"password": "p", "kept": 1}},
        after={"a": 1, "b": 3, "secret": "y", "nested": {"password": "q", "kept": uuid.UUID(int=1)}},
    )
    assert entry.before == {"b": 2, "nested": {"kept": 1}}
    assert entry.after == {"b": 3, "nested": {"kept": str(uuid.UUID(int=1))}}


def test_models_say_their_default_order() -> None:
    lists = [model for model in OURS if issubclass(model, models.Model) and not model._meta.auto_created]
    unordered = [model._meta.label for model in lists if not model._meta.ordering]
    assert unordered == ["tenants.Lease", "capacity.UsageChain", "capacity.Watermark", "capacity.BooksState"]
