"""How large images are, by the first bytes of their files, and what they become in tokens."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.images import (
    MAX_IMAGE_TOKENS,
    MAX_IMAGES,
    MAX_PIXELS,
    MAX_REQUEST_PIXELS,
    Gallery,
    ImageHabit,
    Size,
    TooShort,
    size_of,
    token_bound,
)
from tests.pictures import BY_PILLOW, png

SIDES = st.integers(1, 20_000)


@pytest.mark.parametrize("name", BY_PILLOW)
def test_the_size_of_each_format_is_read_as_pillow_wrote_it(name: str) -> None:
    data = base64.b64decode(BY_PILLOW[name])
    assert size_of(data) == (33, 70)
    with pytest.raises(TooShort):
        size_of(data[:20])


def test_the_size_of_a_jpeg_stands_behind_whatever_a_camera_wrote() -> None:
    data = base64.b64decode(BY_PILLOW["jpeg"])
    notes = b"\xff\xe1" + (60_000).to_bytes(2, "big") + bytes(59_998)
    colours = b"\xff\xe2" + (50_000).to_bytes(2, "big") + b"\xff" * 49_998
    assert size_of(data[:2] + notes + colours + b"\xff\xff" + data[2:]) == (33, 70)
    assert size_of(data[:2] + notes + b"\0\0" + data[2:]) == (33, 70), "decoders pass over stray bytes"
    with pytest.raises(TooShort):
        size_of((data[:2] + notes)[:4096])


def test_a_png_made_here_has_its_size() -> None:
    assert size_of(base64.b64decode(png(57, 3))) == Size(57, 3)


def test_of_several_sizes_that_a_file_states_the_largest_counts() -> None:
    """Pillow takes the last header of PNG and JPEG before the picture, and lets a GIF's frame widen its screen."""
    small, large = base64.b64decode(png(1, 1)), base64.b64decode(png(1500, 900))
    header = slice(8, 33)
    assert size_of(small[:8] + small[header] + large[header] + small[33:]) == (1500, 900)
    assert size_of(small[:8] + large[header] + small[header] + small[33:]) == (1500, 900)
    photo = base64.b64decode(BY_PILLOW["jpeg"])
    frame = b"\xff\xc0\x00\x0b\x08" + (900).to_bytes(2, "big") + (1500).to_bytes(2, "big") + b"\x01\x01\x11\x00"
    at = photo.index(b"\xff\xda")
    assert size_of(photo[:at] + frame + photo[at:]) == (1500, 900)
    still = base64.b64decode(BY_PILLOW["gif"])
    at = still.index(b"\x2c\0\0\0\0")
    wide = still[:at] + b"\x21\xfe\x03abc\x00" + b"\x2c\x02\0\0\0\xdc\x05\x84\x03" + still[at + 9 :]
    assert size_of(wide) == (1502, 900)


class Counted(bytes):
    """Counts how often a part of it is taken."""

    taken = 0

    def __getitem__(self, key: Any) -> Any:
        self.taken += 1
        return super().__getitem__(key)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 200_000,
        b"\xff\xd8" + b"\xff\x01" * 100_000,
        b"\xff\xd8\xff" + b"\0" * 200_000,
        b"GIF89a" + bytes(200_000),
        b"GIF89a" + bytes(7) + b"\x21\xfe" + b"\x01a" * 100_000,
        b"\x89PNG\r\n\x1a\n" + base64.b64decode(png(1, 1))[8:33] + b"\0\0\0\0tEXt\0\0\0\0" * 20_000,
    ],
)
def test_no_file_is_walked_for_long(data: bytes) -> None:
    counted = Counted(data)
    with pytest.raises(TooShort):
        size_of(counted)
    assert counted.taken < 2000


def found(data: bytes) -> Size | None:
    try:
        return size_of(data)
    except TooShort:
        return None


@given(st.sampled_from(sorted(BY_PILLOW)), st.integers(0, 200), st.binary(max_size=8))
def test_broken_files_have_a_size_or_none_and_never_raise(name: str, at: int, junk: bytes) -> None:
    data = base64.b64decode(BY_PILLOW[name])
    for size in (found(data[:at]), found(data[:at] + junk + data[at + len(junk) :]), found(junk)):
        assert size is None or min(size) > 0


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


def test_what_was_seen_once_fades_and_never_exceeds_the_most_of_any_image() -> None:
    habit = ImageHabit()
    habit.note(1036, 234)
    habit.note(1036, 10**9)
    assert habit.expected(1036, 512) == MAX_IMAGE_TOKENS
    for _ in range(500):
        habit.note(1036, 234)
    assert habit.expected(1036, 512) < 1036


@given(st.lists(st.integers(1, MAX_IMAGE_TOKENS), min_size=1), st.integers(1, MAX_IMAGE_TOKENS), st.booleans())
def test_what_was_seen_is_never_expected_to_be_less(bounds: list[int], fixed: int, scales_all: bool) -> None:
    """Of models that make a fixed number of tokens of every image, and of those that scale down to it."""
    habit = ImageHabit()

    def become(bound: int) -> int:
        return fixed if scales_all else min(bound, fixed)

    for bound in bounds:
        habit.note(bound, become(bound))
        assert become(bound) <= habit.expected(bound, 512) <= 2 * max(bound, fixed)


@given(st.lists(st.one_of(st.none(), st.builds(Size, SIDES, SIDES)), max_size=20))
def test_a_gallery_counts_what_an_engine_may_have_to_hold(sizes: list[Size | None]) -> None:
    gallery = Gallery()
    for size in sizes:
        gallery.add(size)
    pixels = sum(64_000_000 if size is None else size.width * size.height for size in sizes)
    assert (gallery.pixels, gallery.is_too_large) == (pixels, pixels > 256_000_000)
    assert gallery.bounds == [MAX_IMAGE_TOKENS if size is None else token_bound(size) for size in sizes]
    assert (MAX_PIXELS, MAX_REQUEST_PIXELS, MAX_IMAGES) == (64_000_000, 256_000_000, 500)


def test_a_gallery_is_full_by_the_number_alone() -> None:
    gallery = Gallery()
    for _ in range(499):
        gallery.add(Size(1, 1))
    assert not gallery.is_full
    gallery.add(Size(1, 1))
    assert (gallery.is_full, gallery.is_too_large) == (True, False)
