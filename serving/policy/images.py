"""How large an image is, by the first bytes of its file, and how many tokens it becomes at most.

Pure: bytes in, numbers out. Nothing is decoded, so that a file which claims to be huge costs nothing here.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from typing import NamedTuple

TOKEN_PIXELS = 28
"""Side of the square that becomes a token, in pixels: patches of 14, two by two (the Qwen-VL, InternVL and Mistral
families). Models that keep finer detail, or scale images, are learned by what their engine counts."""
MAX_IMAGE_TOKENS = 16_384
"""Of one image: where Qwen2-VL scales down by default, and the most of what is in use."""
MAX_PIXELS = 64_000_000
"""Of one image: 8,000 × 8,000, as with Anthropic. Engines decode it whole before they scale it down: 200 MB."""
MAX_REQUEST_PIXELS = 256_000_000
"""Of all images of one request, which an engine holds decoded at once: four of the largest, or 120 full HD pictures."""
MAX_IMAGES = 500
"""Of one request, as with OpenAI: each is looked at before the next request is."""
FORMATS = "PNG, JPEG, GIF or WebP"
_STEPS = 200
"""Parts of a file that are walked at most: real ones have a few dozen before the picture begins."""
_FADE, _STILL = 0.05, 0.01
_FILLING = re.compile(rb"\xff+")


class Size(NamedTuple):
    """In pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


class TooShort(Exception):
    """The bytes are those of an image and end before its size is settled."""


def size_of(data: bytes) -> Size | None:
    """The size of the image that ``data`` begins; None: no image of ``FORMATS``. Raises TooShort.

    A file can state several sizes: the largest is taken of those before the picture itself, since decoders differ.
    """
    size: tuple[int, int] | None = None
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        size = _png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        size = _gif(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        size = _webp(data)
    elif data.startswith(b"\xff\xd8\xff"):
        size = _jpeg(data)
    return Size(*size) if size is not None and min(size) > 0 else None


def _png(data: bytes) -> tuple[int, int] | None:
    """Chunks are walked to the picture's data: their length without kind and checksum, their kind."""
    found: list[tuple[int, int]] = []
    at = 8
    for _ in range(_STEPS):
        kind = data[at + 4 : at + 8]
        if kind in (b"IDAT", b"IEND"):
            return _largest(found)
        if len(kind) < 4 or (kind == b"IHDR" and at + 16 > len(data)):
            break
        if kind == b"IHDR":
            found.append(struct.unpack(">II", data[at + 8 : at + 16]))
        elif not found:
            return None
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise TooShort


def _gif(data: bytes) -> tuple[int, int] | None:
    """Blocks are walked to the first frame, which may reach beyond the screen that the head states."""
    if len(data) < 13:
        raise TooShort
    width, height = struct.unpack("<HH", data[6:10])
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    is_extension = False
    for _ in range(_STEPS):
        if at >= len(data):
            break
        kind = data[at]
        if is_extension:  # lengths, each with as many bytes; none ends them
            at += 1 + kind
            is_extension = kind != 0
        elif kind == 0x2C:
            if at + 9 > len(data):
                break
            left, top, wide, high = struct.unpack("<HHHH", data[at + 1 : at + 9])
            return max(width, left + wide), max(height, top + high)
        elif kind == 0x3B:
            return None
        else:
            is_extension = kind == 0x21
            at += 2 if is_extension else 1
    raise TooShort


def _webp(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        raise TooShort
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
    """Segments are walked to the picture's data: FF, a kind, the length of what follows with itself.

    Stray bytes between them are passed over, as decoders do.
    """
    found: list[tuple[int, int]] = []
    at = 2
    for _ in range(_STEPS):
        filling = _FILLING.search(data, at)
        if filling is None or filling.end() + 8 > len(data):
            break
        at = filling.end()
        kind = data[at]
        if kind == 0xDA:
            return _largest(found)
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 4 : at + 8])
            found.append((width, height))
        is_bare = kind in (0x00, 0x01, 0xC8) or 0xD0 <= kind <= 0xD9
        at += 1 if is_bare else 1 + max(2, int.from_bytes(data[at + 1 : at + 3], "big"))
    raise TooShort


def _largest(sizes: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def token_bound(size: Size) -> int:
    """At most so many tokens does an image of ``size`` become in a model that reads it as it is."""
    columns, rows = -(-size.width // TOKEN_PIXELS), -(-size.height // TOKEN_PIXELS)
    return min(MAX_IMAGE_TOKENS, columns * rows)


class Gallery:
    """The images of one request, as they are found: the ``token_bound`` of each, and the pixels of all together."""

    __slots__ = ("bounds", "pixels")

    def __init__(self) -> None:
        self.bounds: list[int] = []
        self.pixels = 0

    def add(self, size: Size | None) -> None:
        """None: the size was not found in what was read of it, so it may be the largest that is let through."""
        self.bounds.append(token_bound(size) if size is not None else MAX_IMAGE_TOKENS)
        self.pixels += size.pixels if size is not None else MAX_PIXELS

    @property
    def is_full(self) -> bool:
        """No further image may come, of whatever size."""
        return len(self.bounds) >= MAX_IMAGES

    @property
    def is_too_large(self) -> bool:
        return self.pixels > MAX_REQUEST_PIXELS


class ImageHabit:
    """What images have become at one deployment, by classes of size that each reach from one power of two to the next.

    Models differ: some scale every image to the same number of tokens, some only large ones, some read finer patches.
    """

    __slots__ = ("_classes",)

    def __init__(self) -> None:
        self._classes: dict[int, tuple[float, float]] = {}

    def note(self, bound: int, tokens: int) -> None:
        """An image whose ``token_bound`` is ``bound`` has become ``tokens``.

        What was seen fades with what comes after it: a new revision may make less of the same images.
        """
        is_more = float(tokens > bound)
        most, more = self._classes.get(bound.bit_length(), (0.0, is_more))
        most = max(float(tokens), most - _FADE * (most - tokens))
        self._classes[bound.bit_length()] = (most, more + _FADE * (is_more - more))

    def expected(self, bound: int, unknown: int) -> int:
        """Tokens that an image is expected to become at most; at least ``unknown`` where none of its class was seen."""
        seen = self._classes.get(bound.bit_length())
        if seen is None:
            return max(bound, unknown)
        # Within a class sizes differ by less than two.
        most, more = math.ceil(2 * seen[0]), seen[1]
        return min(MAX_IMAGE_TOKENS, most if more > _STILL else min(bound, most))
