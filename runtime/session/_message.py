"""`Message` and its parts: tool calls, images, and what a provider wants back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from channels._lazy import lazy

from .._checks import check
from .._dataclasses import dataclass, field
from ..foreign._arguments import ReadArguments, read_arguments
from ..foreign._sound import sound, well_formed
from ..usage import Usage

if TYPE_CHECKING:
    import base64
else:
    base64 = lazy("base64")

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call a model asks for. ``arguments`` is the JSON text as the model wrote it, which may be broken: `parsed` is
    what it says, `problem` is what is wrong with it, and `sound_arguments` is the text to show to others.
    """

    id: str
    name: str
    arguments: str = "{}"
    _read: ReadArguments | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what in ("id", "name", "arguments"):
            text = getattr(self, what)
            check(f"the {what} of a call", text, str, "text")
            if not text.isascii():
                object.__setattr__(self, what, well_formed(text))

    @property
    def parsed(self) -> dict[str, Any] | None:
        """The arguments, a dictionary of the caller's own; None where they are broken."""
        return self._reading.value()

    @property
    def problem(self) -> str:
        """What is wrong with the arguments, for the model to read: they are no JSON object, or nested too deeply, or
        too long. Empty where they are whole.
        """
        return self._reading.problem

    @property
    def sound_arguments(self) -> str:
        """The arguments as every JSON parser takes them: an empty object where they are broken."""
        return self._reading.text

    @property
    def _reading(self) -> ReadArguments:
        if self._read is None:  # two threads may both read them: what they say is the same
            object.__setattr__(self, "_read", read_arguments(self.arguments))
        assert self._read is not None
        return self._read


def canonical(call: ToolCall) -> str:
    """Arguments in canonical JSON: the same text, whatever their spaces and the order of their keys."""
    arguments = call.parsed
    return call.arguments if arguments is None else json.dumps(arguments, sort_keys=True)


def size_of(size: int) -> str:
    """A number of bytes, written for people."""
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e3:.0f} kB" if size < 1_000_000 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: ``data`` is the file, ``media_type`` says which kind it is."""

    data: bytes
    media_type: str = "image/png"

    def __post_init__(self) -> None:
        if not isinstance(self.data, bytes):
            raise TypeError(f"the data of an image are the bytes of its file, not {type(self.data).__name__}")
        check("the media type of an image", self.media_type, str, "text, such as 'image/png'")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, with the data in base64."""
        return {"media_type": self.media_type, "data": base64.b64encode(self.data).decode()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Image:
        """The image that `to_dict` wrote."""
        return cls(base64.b64decode(data["data"]), data["media_type"])

    def __str__(self) -> str:
        """The text that stands for the image where it cannot be shown."""
        return f"[image {self.media_type}, {size_of(len(self.data))}]"

    def __repr__(self) -> str:
        return f"<Image {self.media_type}, {len(self.data)} bytes>"


@dataclass(frozen=True, slots=True)
class Native:
    """Data that a provider wants back with one of its replies, in its own form. Nobody else reads ``content``."""

    provider: str
    content: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "content", sound(self.content))


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    ``tool_calls`` stands on assistant messages, ``tool_call_id`` and ``is_error`` on tool messages, ``images`` on
    those and the user's; ``content`` says in words where an image belongs, for models that cannot see. ``model`` and
    ``usage`` tell what an assistant message was made with, as far as the model reported it. ``finish_reason`` is why
    the model stopped (``stop``, ``tool_calls``, ``length`` ...), or ``interrupted`` where its stream broke or was
    cancelled: the message is then what had been said by that time. ``native`` is for the provider that wrote it.

    Text that UTF-8 cannot write does not get in, as no provider could be sent it: a byte of a file name that is no
    UTF-8 is spelt ``\\xe9``, half an emoji is U+FFFD.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    is_error: bool = False
    images: tuple[Image, ...] = ()
    agent_name: str | None = None
    model: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    native: Native | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"the role of a message is one of {', '.join(get_args(Role))}, not {self.role!r:.200}")
        check("the content of a message", self.content, str, "text")
        if not self.content.isascii():
            object.__setattr__(self, "content", well_formed(self.content))
        if self.tool_call_id is not None and not self.tool_call_id.isascii():
            object.__setattr__(self, "tool_call_id", well_formed(self.tool_call_id))

    @property
    def ends_turn(self) -> bool:
        """Whether this is a reply, whole, after which nothing is to be done but for the user to say something."""
        return self.role == "assistant" and not self.tool_calls and self.finish_reason != "interrupted"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, without the fields that say nothing."""
        out: dict[str, Any] = {"role": self.role, "content": self.content, "created_at": self.created_at.isoformat()}
        if self.tool_calls:
            out["tool_calls"] = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in self.tool_calls]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.is_error:
            out["is_error"] = True
        if self.images:
            out["images"] = [image.to_dict() for image in self.images]
        if self.agent_name is not None:
            out["agent_name"] = self.agent_name
        if self.model is not None:
            out["model"] = self.model
        if self.usage is not None:
            out["usage"] = self.usage.to_dict()
        if self.finish_reason is not None:
            out["finish_reason"] = self.finish_reason
        if self.native is not None:
            out["native"] = {"provider": self.native.provider, "content": self.native.content}
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Message:
        """The message that `to_dict` wrote."""
        return cls(
            role=data["role"],
            content=data.get("content", ""),
            tool_calls=tuple(ToolCall(**call) for call in data.get("tool_calls", ())),
            tool_call_id=data.get("tool_call_id"),
            is_error=data.get("is_error", False),
            images=tuple(map(Image.from_dict, data.get("images", ()))),
            agent_name=data.get("agent_name"),
            model=data.get("model"),
            usage=Usage(**data["usage"]) if "usage" in data else None,
            finish_reason=data.get("finish_reason"),
            native=Native(**data["native"]) if "native" in data else None,
            created_at=datetime.fromisoformat(data["created_at"]) if "created_at" in data else datetime.now(UTC),
        )
