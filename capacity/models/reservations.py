"""Reservations: what tenants have asked for, and what was sold to them."""

import datetime
import math
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q

from capacity.models.pools import CostProfile, Pool, default_credit_tiers
from capacity.policy.calculator import BURST_S, LARGEST_MU_PER_MIN
from capacity.policy.guarantee import words_of_tiers
from capacity.policy.money import amount_text
from tenants.models import Identified, Tenant


class Reservation(Identified):
    """A promise: MU/min of a pool, guaranteed to a tenant from ``starts_at`` to ``ends_at``; or the wish for one.

    ``requested`` is a tenant's wish and promises nothing. Approved it is a ``draft`` until it starts, then ``active``,
    then ``ended``: what is promised is both of the first two, and their times say when. ``profile`` is the version of
    the pool's price in which its MU count until it is renewed or converted.
    """

    class State(models.TextChoices):
        REQUESTED = "requested", "Requested"
        DRAFT = "draft", "Not started"
        ACTIVE = "active", "Active"
        ENDED = "ended", "Ended"
        CANCELLED = "cancelled", "Cancelled"
        REFUSED = "refused", "Refused"

    class Verdict(models.TextChoices):
        NONE = "", "Not asked"
        FITS = "fits", "Fits"
        WITHOUT_SPARE = "without_spare", "Fits without N−1"
        SHORT = "short", "Overcommitted"

    PROMISED = (State.DRAFT, State.ACTIVE)

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="reservations")
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="reservations")
    profile = models.ForeignKey(CostProfile, on_delete=models.PROTECT, related_name="reservations")
    mu_per_min = models.FloatField("MU/min")
    burst_mu = models.FloatField("burst (MU)", help_text="What its bucket holds: so much may be asked for at once.")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True, blank=True, help_text="Empty: until it is cancelled.")
    state = models.CharField(max_length=10, choices=State.choices, default=State.DRAFT)
    price = models.DecimalField(
        max_digits=14, decimal_places=6, null=True, blank=True, help_text="Money per MU/min and month."
    )
    currency = models.CharField(max_length=3, blank=True, help_text="ISO 4217, e.g. EUR.")
    credit_tiers = models.JSONField(
        default=default_credit_tiers,
        blank=True,
        help_text="The pool's when it was sold: pairs [attainment below, share of the month's price given back].",
    )
    note = models.TextField(max_length=2000, blank=True, help_text="What it is for, in the words of who asked for it.")
    requested_by = models.CharField(max_length=200, blank=True)
    decided_by = models.CharField(max_length=200, blank=True, help_text="Who sold, approved or refused it.")
    decided_at = models.DateTimeField(null=True, blank=True)
    reason = models.CharField(max_length=500, blank=True, help_text="Why it was refused or cancelled.")
    verdict = models.CharField(
        max_length=13, choices=Verdict.choices, blank=True, default="", help_text="What the ledger said of it."
    )
    override_reason = models.CharField(
        max_length=500, blank=True, help_text="Why it was sold although the ledger said no."
    )
    renews = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="renewals", help_text="What it follows."
    )

    class Meta:
        ordering = ("-starts_at", "-id")
        indexes = (models.Index(fields=("pool", "state"), name="capacity_reservation_pool"),)
        constraints = (
            models.CheckConstraint(
                condition=Q(mu_per_min__gt=0),
                name="capacity_reservation_positive",
                violation_error_code="mu_per_min",
                violation_error_message="A reservation must be more than 0 MU/min.",
            ),
            models.CheckConstraint(
                condition=Q(burst_mu__gt=0),
                name="capacity_reservation_positive_burst",
                violation_error_code="burst_mu",
                violation_error_message="The burst must be more than 0 MU: nothing would fit into its bucket.",
            ),
            models.CheckConstraint(
                condition=Q(ends_at__isnull=True) | Q(ends_at__gt=models.F("starts_at")),
                name="capacity_reservation_ends_after_start",
                violation_error_code="ends_at",
                violation_error_message="A reservation must end after it starts.",
            ),
            models.CheckConstraint(
                condition=Q(state__in=("requested", "draft", "active", "ended", "cancelled", "refused")),
                name="capacity_reservation_known_state",
                violation_error_code="state",
                violation_error_message="The state must be requested, draft, active, ended, cancelled or refused.",
            ),
            models.CheckConstraint(
                condition=Q(verdict__in=("", "fits", "without_spare", "short")),
                name="capacity_reservation_known_verdict",
                violation_error_code="verdict",
                violation_error_message="The verdict must be fits, without_spare or short, or empty.",
            ),
            models.CheckConstraint(
                condition=Q(price__isnull=True, currency="") | (Q(price__isnull=False, price__gte=0) & ~Q(currency="")),
                name="capacity_reservation_price_has_currency",
                violation_error_code="currency",
                violation_error_message="A price needs its currency, and a currency its price.",
            ),
            models.CheckConstraint(
                condition=~Q(verdict__in=("without_spare", "short")) | ~Q(override_reason=""),
                name="capacity_reservation_override_has_reason",
                violation_error_code="override_reason",
                violation_error_message="What does not fit by the pool's rules is sold only with a reason.",
            ),
            models.CheckConstraint(
                condition=~Q(state="refused") | ~Q(reason=""),
                name="capacity_reservation_refusal_has_reason",
                violation_error_code="reason",
                violation_error_message="Say why it is refused: the tenant reads it.",
            ),
            models.UniqueConstraint(
                fields=("renews",),
                condition=~Q(state__in=("cancelled", "refused")),
                name="capacity_reservation_renewed_once",
                violation_error_code="renews",
                violation_error_message="It has been renewed already.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.mu_per_min:g} MU/min of {self.pool} for {self.tenant}"

    @property
    def is_promised(self) -> bool:
        return self.state in self.PROMISED

    @property
    def price_text(self) -> str:
        """The price as people write it, with the digits that its currency has; empty where none was agreed."""
        return "" if self.price is None else amount_text(self.price, self.currency)

    @property
    def credit_text(self) -> str:
        """What its breach minutes give back, in words."""
        return words_of_tiers(self.credit_tiers)

    @property
    def is_overcommitted(self) -> bool:
        """Whether it was sold although the ledger said that it does not fit by the pool's rules."""
        return self.is_promised and self.verdict in (self.Verdict.WITHOUT_SPARE, self.Verdict.SHORT)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """As Django's. Where no burst is said, the bucket holds 10 s of the rate."""
        if self.burst_mu is None:
            self.burst_mu = self.mu_per_min * BURST_S / 60.0
        super().save(*args, **kwargs)

    def spans(self) -> list[tuple[datetime.datetime, datetime.datetime | None]]:
        """When it was and is promised: from, until (None: no end), without the gaps in which it was cancelled."""
        found: list[tuple[datetime.datetime, datetime.datetime | None]] = []
        begins = self.starts_at
        for gap in sorted(self.gaps.all(), key=lambda one: one.since):
            found.append((begins, gap.since))
            begins = gap.until
        return [*found, (begins, self.ends_at)]

    def clean(self) -> None:
        """Numbers and times are such as everybody can count with, the profile is the pool's own, and a currency is one.
        Raises ValidationError by field.
        """
        errors: dict[str, str] = {}
        for name in ("mu_per_min", "burst_mu"):
            value = getattr(self, name) or 0.0
            if not math.isfinite(value):
                errors[name] = "Give a finite number."
            elif value > LARGEST_MU_PER_MIN:
                errors[name] = f"Give at most {LARGEST_MU_PER_MIN:g}."
        for name in ("starts_at", "ends_at"):
            at = getattr(self, name)
            # The last day of all is none in every time zone.
            if at is not None and at.year >= datetime.MAXYEAR:
                errors[name] = f"Give a time before the year {datetime.MAXYEAR}."
        if self.profile_id and self.profile.pool_id != self.pool_id:
            errors["profile"] = "The price must be a version of the pool's own."
        if self.currency and not (len(self.currency) == 3 and self.currency.isascii() and self.currency.isupper()):
            errors["currency"] = "Give the three letters of ISO 4217, e.g. EUR."
        if errors:
            raise ValidationError(errors)


class ReservationGap(models.Model):
    """A span in which a reservation was cancelled, before it was restored: nothing was promised in it."""

    id = models.BigAutoField(primary_key=True)
    reservation = models.ForeignKey(Reservation, on_delete=models.PROTECT, related_name="gaps")
    since = models.DateTimeField()
    until = models.DateTimeField()

    class Meta:
        ordering = ("since",)
        constraints = (
            models.CheckConstraint(
                condition=Q(until__gt=models.F("since")),
                name="capacity_reservationgap_ends_after_start",
                violation_error_message="A gap must end after it begins.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.since:%Y-%m-%d %H:%M:%S} to {self.until:%Y-%m-%d %H:%M:%S}"
