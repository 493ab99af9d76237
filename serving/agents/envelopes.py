"""Verification of agents' reports: whose secret, whose signature. Knows nothing of what a report says."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Literal

from capacity.models import Host
from tenants.crypto import DecryptionError, decrypt
from worker.spec import EnvelopeError, HostReport, envelope_host, open_report

Reason = Literal["malformed", "unknown_task", "unknown_host", "no_secret", "forged", "replayed", "foreign_replica"]
"""Why a report, or a part of one, was not believed; each is counted."""

_KEEP_S = 2.0
"""A secret that was renewed is believed for this long at most by a process that knew it."""
_KEEP_MISSING_S = 5.0


class ReportRejected(Exception):
    """A report that must not be believed; ``reason`` is what it is counted as."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class HostSecrets:
    """Decrypted host secrets, kept for 2 s so that a flood of reports is not a flood of queries."""

    _kept: dict[str, tuple[float, bytes | None]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, host_id: str, *, fresh: bool = False) -> bytes:
        """The secret of a host. ``fresh`` reads it anew (it may have been rotated). Raises ReportRejected."""
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(host_id)
        if kept is None or kept[0] <= now or fresh:
            secret = _read_secret(host_id)
            kept = (now + (_KEEP_MISSING_S if secret is None else _KEEP_S), secret)
            with self._lock:
                if len(self._kept) > 10_000:
                    self._kept.clear()
                self._kept[host_id] = kept
        if kept[1] is None:
            raise ReportRejected("unknown_host", "it names a host that is not enrolled here")
        return kept[1]

    def age_s(self, host_id: str) -> float:
        """Seconds since the secret was read; infinite when it was not."""
        kept = self._kept.get(host_id)
        return float("inf") if kept is None else _KEEP_S - (kept[0] - time.monotonic())


def host_secret(host: Host) -> bytes:
    """The decrypted secret of a host. Raises ReportRejected when the installation's keys do not open it."""
    try:
        return decrypt(host.secret)
    except DecryptionError as error:
        raise ReportRejected("no_secret", f"the secret of host {host.name} cannot be opened: {error}") from error


def report_verify(envelope: object, *, secrets: HostSecrets) -> HostReport:
    """Open a report with the secret of the host it names. Raises ReportRejected."""
    try:
        host_id = envelope_host(envelope)
    except EnvelopeError as error:
        raise ReportRejected("malformed", str(error)) from error
    try:
        return open_report(envelope, host_id=host_id, secret=secrets.get(host_id))
    except EnvelopeError as error:
        # Only a secret that is older than a second may be the old one of a rotation; else a forger costs a query.
        if secrets.age_s(host_id) < 1.0:
            raise ReportRejected("forged", str(error)) from error
    try:
        return open_report(envelope, host_id=host_id, secret=secrets.get(host_id, fresh=True))
    except EnvelopeError as error:
        raise ReportRejected("forged", str(error)) from error


def _read_secret(host_id: str) -> bytes | None:
    try:
        host = Host.objects.filter(pk=uuid.UUID(host_id)).first()
    except ValueError:
        return None
    return None if host is None else host_secret(host)
