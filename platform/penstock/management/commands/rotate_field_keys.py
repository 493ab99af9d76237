"""``manage.py rotate_field_keys``: put every secret at rest under the newest field key."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from penstock.crypto import rotate_field_keys
from tenants.crypto import DecryptionError


class Command(BaseCommand):
    help = "Encrypt every stored secret anew with the first of PENSTOCK_FIELD_KEYS. Safe to repeat."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            counts = rotate_field_keys(actor="rotate_field_keys")
        except DecryptionError as error:
            raise CommandError(str(error)) from error
        for name, count in counts.items():
            self.stdout.write(f"{name}: {count}")
