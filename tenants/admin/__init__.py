"""The admin of tenants, people, keys and the records of what was done."""

from django.contrib import admin
from django.contrib.auth.models import Group

from tenants.admin import access, api, log, people

__all__ = ["access", "api", "log", "people"]

# Roles are memberships; Django's groups have no part in them.
admin.site.unregister(Group)
