"""Images, audio and video in requests: sent inline, and images of a kind and size that engines can be asked for."""

from __future__ import annotations

import binascii

from serving.gateway import errors
from serving.policy import images

_HEADS = (4 * 1024, 64 * 1024, 256 * 1024)
"""Bytes of a file that are looked through for its size, the next where it stands further behind: after a camera's notes
and a colour profile."""


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
    if not comma or not head.endswith(";base64"):
        raise errors.bad_request(
            "A data: URI must hold base64: write it as 'data:image/png;base64,' and the encoded file.",
            param=param,
            code="invalid_value",
        )
    return data


def add_image(gallery: images.Gallery, url: str, param: str) -> None:
    """Take the image of a data URI into ``gallery``, by its size. Raises ApiError 400, also when it is one too many."""
    if gallery.is_full:
        raise errors.bad_request(
            f"At most {images.MAX_IMAGES} images may be in one request.", param=param, code="too_many_images"
        )
    gallery.add(_size(require_inline(url, param), param))
    if gallery.is_too_large:
        raise errors.bad_request(
            f"The images up to here have up to {gallery.pixels:,} pixels; at most {images.MAX_REQUEST_PIXELS:,} may be "
            "in one request. Send fewer of them, or smaller ones.",
            param=param,
            code="images_too_large",
        )


def _size(data: str, param: str) -> images.Size | None:
    """Of the image that base64 text holds; None where it is not found in what is read here. Raises ApiError 400."""
    size: images.Size | None = None
    for count in _HEADS:
        try:
            size = images.size_of(_decoded(data, count))
        except images.TooShort:
            if _encoded(count) < len(data):
                continue
        break
    else:
        return None
    if size is None:
        raise errors.bad_request(
            f"This is no image that can be read: send a file in {images.FORMATS}, encoded in base64.",
            param=param,
            code="invalid_image",
        )
    if size.pixels > images.MAX_PIXELS:
        raise too_large(f"The image has {size.width} × {size.height} pixels", param)
    return size


def too_large(what: str, param: str | None = None) -> errors.ApiError:
    """``what`` begins the sentence that the client reads."""
    return errors.bad_request(
        f"{what}; at most {images.MAX_PIXELS:,} in all are allowed. Send it smaller.",
        param=param,
        code="image_too_large",
    )


def _encoded(count: int) -> int:
    """Length of the base64 text of ``count`` bytes."""
    return -(-count // 3) * 4


def _decoded(data: str, count: int) -> bytes:
    """About the first ``count`` bytes; what is no base64 ends them."""
    head = data[: _encoded(count)]
    try:
        return binascii.a2b_base64(head + "=" * (-len(head) % 4))
    except (ValueError, binascii.Error):
        return b""
