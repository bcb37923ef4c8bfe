"""The images of messages, which a database keeps apart, by their digests: one that many messages show is there once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from .._dataclasses import replace
from ..session._message import Image, Message


def taken_apart(message: Message) -> tuple[dict[str, Any], tuple[tuple[bytes, bytes], ...]]:
    """The message as JSON that names its images by their digests, and each digest with the data of its image."""
    if not message.images:
        return message.to_dict(), ()
    blobs = tuple((hashlib.sha256(image.data).digest(), image.data) for image in message.images)
    data = replace(message, images=()).to_dict()
    data["images"] = [
        {"media_type": image.media_type, "sha256": digest.hex()}
        for image, (digest, _) in zip(message.images, blobs, strict=True)
    ]
    return data, blobs


def put_together(data: dict[str, Any], images: Mapping[str, bytes]) -> Message:
    """The message that was `taken_apart`; ``images`` has their data, by the digests in hexadecimal."""
    shown = data.pop("images", ())
    message = Message.from_dict(data)
    if not shown:
        return message
    return replace(message, images=tuple(Image(images[each["sha256"]], each["media_type"]) for each in shown))
