from django.db import migrations

_SUMS = (
    "entitled_mu",
    "used_mu",
    "lent_mu",
    "throttled_mu",
    "slow_mu",
    "unserved_mu",
    "requests",
    "throttled",
    "slow",
    "unserved",
)


def fill_hours(apps, schema_editor):
    """Hours of the guarantee ledger are the sums of the minutes that are still there."""
    minutes = apps.get_model("capacity", "GuaranteeMinute").objects.order_by("reservation_id", "starts_at")
    made = apps.get_model("capacity", "GuaranteeHour")
    rows, open_row = [], None
    for minute in minutes.iterator(chunk_size=5000):
        hour = minute.starts_at.replace(minute=0)
        if open_row is None or (open_row.reservation_id, open_row.starts_at) != (minute.reservation_id, hour):
            if len(rows) >= 500:
                made.objects.bulk_create(rows)
                rows = []
            open_row = made(reservation_id=minute.reservation_id, starts_at=hour)
            rows.append(open_row)
        for name in _SUMS:
            setattr(open_row, name, getattr(open_row, name) + getattr(minute, name))
        open_row.minutes += minute.entitled_mu > 0.0
        open_row.breach_minutes += minute.is_breach
    made.objects.bulk_create(rows)


class Migration(migrations.Migration):
    dependencies = [
        ("capacity", "0013_rollups_over_time"),
    ]

    operations = [
        migrations.RunPython(fill_hours, migrations.RunPython.noop),
    ]
