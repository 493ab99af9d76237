"""What a new deployment is proposed to run on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.proposal import HardwareView, accelerators_needed, propose_hardware

GIB = 1 << 30
CPU = HardwareView("cpu", "CPU", True, 0, hosts=2)
L4 = HardwareView("l4", "NVIDIA L4", False, 24 * GIB, hosts=3, accelerators=12, free=9)
H100 = HardwareView("h100", "NVIDIA H100", False, 80 * GIB, hosts=1, accelerators=8, free=2)


@pytest.mark.parametrize(
    ("kinds", "weights_gib", "needs_accelerator", "slug", "count"),
    [
        ([], 16, True, None, 0),
        ([HardwareView("h100", "NVIDIA H100", False, 80 * GIB, hosts=0)], 16, True, None, 0),
        ([CPU, L4, H100], 0, False, "cpu", 0),
        ([L4, H100], 0, False, "l4", 0),
        ([CPU], 16, True, "cpu", 0),
        ([CPU, L4, H100], 16, True, "l4", 1),
        ([CPU, L4, H100], 40, True, "h100", 1),
        ([L4, H100], 79, True, "h100", 1),
        ([L4], 40, True, "l4", 2),
        ([H100], 170, True, "h100", 4),
        ([CPU, L4, H100], 0, True, "l4", 1),
    ],
)
def test_the_fewest_accelerators_that_hold_it_and_the_freest_of_these(
    kinds: list[HardwareView], weights_gib: float, needs_accelerator: bool, slug: str | None, count: int
) -> None:
    found = propose_hardware(kinds, weights_bytes=weights_gib * GIB, needs_accelerator=needs_accelerator)
    assert (found.slug, found.accelerators) == (slug, count)


def test_the_reason_has_the_figures() -> None:
    assert propose_hardware([L4], weights_bytes=40 * GIB, needs_accelerator=True).reason == (
        "weights with room beside them take 40 GiB, and one holds 24 GiB; "
        "9 of 12 accelerators of 3 hosts with NVIDIA L4 are free"
    )
    assert "no host" in propose_hardware([], weights_bytes=0, needs_accelerator=True).reason


@given(
    memory=st.integers(min_value=1, max_value=200),
    weights=st.floats(min_value=0.1, max_value=5000, allow_nan=False),
)
def test_what_is_proposed_holds_the_weights_and_half_of_it_would_not(memory: int, weights: float) -> None:
    kind = HardwareView("x", "X", False, memory * GIB, hosts=1, accelerators=8, free=8)
    count = propose_hardware([kind], weights_bytes=weights * GIB, needs_accelerator=True).accelerators
    assert count & (count - 1) == 0
    assert count * memory >= weights * (1 - 1e-9)
    assert count == 1 or count // 2 * memory < weights * (1 + 1e-9)


def test_a_full_house_is_told() -> None:
    full = HardwareView("h100", "NVIDIA H100", False, 80 * GIB, hosts=1, accelerators=8, free=1)
    reason = propose_hardware([full], weights_bytes=150 * GIB, needs_accelerator=True).reason
    assert reason.endswith(
        "1 of 8 accelerators of 1 host with NVIDIA H100 are free, so the first replica waits for room"
    )


@pytest.mark.parametrize(
    ("kind", "needs_accelerator", "count"), [(CPU, True, 0), (L4, False, 0), (L4, True, 2), (H100, True, 1)]
)
def test_a_kind_that_no_host_has_now_is_counted_all_the_same(
    kind: HardwareView, needs_accelerator: bool, count: int
) -> None:
    assert accelerators_needed(kind, weights_bytes=40 * GIB, needs_accelerator=needs_accelerator) == count
