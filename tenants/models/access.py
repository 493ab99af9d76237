"""How a tenant gets in: API keys, one-time sign-in links, and the plain limits that hold for them."""

from collections.abc import Sequence

from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone
from django.utils.functional import cached_property

from tenants.keys import NO_NUL, name_errors, network_errors, scope_errors
from tenants.models.base import Identified, uuid7
from tenants.models.people import Membership, Tenant, User
from tenants.policy.limits import KINDS, OPERATOR, TENANT, Holding, holdings


class ApiKey(Identified):
    """An API key ``mu_<public id>_<secret>``; the secret is shown once and only its HMAC digest is kept.

    ``pepper`` is the number of the server-side pepper the digest was made with (``PENSTOCK_KEY_PEPPERS``).
    """

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="api_keys")
    created_by = models.ForeignKey(User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    name = models.CharField(max_length=120)
    public_id = models.CharField(max_length=24, unique=True, editable=False)
    digest = models.CharField(max_length=64, editable=False)
    pepper = models.PositiveSmallIntegerField(editable=False)
    scopes = models.JSONField(default=list, help_text="What the key may do: inference, usage, manage.")
    models_allowed = models.JSONField(
        "allowed models", default=list, blank=True, help_text="Served model names; empty means all."
    )
    allowed_ips = models.JSONField(
        "allowed networks", default=list, blank=True, help_text="Networks in CIDR form; empty means all."
    )
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    rotated_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="Another key has taken its place; it may live on for a while."
    )
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ("tenant", "name")
        verbose_name = "API key"
        constraints = (
            models.CheckConstraint(
                condition=models.Q(expires_at__isnull=True) | models.Q(expires_at__gt=models.F("created_at")),
                name="tenants_apikey_expires_after_creation",
                violation_error_code="expires_at",
                violation_error_message="A key must expire after it was made.",
            ),
            models.CheckConstraint(
                condition=~models.Q(name=""),
                name="tenants_apikey_has_name",
                violation_error_code="name",
                violation_error_message="A key needs a name.",
            ),
            models.CheckConstraint(
                condition=models.Q(revoked_at__isnull=True) | models.Q(revoked_at__gte=models.F("created_at")),
                name="tenants_apikey_revoked_after_creation",
                violation_error_code="revoked_at",
                violation_error_message="A key cannot be revoked before it was made.",
            ),
            models.CheckConstraint(
                condition=models.Q(rotated_at__isnull=True) | models.Q(rotated_at__gte=models.F("created_at")),
                name="tenants_apikey_rotated_after_creation",
                violation_error_code="rotated_at",
                violation_error_message="A key cannot be rotated before it was made.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} (mu_{self.public_id}_…)"

    def clean(self) -> None:
        """Scopes are known, networks are networks, lists are as short as gateways want them. Raises ValidationError."""
        errors = {
            "name": [NO_NUL] if "\0" in self.name else [],
            "scopes": scope_errors(self.scopes),
            "models_allowed": name_errors(self.models_allowed),
            "allowed_ips": network_errors(self.allowed_ips),
        }
        if any(errors.values()):
            raise ValidationError({field: found for field, found in errors.items() if found})

    @property
    def is_usable(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > timezone.now())


class AccessToken(Identified):
    """A person's token for the REST API and the command line: it may do what the person may do.

    Its text ``pst_<public id>_<secret>`` is shown once; ``pepper`` is the number of the pepper of its digest.
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="access_tokens")
    name = models.CharField(max_length=120)
    public_id = models.CharField(max_length=24, unique=True, editable=False)
    digest = models.CharField(max_length=64, editable=False)
    pepper = models.PositiveSmallIntegerField(editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ("user", "name")
        constraints = (
            models.CheckConstraint(
                condition=~models.Q(name=""),
                name="tenants_accesstoken_has_name",
                violation_error_code="name",
                violation_error_message="A token needs a name: say where it is used.",
            ),
            models.CheckConstraint(
                condition=models.Q(expires_at__isnull=True) | models.Q(expires_at__gt=models.F("created_at")),
                name="tenants_accesstoken_expires_after_creation",
                violation_error_code="expires_at",
                violation_error_message="A token must expire after it was made.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} (pst_{self.public_id}_…)"

    def clean(self) -> None:
        """Raises ValidationError by field."""
        if "\0" in self.name:
            raise ValidationError({"name": NO_NUL})

    @property
    def is_usable(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > timezone.now())


class Limit(Identified):
    """A plain limit for a tenant, for one of its keys, or for one member: their playground and the keys they made.

    Empty ``model`` means every model; of MU, of which those of two pools do not add up, each pool by itself. What is
    per day or month is a budget: of the calendar's day or month in UTC, in MU, or in whole units of the installation's
    currency for what no reservation pays for.

    The operator's and the tenant's own may stand beside each other; the smaller holds.
    """

    class Kind(models.TextChoices):
        REQUESTS_PER_MIN = "requests_per_min", "requests / min"
        TOKENS_PER_MIN = "tokens_per_min", "tokens / min"
        MU_PER_MIN = "mu_per_min", "MU / min"
        CONCURRENCY = "concurrency", "concurrent requests"
        MU_PER_DAY = "mu_per_day", "MU / day"
        MU_PER_MONTH = "mu_per_month", "MU / month"
        MONEY_PER_DAY = "money_per_day", "money / day"
        MONEY_PER_MONTH = "money_per_month", "money / month"

    class SetBy(models.TextChoices):
        OPERATOR = OPERATOR, "Operator"
        TENANT = TENANT, "Tenant"

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="limits")
    api_key = models.ForeignKey(ApiKey, null=True, blank=True, on_delete=models.CASCADE, related_name="limits")
    member = models.ForeignKey(Membership, null=True, blank=True, on_delete=models.CASCADE, related_name="limits")
    kind = models.CharField(max_length=20, choices=Kind.choices)
    model = models.CharField(max_length=200, blank=True)
    value = models.PositiveBigIntegerField()
    set_by = models.CharField(
        max_length=8, choices=SetBy.choices, help_text="Whose limit it is, and who may change it."
    )

    class Meta:
        ordering = ("tenant", "kind")
        constraints = (
            models.UniqueConstraint(
                fields=("tenant", "kind", "model", "set_by"),
                condition=models.Q(api_key__isnull=True, member__isnull=True),
                name="tenants_limit_unique_for_tenant",
                violation_error_code="kind",
                violation_error_message="The tenant has a limit of this kind already.",
            ),
            models.UniqueConstraint(
                fields=("api_key", "kind", "model", "set_by"),
                condition=models.Q(api_key__isnull=False),
                name="tenants_limit_unique_for_key",
                violation_error_code="kind",
                violation_error_message="The key has a limit of this kind already.",
            ),
            models.UniqueConstraint(
                fields=("member", "kind", "model", "set_by"),
                condition=models.Q(member__isnull=False),
                name="tenants_limit_unique_for_member",
                violation_error_code="kind",
                violation_error_message="The member has a limit of this kind already.",
            ),
            models.CheckConstraint(
                condition=models.Q(api_key__isnull=True) | models.Q(member__isnull=True),
                name="tenants_limit_of_one",
                violation_error_code="member",
                violation_error_message="A limit is of a key or of a member, not of both.",
            ),
            models.CheckConstraint(
                condition=models.Q(kind__in=KINDS),
                name="tenants_limit_known_kind",
                violation_error_code="kind",
                violation_error_message=f"The kind must be one of {', '.join(KINDS)}.",
            ),
            models.CheckConstraint(
                condition=models.Q(set_by__in=("operator", "tenant")),
                name="tenants_limit_known_set_by",
                violation_error_code="set_by",
                violation_error_message="A limit is set by the operator or by the tenant.",
            ),
            # An empty bucket admits one request of any size, so a limit of 0 would not mean "nothing".
            models.CheckConstraint(
                condition=models.Q(value__gte=1),
                name="tenants_limit_positive",
                violation_error_code="value",
                violation_error_message="A limit must be at least 1; revoke the key or deactivate the tenant instead.",
            ),
        )

    used: Sequence[object] = ()
    """What is used of a budget, by pool, where a page has asked for it."""
    budget: object = None
    """How it stands (``tenants.budgets.BudgetState``), where a list has asked for all of its own at once."""
    unit: str = ""
    """The currency of a budget of money, where a page has asked for it."""

    def __str__(self) -> str:
        return f"{self.value} {self.get_kind_display()}"

    def clean(self) -> None:
        if self.api_key is not None and self.api_key.tenant_id != self.tenant_id:
            raise ValidationError({"api_key": "The key belongs to another tenant."})
        if self.member is not None and self.member.tenant_id != self.tenant_id:
            raise ValidationError({"member": "The member belongs to another tenant."})

    @cached_property
    def holding(self) -> Holding["Limit"]:
        """This limit and what stands beside it, as stored when it is first asked; ``limits_held`` fills in many."""
        beside = Limit.objects.filter(
            tenant=self.tenant_id, api_key=self.api_key_id, member=self.member_id, kind=self.kind, model=self.model
        )
        return holdings([*beside.exclude(pk=self.pk), self])[0]

    @property
    def reach(self) -> str:
        """What it holds for, in words. MU of two pools do not add up."""
        if self.model:
            return self.model
        return "each pool by itself" if self.kind.startswith("mu_") else "all models together"

    @property
    def is_in_force(self) -> bool:
        """Whether this one holds, and not a smaller one beside it."""
        return self.holding.in_force.pk == self.pk


class SignInLink(Identified):
    """A one-time sign-in link; only the SHA-256 digest of its token is kept."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="sign_in_links")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(
        null=True, blank=True, help_text="Signed in with, or voided: its user was kept out or got a new password."
    )

    class Meta:
        ordering = ("-created_at",)
        verbose_name = "sign-in link"
        constraints = (
            models.CheckConstraint(
                condition=models.Q(expires_at__gt=models.F("created_at")),
                name="tenants_signinlink_expires_after_creation",
                violation_error_code="expires_at",
                violation_error_message="A sign-in link must expire after it was made.",
            ),
        )

    def __str__(self) -> str:
        return f"sign-in link for {self.user}"


class SignInAttempt(models.Model):
    """One try at a password, kept to slow down guessing. ``account`` and ``address`` are keyed digests."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    at = models.DateTimeField(default=timezone.now)
    account = models.CharField(max_length=64)
    address = models.CharField(max_length=64)
    succeeded = models.BooleanField(default=False)

    class Meta:
        ordering = ("-at",)
        verbose_name = "sign-in attempt"
        indexes = (
            models.Index(fields=("account", "at"), name="tenants_attempt_account"),
            models.Index(fields=("address", "at"), name="tenants_attempt_address"),
        )

    def __str__(self) -> str:
        return f"{'success' if self.succeeded else 'failure'} at {self.at:%Y-%m-%d %H:%M:%S}"
