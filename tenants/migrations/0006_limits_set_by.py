from django.db import migrations, models

OPERATOR, TENANT = "operator", "tenant"


def tell_by_whom(apps, schema_editor):
    """Whose each limit is: the operator's where whoever set it last was an operator or the platform itself.

    A key that took another's place got its limits without entries of their own: they are whose they were there. Where
    nothing tells, a limit is the tenant's own.
    """
    limits = apps.get_model("tenants", "Limit").objects
    entries = apps.get_model("tenants", "AuditEntry").objects
    operators = set(apps.get_model("tenants", "User").objects.filter(is_operator=True).values_list("pk", flat=True))
    last_set = {
        object_id: by(actor_id, actor, operators)
        for object_id, actor_id, actor in entries.filter(action="limit.set", object_type="tenants.limit")
        .order_by("at", "pk")
        .values_list("object_id", "actor_id", "actor")
        .iterator(2000)
    }
    replaced = {
        after.get("replaced_by"): object_id
        for object_id, after in entries.filter(action="api_key.rotate").values_list("object_id", "after").iterator(2000)
    }
    found = {}
    # The limits of a key that was replaced are older than those of the key in its place.
    for pk, key, kind, model in limits.order_by("created_at", "pk").values_list("pk", "api_key_id", "kind", "model"):
        before = found.get((replaced.get(str(key)), kind, model), TENANT)
        found[(str(key), kind, model)] = set_by = last_set.get(str(pk), before)
        if set_by == OPERATOR:
            limits.filter(pk=pk).update(set_by=OPERATOR)


def by(actor_id, actor, operators):
    if actor_id is None:
        return TENANT if actor.startswith("API key ") else OPERATOR
    return OPERATOR if actor_id in operators else TENANT


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0005_keyed_fingerprints"),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="limit",
            name="tenants_limit_unique_for_tenant",
        ),
        migrations.RemoveConstraint(
            model_name="limit",
            name="tenants_limit_unique_for_key",
        ),
        migrations.AddField(
            model_name="limit",
            name="set_by",
            field=models.CharField(
                choices=[("operator", "Operator"), ("tenant", "Tenant")],
                default="tenant",
                help_text="Whose limit it is, and who may change it.",
                max_length=8,
            ),
            preserve_default=False,
        ),
        migrations.RunPython(tell_by_whom, migrations.RunPython.noop),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.UniqueConstraint(
                condition=models.Q(("api_key__isnull", True)),
                fields=("tenant", "kind", "model", "set_by"),
                name="tenants_limit_unique_for_tenant",
                violation_error_code="kind",
                violation_error_message="The tenant has a limit of this kind already.",
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.UniqueConstraint(
                condition=models.Q(("api_key__isnull", False)),
                fields=("api_key", "kind", "model", "set_by"),
                name="tenants_limit_unique_for_key",
                violation_error_code="kind",
                violation_error_message="The key has a limit of this kind already.",
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(("set_by__in", ("operator", "tenant"))),
                name="tenants_limit_known_set_by",
                violation_error_code="set_by",
                violation_error_message="A limit is set by the operator or by the tenant.",
            ),
        ),
    ]
