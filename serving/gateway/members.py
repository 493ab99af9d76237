"""Requests that the web role sends for a member of a tenant, with a short-lived credential instead of an API key."""

from __future__ import annotations

from collections.abc import Mapping

from serving.gateway import errors
from serving.gateway.auth import INFERENCE, Principal
from serving.gateway.records import KeyRecord, TenantRecord
from tenants.member_credentials import PREFIX, MemberCredentialError, unseal

_START = f"bearer {PREFIX}_".encode()


def is_of_member(authorization: bytes | None) -> bool:
    """Whether the header holds what is shaped like a member's credential."""
    return authorization is not None and authorization[: len(_START)].lower() == _START


class Members:
    """What stands for an API key in the requests of each member: one record per member, as long as the process lives.

    Its ``uuid`` is the member's: usage records name it where others name an API key. Its limits are the member's; the
    tenant's hold beside them.
    """

    def __init__(self, peppers: Mapping[int, bytes], size: int = 10_000) -> None:
        self._peppers = peppers
        self._size = size
        self._records: dict[tuple[str, str], KeyRecord] = {}

    def authenticate(self, authorization: bytes, *, tenants: Mapping[str, TenantRecord], now: float) -> Principal:
        """Return whose request it is. ``now`` in UNIX seconds. Raises ApiError 401 or 403."""
        try:
            text = authorization.partition(b" ")[2].decode("ascii")
            found = unseal(text, peppers=self._peppers, now=now)
        except UnicodeDecodeError:
            raise errors.unauthorized("The credential is malformed.") from None
        except MemberCredentialError as error:
            raise errors.unauthorized(str(error)) from error
        tenant = tenants.get(found.tenant)
        if tenant is None or not tenant.active:
            raise errors.forbidden("This account is not active. Ask your operator.", code="tenant_inactive")
        return Principal(self._record(tenant, found.member), tenant)

    def _record(self, tenant: TenantRecord, member: str) -> KeyRecord:
        limits = tenant.members.get(member, ())
        record = self._records.get((tenant.id, member))
        if record is None or record.limits != limits:
            if len(self._records) >= self._size:
                self._records.clear()
            record = self._records[tenant.id, member] = KeyRecord(
                # Longer than any API key's public id, which it must not be taken for.
                id=f"member.{tenant.id}.{member}",
                uuid=member,
                tenant=tenant.id,
                digest="",
                pepper=0,
                scopes=(INFERENCE,),
                limits=limits,
            )
        return record
