"""How the audit log tells values: as the pages tell them elsewhere, not as they are stored."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.web.operators.audit import changes
from tenants.models import AuditEntry


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("cold_start_s", 60.0, 94.5, ("cold start", "60", "94.5", "s")),
        ("mu_per_min", 0.25, None, ("mu per min", "0.25", "none", "")),
        ("reserved_mu_per_min", 1, 2, ("reserved", "1", "2", "MU/min")),
        ("labels", {}, {"zone": "b", "rack": "r12"}, ("labels", "none", "zone=b, rack=r12", "")),
        ("scopes", ["inference"], ["inference", "usage"], ("scopes", "inference", "inference, usage", "")),
        ("options", None, {"max_model_len": 16384}, ("options", "none", '{"max_model_len": 16384}', "")),
        ("is_active", True, False, ("is active", "yes", "no", "")),
        ("name", "", "2026-11-26", ("name", "none", "2026-11-26", "")),
    ],
)
def test_values_in_words(name: str, before: Any, after: Any, told: tuple[str, ...]) -> None:
    (change,) = changes(AuditEntry(before={name: before}, after={name: after}))
    assert (change.name, change.before, change.after, change.unit) == told


def test_a_moment_is_told_in_the_viewers_zone() -> None:
    (change,) = changes(AuditEntry(after={"expires_at": "2026-11-26T10:05:02.175108+00:00"}))
    stamp = '<time datetime="2026-11-26T10:05:02.175+00:00" data-local="stamp">26 Nov 2026 10:05:02</time>'
    assert (change.before, change.after) == ("", stamp)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59+00:00", "2026-13-45T00:00:00Z", "<b>2026</b>"])
def test_what_only_looks_like_a_moment_stays_text(text: str) -> None:
    (change,) = changes(AuditEntry(after={"name": text}))
    assert change.after == text
    assert not hasattr(change.after, "__html__")
