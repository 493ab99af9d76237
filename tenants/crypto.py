"""Secrets at rest: MultiFernet with the installation's field keys. The first key encrypts, all of them decrypt."""

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings


class DecryptionError(Exception):
    """No field key of this installation opens the value."""


def encrypt(plain: bytes) -> bytes:
    """``plain`` under the newest field key."""
    return _fernet().encrypt(plain)


def decrypt(stored: bytes | memoryview) -> bytes:
    """Open what ``encrypt`` made. Raises DecryptionError."""
    try:
        return _fernet().decrypt(bytes(stored))
    except InvalidToken:
        raise DecryptionError("no key in PENSTOCK_FIELD_KEYS opens this value: add the key it was made with") from None


def reencrypt(stored: bytes | memoryview) -> bytes:
    """The same secret under the newest field key, keeping the time it was first encrypted. Raises DecryptionError."""
    try:
        return _fernet().rotate(bytes(stored))
    except InvalidToken:
        raise DecryptionError("no key in PENSTOCK_FIELD_KEYS opens this value: add the key it was made with") from None


def _fernet() -> MultiFernet:
    return MultiFernet([Fernet(key) for key in settings.PENSTOCK_FIELD_KEYS])
