"""The envelope: whatever arrives is either a message of its sender or an EnvelopeError."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.conftest import order
from worker import spec
from worker.spec import EnvelopeError, HostOrders, envelope_host, open_orders, open_report, seal

SECRET = b"s" * 32
ORDERS = HostOrders(host_id="h", generation=3, replicas=(order("r1"),))


def opened(envelope: object) -> HostOrders:
    return open_orders(envelope, host_id="h", secret=SECRET)


def signed(payload: str, *, protocol: int = spec.PROTOCOL) -> dict[str, Any]:
    """An envelope made without the code under test."""
    text = f"{protocol}.orders.h.".encode() + payload.encode("utf-8", "surrogatepass")
    mac = hmac.new(SECRET, text, hashlib.sha256).hexdigest()
    return {"protocol": protocol, "kind": "orders", "host_id": "h", "payload": payload, "mac": mac}


def test_orders_come_back_as_they_were_sealed() -> None:
    envelope = json.loads(json.dumps(seal(ORDERS, secret=SECRET)))
    assert opened(envelope) == ORDERS
    assert envelope == signed(envelope["payload"])


@pytest.mark.parametrize(
    ("envelope", "words"),
    [
        ({**signed("{}"), "mac": "é" * 64}, "signature"),
        ({**signed("{}"), "mac": "\ud800"}, "signature"),
        ({**signed("{}"), "payload": "\ud800"}, "signature"),
        ({**signed("{}"), "host_id": "\ud800"}, r"for host \\ud800, expected"),
        ({**signed("{}"), "host_id": "one\nline" + "x" * 9999}, r"one\\nlinexxx"),
        ({**signed("{}"), "kind": "\ud800"}, "malformed envelope"),
        ({**signed("{}"), "\ud800": 1}, "malformed envelope"),
        (signed("not JSON"), "malformed orders"),
        (signed("\ud800"), "malformed orders"),
        (signed('{"host_id": "h", "generation": 1, "replicas": [' + "[" * 10_000), "malformed orders"),
        (signed('{"host_id": "h", "x": ' + "[" * 99_999 + "]" * 99_999 + "}"), "malformed orders"),
        (signed('{"host_id": "other", "generation": 1, "replicas": []}'), "inside an envelope of h"),
        (None, "malformed envelope"),
    ],
)
def test_what_is_no_message_is_an_envelope_error_on_one_line(envelope: object, words: str) -> None:
    with pytest.raises(EnvelopeError, match=words) as caught:
        opened(envelope)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert str(caught.value).encode(), "a log can take it"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("protocol", "kind", "host_id", "payload", "mac"), _JSON)))
def test_nothing_unsigned_is_believed_or_raises_anything_else(changes: dict[str, Any]) -> None:
    honest = seal(ORDERS, secret=SECRET)
    envelope = honest | changes
    for ask in (lambda: opened(envelope), lambda: open_report(envelope, host_id="h", secret=SECRET)):
        with contextlib.suppress(EnvelopeError):
            assert ask() == ORDERS
            assert envelope == honest
    with contextlib.suppress(EnvelopeError):
        assert envelope_host(envelope) == envelope["host_id"]


def test_each_side_may_be_one_version_behind_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = seal(ORDERS, secret=SECRET)
    payload = json.dumps({**json.loads(sealed["payload"]), "added_later": {"x": 1}})
    later = signed(payload, protocol=spec.PROTOCOL + 1)
    assert opened(later) == ORDERS
    assert envelope_host(later) == "h"
    with pytest.raises(EnvelopeError, match="update the receiver"):
        opened(signed(payload, protocol=spec.PROTOCOL + 2))
    monkeypatch.setattr(spec, "PROTOCOL", spec.PROTOCOL + 1)
    assert opened(sealed) == ORDERS
    monkeypatch.setattr(spec, "PROTOCOL", spec.PROTOCOL + 1)
    with pytest.raises(EnvelopeError, match="update the sender"):
        opened(sealed)


def test_the_version_is_signed() -> None:
    with pytest.raises(EnvelopeError, match="signature"):
        opened({**seal(ORDERS, secret=SECRET), "protocol": spec.PROTOCOL + 1})
