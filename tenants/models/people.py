"""Users, tenants and the roles that join them."""

from typing import ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models
from django.db.models.functions import Lower

from tenants.models.base import Identified


class UserManager(BaseUserManager["User"]):
    def get_by_natural_key(self, username: str | None) -> "User":
        """By e-mail address, whatever its case: that is how people type it."""
        return self.get(email__iexact=username)

    def create_user(self, email: str, password: str | None = None, **fields: object) -> "User":
        if not email:
            raise ValueError("a user needs an e-mail address")
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: object) -> "User":
        return self.create_user(email, password, is_operator=True, is_superuser=True, **fields)


class User(Identified, AbstractBaseUser, PermissionsMixin):
    """A person. Operators run the platform; everybody else acts through a Membership in a tenant."""

    email = models.EmailField(unique=True)
    name = models.CharField(max_length=120, blank=True)
    is_operator = models.BooleanField(default=False, help_text="May use the operator console and the admin.")
    is_active = models.BooleanField(default=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects: ClassVar[UserManager] = UserManager()

    class Meta:
        ordering = ("email",)
        constraints = (
            models.UniqueConstraint(
                Lower("email"),
                name="tenants_user_unique_email",
                violation_error_code="email",
                violation_error_message="There is a user with this e-mail address already.",
            ),
        )

    def __str__(self) -> str:
        return self.name or self.email

    def get_full_name(self) -> str:
        """The admin's theme asks for this name."""
        return self.name or self.email

    @property
    def is_staff(self) -> bool:
        """Django's admin asks for this name."""
        return self.is_operator


class Tenant(Identified):
    """One customer of the platform: its members, keys, limits and usage are seen by nobody else but operators."""

    slug = models.SlugField(max_length=60, unique=True)
    name = models.CharField(max_length=120)
    is_active = models.BooleanField(default=True, help_text="An inactive tenant's keys are refused.")
    best_effort = models.BooleanField(
        "may borrow", default=True, help_text="It may use pools beyond what it has reserved of them, as best effort."
    )

    class Meta:
        ordering = ("name",)
        constraints = (
            models.CheckConstraint(
                condition=~models.Q(name=""),
                name="tenants_tenant_has_name",
                violation_error_code="name",
                violation_error_message="A tenant needs a name.",
            ),
        )

    def __str__(self) -> str:
        return self.name


class Membership(Identified):
    """A user's role in a tenant."""

    class Role(models.TextChoices):
        OWNER = "owner", "Owner"
        ADMIN = "admin", "Admin"
        DEVELOPER = "developer", "Developer"
        VIEWER = "viewer", "Viewer"

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=12, choices=Role.choices, default=Role.DEVELOPER)

    class Meta:
        ordering = ("tenant", "user")
        constraints = (
            models.UniqueConstraint(
                fields=("tenant", "user"),
                name="tenants_membership_unique_user",
                violation_error_code="user",
                violation_error_message="This user is a member of the tenant already.",
            ),
            models.CheckConstraint(
                condition=models.Q(role__in=("owner", "admin", "developer", "viewer")),
                name="tenants_membership_known_role",
                violation_error_code="role",
                violation_error_message="The role must be owner, admin, developer or viewer.",
            ),
        )

    def __str__(self) -> str:
        return f"{self.user} in {self.tenant} ({self.role})"
