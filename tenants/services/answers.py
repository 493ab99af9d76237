"""What the REST API remembers of creations."""

import datetime

from tenants.models import IdempotentAnswer


def idempotent_answers_delete_old(*, before: datetime.datetime) -> int:
    """Forget answers from before: nobody sends a request again after a day. Returns how many. No audit entry."""
    return IdempotentAnswer.objects.filter(created_at__lt=before).delete()[0]
