"""Makes names, ids, images and results of a session fit for providers: one that is refused spoils the whole
conversation, whatever model, tool or server made it up.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from .._dataclasses import replace
from ..session._message import Image, Message

_OTHER: Final = re.compile(r"[^a-zA-Z0-9_-]")
_PICTURES: Final = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
}


def fitting(text: str, longest: int) -> str:
    """``text`` in the letters, digits, ``_`` and ``-`` that all providers take, at most ``longest`` of them.

    What has to be changed ends with a digest of the original, so that two of them stay two.
    """
    if text and len(text) <= longest and not _OTHER.search(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{_OTHER.sub('_', text[: longest - 9])}_{digest}"


def picture(image: Image) -> tuple[str, str] | None:
    """The kind of the picture and its data in base64; None for a kind that nobody takes, which only has its place in
    the text then. What its data say counts: servers are wrong about their own pictures, and providers look.
    """
    data = image.data
    kind = next((kind for begin, kind in _PICTURES.items() if data.startswith(begin)), image.media_type)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if not data or kind not in (*_PICTURES.values(), "image/webp"):
        return None
    return kind, base64.b64encode(data).decode()


def paired(messages: Iterable[Message]) -> Iterator[Message]:
    """The messages without results that no call asked for, and with an id of its own for each call: other programs, and
    models that number their calls in each reply, use them again.
    """
    times: dict[str, int] = {}
    asked: dict[str | None, deque[str]] = {}
    for message in messages:
        if message.role == "assistant":
            asked = {}
            calls = []
            for call in message.tool_calls:
                times[call.id] = times.get(call.id, 0) + 1
                id = call.id if times[call.id] == 1 else f"{call.id}_again_{times[call.id]}"
                asked.setdefault(call.id, deque()).append(id)
                calls.append(call if id == call.id else replace(call, id=id))
            if any(sent is not call for sent, call in zip(calls, message.tool_calls, strict=True)):
                message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool":
            ids = asked.get(message.tool_call_id)
            if not ids:
                continue
            id = ids.popleft()
            if id != message.tool_call_id:
                message = replace(message, tool_call_id=id)
        yield message
