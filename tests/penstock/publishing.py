"""What the tests of publishing write, and what they read in the shared state."""

import hashlib
import json

from tenants.changes import record_change
from tenants.models import ApiKey, Change, Tenant


def make_tenant(slug="acme"):
    tenant = Tenant.objects.create(slug=slug, name=slug)
    record_change(kind="tenant", object_id=tenant.pk)
    return tenant


def make_key(tenant, public_id="abc"):
    key = ApiKey.objects.create(
        tenant=tenant, name="k", public_id=public_id, digest="0" * 64, pepper=1, scopes=["inference"]
    )
    record_change(kind="key", object_id=key.pk)
    return key


def published(client, kind):
    return {k.decode(): json.loads(v) for k, v in client.hgetall(f"penstock:snap:{kind}").items()}


def check(client):
    """The stated digest, computed from the definition."""
    total = 0
    for kind in ("tenant", "key", "pool", "deployment", "replica", "reservation"):
        for name, raw in client.hgetall(f"penstock:snap:{kind}").items():
            text = kind.encode() + b"\0" + name + b"\0" + raw
            total += int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big")
    meta = client.hgetall("penstock:snap:meta")
    assert int(meta[b"digest"]) == total % 2**128
    assert meta[b"whole"] == b"1"
    assert int(meta[b"version"]) == Change.objects.order_by("-version").exclude(version=None).first().version
    assert not Change.objects.filter(version=None).exists()
