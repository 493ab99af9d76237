from django.db import migrations
from django.utils import timezone

ACTOR = "an upgrade"


def revoke(apps, schema_editor):
    """Revoke open invitations of senders who may not sign in or have left the tenant: from before either revoked them.

    An operator may invite into every tenant.
    """
    members = set(apps.get_model("tenants", "Membership").objects.values_list("user_id", "tenant_id"))
    now = timezone.now()
    entries = apps.get_model("tenants", "AuditEntry").objects
    waiting = apps.get_model("tenants", "Invitation").objects.filter(
        accepted_at=None, revoked_at=None, expires_at__gt=now, invited_by__isnull=False
    )
    for invitation in waiting.select_related("invited_by", "tenant"):
        sender = invitation.invited_by
        is_of_tenant = sender.is_operator or (sender.pk, invitation.tenant_id) in members
        if sender.is_active and is_of_tenant:
            continue
        waiting.filter(pk=invitation.pk).update(revoked_at=now, updated_at=now)
        entries.create(
            at=now,
            actor=ACTOR,
            tenant_id=invitation.tenant_id,
            action="invitation.revoke",
            object_type="tenants.invitation",
            object_id=str(invitation.pk),
            object_name=f"invitation of {invitation.email} to {invitation.tenant.name} ({invitation.role})"[:200],
            after={"revoked_at": now.isoformat()},
        )


class Migration(migrations.Migration):
    dependencies = [("tenants", "0008_mu_limits_and_members")]

    operations = [migrations.RunPython(revoke, migrations.RunPython.noop)]
