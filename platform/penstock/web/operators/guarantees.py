"""Did we keep our word? Every reservation in a month, and one day by day."""

from __future__ import annotations

import uuid

from django.http import HttpResponse
from django.shortcuts import get_object_or_404

from capacity.models import Reservation
from penstock.web.access import UserRequest
from penstock.web.guarantees import month_context, reservation_context
from penstock.web.operators.frame import read_page, show

CURRENT = "operators:guarantees"


@read_page
def guarantees(request: UserRequest) -> HttpResponse:
    """All reservations that promised something in the month, the worst first."""
    context = month_context(Reservation.objects.all(), request.GET)
    return show(request, "operators/guarantees.html", context, current=CURRENT)


@read_page
def guarantee(request: UserRequest, reservation_id: uuid.UUID) -> HttpResponse:
    """One reservation in the month."""
    row = get_object_or_404(Reservation.objects.select_related("tenant", "pool"), pk=reservation_id)
    return show(request, "operators/guarantee.html", reservation_context(row, request.GET), current=CURRENT)
