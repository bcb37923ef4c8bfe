"""Parts of a session that were written as JSON, read with checks: the file may be anybody's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from channels._lazy import lazy

from ..foreign._fields import LARGEST, Fields
from ..foreign._sound import well_formed
from ..permissions import Rule
from ..usage import Usage
from ._message import Image, Message, Native, ToolCall

if TYPE_CHECKING:
    import base64
else:
    base64 = lazy("base64")

_MOST: Final = 10_000  # tool calls or images of a message, patterns of a kind
_COUNTS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")


def message(said: Fields) -> Message:
    """A message, as `Message.to_dict` writes it."""
    return said.made(
        Message,
        role=said.text("role"),
        content=said.maybe("content") or "",
        tool_calls=tuple(
            ToolCall(call.text("id"), call.text("name"), call.text("arguments"))
            for call in said.objects("tool_calls", _MOST)
        ),
        tool_call_id=said.maybe("tool_call_id"),
        is_error=said.flag("is_error"),
        images=tuple(map(_image, said.objects("images", _MOST))),
        agent_name=said.maybe("agent_name"),
        model=said.maybe("model"),
        usage=said.maybe_object("usage", usage),
        finish_reason=said.maybe("finish_reason"),
        native=said.maybe_object("native", lambda native: Native(native.text("provider"), native.data.get("content"))),
        created_at=said.moment("created_at") if "created_at" in said.data else datetime.now(UTC),
    )


def _image(said: Fields) -> Image:
    try:
        return Image(base64.b64decode(said.text("data"), validate=True), said.text("media_type"))
    except ValueError:  # binascii.Error, and what Image says of the type
        said.wrong("data", "an image in base64")


def usage(said: Fields) -> Usage:
    """Token counts, as `Usage.to_dict` writes them."""
    counts = {name: said.number(name) for name in _COUNTS if name in said.data}
    cost = said.data.get("cost")
    if cost is not None and (isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost < LARGEST):
        said.wrong("cost", "a number of dollars, or null")
    return Usage(**counts, cost=None if cost is None else float(cost))


def compacted(said: Fields, messages: int | None) -> tuple[str, int, int, int]:
    """The values of a `Compacted`: which of so many ``messages`` are summed up. The next one may be known not to be."""
    start, shortened, at = said.number("start"), said.number("shortened"), said.number("at")
    if messages is not None and max(start, shortened, at - 1) > messages:
        said.wrong("at", f"a number of messages, of which there are {messages}")
    return said.text("summary"), start, shortened, at


def rules(said: Fields, name: str) -> list[Rule]:
    """The patterns of permissions."""
    return [
        said.made(Rule, tool=each.text("tool"), arguments=_pairs(each), owner=each.maybe("owner") or "")
        for each in said.objects(name, _MOST)
    ]


def _pairs(said: Fields) -> tuple[tuple[str, str], ...]:
    pairs = said.items("arguments", 1_000)
    for pair in pairs:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(each, str) for each in pair)):
            said.wrong("arguments", "a list of pairs of texts")
    return tuple((well_formed(name), well_formed(pattern)) for name, pattern in pairs)
