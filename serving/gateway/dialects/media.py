"""Images, audio and video in requests: sent inline, and images of a kind and size that engines can be asked for."""

from __future__ import annotations

import binascii

from serving.gateway import errors
from serving.policy import images

MAX_PIXELS = 64_000_000
"""8,000 × 8,000, as with Anthropic. Engines decode an image whole before they scale it down: 200 MB at this size."""
_LARGEST_HEAD = 1024 * 1024
"""Bytes of a JPEG file that are looked through for its size."""


def require_inline(url: str, param: str) -> str:
    """The base64 text of a data URI. Raises ApiError 400 for anything else.

    The engine would fetch a remote address itself, from inside the network. It knows no data but in base64.
    """
    if url[:5].lower() != "data:":
        raise errors.bad_request(
            "Images, audio and video must be sent inline as data: URIs; remote addresses are not fetched.",
            param=param,
            code="remote_media_not_allowed",
        )
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise errors.bad_request(
            "A data: URI must hold base64: write it as 'data:image/png;base64,' and the encoded file.",
            param=param,
            code="invalid_value",
        )
    return data


def read_image(url: str, param: str) -> int:
    """Tokens that the image of a data URI becomes at most, by its size alone. Raises ApiError 400."""
    return bound_of(require_inline(url, param), param)


def bound_of(data: str, param: str) -> int:
    """The same of the base64 text itself."""
    size = images.size_of(head := _decoded(data, images.HEAD_BYTES))
    if size is None and images.is_jpeg(head):
        size = images.size_of(_decoded(data, _LARGEST_HEAD))
    if size is None:
        raise errors.bad_request(
            f"This is no image that can be read: send a file in {images.FORMATS}, encoded in base64.",
            param=param,
            code="invalid_image",
        )
    if size.pixels > MAX_PIXELS:
        raise errors.bad_request(
            f"The image has {size.width} × {size.height} pixels; at most {MAX_PIXELS:,} in all are allowed. "
            "Send it smaller.",
            param=param,
            code="image_too_large",
        )
    return images.token_bound(size)


def _decoded(data: str, count: int) -> bytes:
    """About the first ``count`` bytes; what is no base64 ends them."""
    head = data[: -(-count // 3) * 4]
    try:
        return binascii.a2b_base64(head + "=" * (-len(head) % 4))
    except (ValueError, binascii.Error):
        return b""
