"""How large images are, by the first bytes of their files, and what they become in tokens."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.images import HEAD_BYTES, MAX_IMAGE_TOKENS, ImageHabit, Size, size_of, token_bound
from tests.pictures import BY_PILLOW, png

SIDES = st.integers(1, 20_000)


@pytest.mark.parametrize("name", BY_PILLOW)
def test_the_size_of_each_format_is_read_as_pillow_wrote_it(name: str) -> None:
    data = base64.b64decode(BY_PILLOW[name])
    assert size_of(data) == (33, 70)
    if "jpeg" not in name:
        assert size_of(data[:HEAD_BYTES]) == (33, 70)


def test_the_size_of_a_jpeg_stands_behind_whatever_a_camera_wrote() -> None:
    data = base64.b64decode(BY_PILLOW["jpeg"])
    notes = b"\xff\xe1" + (60_000).to_bytes(2, "big") + bytes(59_998)
    colours = b"\xff\xe2" + (50_000).to_bytes(2, "big") + b"\xff" * 49_998
    assert size_of(data[:2] + notes + colours + b"\xff\xff" + data[2:]) == (33, 70)
    assert size_of((data[:2] + notes)[:HEAD_BYTES]) is None


def test_a_png_made_here_has_its_size() -> None:
    assert size_of(base64.b64decode(png(57, 3))) == Size(57, 3)


@given(st.sampled_from(sorted(BY_PILLOW)), st.integers(0, 200), st.binary(max_size=8))
def test_broken_files_have_a_size_or_none_and_never_raise(name: str, at: int, junk: bytes) -> None:
    data = base64.b64decode(BY_PILLOW[name])
    for found in (size_of(data[:at]), size_of(data[:at] + junk + data[at + len(junk) :]), size_of(junk)):
        assert found is None or min(found) > 0


@given(SIDES, SIDES)
def test_the_bound_covers_what_qwen2_vl_makes_of_an_image(width: int, height: int) -> None:
    """Its processor rounds both sides to multiples of 28 pixels, at least one, and scales down what is too large."""
    columns, rows = max(1, round(width / 28)), max(1, round(height / 28))
    assert token_bound(Size(width, height)) >= min(columns * rows, MAX_IMAGE_TOKENS)


def test_a_deployment_is_learned_by_classes_of_size() -> None:
    habit = ImageHabit()
    assert habit.expected(4, 512) == 512
    assert habit.expected(1036, 512) == 1036
    habit.note(1036, 234)
    assert 234 <= habit.expected(1036, 512) <= 2 * 234
    assert 256 <= habit.expected(2000, 512) <= 2 * 256
    assert habit.expected(4, 512) == 512, "small images are another class"
    habit.note(1, 4)
    assert 4 <= habit.expected(1, 512) <= 8, "some models enlarge what is very small"


@given(st.lists(st.integers(1, MAX_IMAGE_TOKENS), min_size=1), st.integers(1, MAX_IMAGE_TOKENS), st.booleans())
def test_what_was_seen_is_never_expected_to_be_less(bounds: list[int], fixed: int, scales_all: bool) -> None:
    """Of models that make a fixed number of tokens of every image, and of those that scale down to it."""
    habit = ImageHabit()

    def become(bound: int) -> int:
        return fixed if scales_all else min(bound, fixed)

    for bound in bounds:
        habit.note(bound, become(bound))
        assert become(bound) <= habit.expected(bound, 512) <= 2 * max(bound, fixed)
