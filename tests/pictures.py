"""Images for tests: PNG files made here, and files of other formats that Pillow wrote."""

from __future__ import annotations

import base64
import random
import struct
import zlib

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
"""A whole PNG file of one grey pixel, in base64."""
PIXEL_URL = f"data:image/png;base64,{PIXEL}"

BY_PILLOW = {
    "gif": (
        "R0lGODlhIQBGAIEAAAcHBwAAAAAAAAAAACwAAAAAIQBGAEAITwABCBxIsKDBgwgTKlzIsKHDhxAjSpxIsaLFixgzatzIsaPHjyBD"
        "ihxJsqTJkyhTqlzJsqXLlzBjypxJs6bNmzhz6tzJs6fPn0CDCh0KMiAAOw=="
    ),
    "jpeg": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////////////////"
        "////////////////////wAALCABGACEBAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUF"
        "BAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVW"
        "V1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi"
        "4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/AI6KKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKKK//9k="
    ),
    "progressive jpeg": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////////////////"
        "////////////////////wgALCABGACEBAREA/8QAFQABAQAAAAAAAAAAAAAAAAAAAAL/2gAIAQEAAAABkAAAAAAA/8QAFBABAAAA"
        "AAAAAAAAAAAAAAAAUP/aAAgBAQABBQI3/8QAFBABAAAAAAAAAAAAAAAAAAAAUP/aAAgBAQAGPwI3/8QAFBABAAAAAAAAAAAAAAAA"
        "AAAAUP/aAAgBAQABPyE3/9oACAEBAAAAEAAAAAAAB//EABQQAQAAAAAAAAAAAAAAAAAAAFD/2gAIAQEAAT8QN//Z"
    ),
    "lossy webp": ("UklGRjwAAABXRUJQVlA4IDAAAABwAwCdASohAEYAL53m83msv7W1n4GcS0gADoVotYRaeG2w2MAA/uvdL+Za/mEAAAA="),
    "lossless webp": ("UklGRiQAAABXRUJQVlA4TBcAAAAvIEARAAdQhCb0oP8BICH8Xy9G9D/lAgA="),
    "transparent webp": (
        "UklGRmIAAABXRUJQVlA4WAoAAAAQAAAAIAAARQAAQUxQSBAAAAABB1CDiAgACeH/ejGi/ykXVlA4ICwAAABwAwCdASohAEYAP83m"
        "8HI/t7MsIigD8DmJaQAAEDdTUAV4hTAA/ujEAAAAAA=="
    ),
}
"""Files of 33 × 70 pixels, in base64."""


def png(width: int, height: int, *, noise: int = 1, cut_at: int | None = None) -> str:
    """A PNG file of grey noise in base64, cut off after ``cut_at`` bytes. Equal arguments make equal files."""
    dice = random.Random(noise)
    lines = b"".join(b"\0" + dice.randbytes(width) for _ in range(height))
    return base64.b64encode((_head(width, height) + _chunk(b"IDAT", zlib.compress(lines, 1)) + _END)[:cut_at]).decode()


def claimed(width: int, height: int) -> str:
    """A PNG file in base64 that claims a size and has nothing of it."""
    return base64.b64encode(_head(width, height) + _chunk(b"IDAT", b"") + _END).decode()


def png_url(width: int, height: int, **more: int) -> str:
    return f"data:image/png;base64,{png(width, height, **more)}"


def _head(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_END = _chunk(b"IEND", b"")
