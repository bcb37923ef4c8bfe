"""The result of a server's tool as the model gets it: text, and images beside it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

from ..agent._tool import ToolResult
from ..foreign import _json
from ..session._message import Image, size_of

_TELLING: Final = 64  # characters from which on a text is certainly the same data, not by chance
_PICTURES: Final = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


def result_of(outcome: Any) -> ToolResult:
    """The result for the model: texts, those of embedded resources too; a line that names everything else; the images.

    Structured content says the same again, so it counts only where there is no text. What is an image already is not
    shown in base64 as well, as servers do that repeat their content there.
    """
    parts: list[str] = []
    images: list[Image] = []
    shown: dict[str, str] = {}  # by the data, what stands for it
    is_texted = False
    for block in outcome.content:
        part, data, image = _part(block)
        parts.append(part)
        is_texted = is_texted or bool(_said(block).strip())
        if image is not None:
            images.append(image)
        if len(data) >= _TELLING:
            shown[data] = part
    if outcome.structured_content is not None and not is_texted:
        parts.append(_json.write(_without(outcome.structured_content, shown)))
    elif shown:
        parts = [_without(part, shown) for part in parts]
    content = "\n".join(parts)
    if not content.strip():
        content = "[the tool failed, and does not say why]" if outcome.is_error else "[no content]"
    return ToolResult(content, outcome.is_error, tuple(images))


def _said(block: Any) -> str:
    return getattr(block, "text", "") or getattr(getattr(block, "resource", None), "text", "")


def _part(block: Any) -> tuple[str, str, Image | None]:
    """The text for a block of the result, its data in base64, and the image that it is."""
    match block.type:
        case "text":
            return block.text, "", None
        case "image" | "audio":
            return _binary(block.type, "", block.mime_type, block.data)
        case "resource_link":
            return _line("resource", block.uri, block.mime_type, _name(block)), "", None
        case "resource":
            inside = block.resource
            if hasattr(inside, "text"):
                return f"{_line('resource', inside.uri, inside.mime_type)}\n{inside.text}", "", None
            return _binary("resource", inside.uri, inside.mime_type, inside.blob)
        case kind:
            return f"[{kind}]", "", None


def _binary(kind: str, uri: str, media_type: str | None, data: str) -> tuple[str, str, Image | None]:
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):  # no provider would take it: it ends the run, or every later one
        return _line(kind, uri, media_type, "which cannot be read: its base64 is broken"), data, None
    seen = picture(decoded) if kind == "image" or (media_type or "").startswith("image/") else None
    image = Image(decoded, seen) if seen is not None else None
    return _line(kind, uri, media_type, size_of(len(decoded))), data, image


def picture(data: bytes) -> str | None:
    """Which of the kinds that models can see it is. They refuse the whole conversation for one that is of another, or
    not of the kind that it is said to be.
    """
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _PICTURES if data.startswith(start)), None)


def _line(kind: str, uri: object, media_type: str | None, note: str = "") -> str:
    named = f"{kind} {uri}" if uri else kind
    if not uri and media_type:
        named, media_type = f"{kind} {media_type}", None
    return f"[{', '.join(str(each) for each in (named, media_type, note) if each)}]"


def _name(link: Any) -> str:
    """The name and description of a link: the model decides by them whether to follow it."""
    name = link.title or link.name
    said = [each for each in (name if name != str(link.uri) else "", link.description) if each]
    return ": ".join(said)


def _without(value: Any, shown: Mapping[str, str]) -> Any:
    """``value`` without the data that is shown otherwise."""
    if isinstance(value, str):
        for data, part in shown.items():
            value = value.replace(data, part)
        return value
    if isinstance(value, Mapping):
        return {key: _without(each, shown) for key, each in value.items()}
    if isinstance(value, list):
        return [_without(each, shown) for each in value]
    return value
