"""How large an image is, by the first bytes of its file, and how many tokens it becomes at most.

Pure: bytes in, numbers out. Nothing is decoded, so that a file which claims to be huge costs nothing here.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

TOKEN_PIXELS = 28
"""Side of the square that becomes a token, in pixels: patches of 14, two by two (the Qwen-VL, InternVL and Mistral
families). Models that keep finer detail, or scale images, are learned by what their engine counts."""
MAX_IMAGE_TOKENS = 16_384
"""Of one image: where Qwen2-VL scales down by default, and the most of what is in use."""
FORMATS = "PNG, JPEG, GIF or WebP"
HEAD_BYTES = 64
"""As much of a file tells its size, but for JPEG, whose size may stand behind a camera's notes and a colour profile."""


class Size(NamedTuple):
    """In pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


def size_of(data: bytes) -> Size | None:
    """The size of the image that ``data`` begins. None: no image of ``FORMATS``, or its size is further behind."""
    size: tuple[int, int] | None = None
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and len(data) >= 24:
        size = struct.unpack(">II", data[16:24])
    elif data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
        size = struct.unpack("<HH", data[6:10])
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) >= 30:
        size = _webp(data)
    elif is_jpeg(data):
        size = _jpeg(data)
    return Size(*size) if size is not None and min(size) > 0 else None


def is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8\xff")


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Segments are walked to the frame's header: FF, a kind, the length of what follows with itself."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        kind = data[at + 1]
        if kind == 0xFF:  # a filling byte
            at += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        elif kind == 0x01 or 0xD0 <= kind <= 0xD8:
            at += 2
        elif kind in (0xD9, 0xDA):
            return None
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if length < 2:
                return None
            at += 2 + length
    return None


def token_bound(size: Size) -> int:
    """At most so many tokens does an image of ``size`` become in a model that reads it as it is."""
    columns, rows = -(-size.width // TOKEN_PIXELS), -(-size.height // TOKEN_PIXELS)
    return min(MAX_IMAGE_TOKENS, columns * rows)


class ImageHabit:
    """What images have become at one deployment, by classes of size that each reach from one power of two to the next.

    Models differ: some scale every image to the same number of tokens, some only large ones, some read finer patches.
    """

    __slots__ = ("_classes",)

    def __init__(self) -> None:
        self._classes: dict[int, tuple[int, bool]] = {}

    def note(self, bound: int, tokens: int) -> None:
        """An image whose ``token_bound`` is ``bound`` has become ``tokens``."""
        most, is_more = self._classes.get(bound.bit_length(), (0, False))
        self._classes[bound.bit_length()] = (max(most, tokens), is_more or tokens > bound)

    def expected(self, bound: int, unknown: int) -> int:
        """Tokens that an image is expected to become at most; at least ``unknown`` where none of its class was seen."""
        seen = self._classes.get(bound.bit_length())
        if seen is None:
            return max(bound, unknown)
        most, is_more = seen
        # Within a class sizes differ by less than two.
        return 2 * most if is_more else min(bound, 2 * most)
