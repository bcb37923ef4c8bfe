"""`Message` and its parts: tool calls, images, and data that a provider wants back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from channels._lazy import lazy, made_later

from .._checks import check, check_flags, check_items
from .._dataclasses import dataclass, field, short_repr
from .._errors import describe
from ..foreign._arguments import ReadArguments, read_arguments
from ..foreign._sound import sound, well_formed
from ..usage import Usage

if TYPE_CHECKING:
    import base64
    import json
else:
    json = lazy("json")
    base64 = lazy("base64")

Role = Literal["system", "user", "assistant", "tool"]
_ROLES: Final = get_args(Role)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that a model asks for. ``arguments`` is the JSON text as the model wrote it, which may be broken.
    `parsed` is the parsed object, `problem` says what is wrong with the text, and `sound_arguments` is a text that is
    always valid.
    """

    id: str
    name: str
    arguments: str = "{}"
    _read: ReadArguments | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        id, name, arguments = self.id, self.name, self.arguments
        if type(id) is type(name) is type(arguments) is str and id.isascii() and name.isascii() and arguments.isascii():
            return
        for what, text in (("id", id), ("name", name), ("arguments", arguments)):
            check(f"the {what} of a call", text, str, "text")
            if not text.isascii():
                object.__setattr__(self, what, well_formed(text))

    @property
    def parsed(self) -> dict[str, Any] | None:
        """The arguments as a dictionary, a new one for each caller; None if they are broken."""
        return self._reading.value()

    @property
    def problem(self) -> str:
        """What is wrong with the arguments, for the model to read: they are not a JSON object, are nested too deeply,
        or are too long. Empty if nothing is wrong.
        """
        return self._reading.problem

    @property
    def sound_arguments(self) -> str:
        """The arguments as text that every JSON parser accepts: an empty object if they are broken."""
        return self._reading.text

    @property
    def _reading(self) -> ReadArguments:
        if self._read is None:  # two threads may both read them: what they say is the same
            object.__setattr__(self, "_read", read_arguments(self.arguments))
        assert self._read is not None
        return self._read

    __repr__ = short_repr


_sorted: Final = made_later(lambda: json.JSONEncoder(sort_keys=True))


def canonical(call: ToolCall, arguments: Mapping[str, Any] | None) -> str:
    """The ``arguments`` of the call, as they are `parsed`, in canonical JSON, so that whitespace and the order of keys
    make no difference.
    """
    return call.arguments if arguments is None else _sorted.encode(arguments)


def size_of(size: int) -> str:
    """A number of bytes, written for people."""
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e3:.0f} kB" if size < 1_000_000 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True, slots=True)
class Image:
    """An image: ``data`` is the content of the image file, ``media_type`` its type, such as ``image/png``."""

    data: bytes
    media_type: str = "image/png"

    def __post_init__(self) -> None:
        if not isinstance(self.data, bytes):
            raise TypeError(f"the data of an image must be the bytes of its file, not {type(self.data).__name__}")
        check("the media type of an image", self.media_type, str, "text, such as 'image/png'")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, with the data in base64."""
        return {"media_type": self.media_type, "data": base64.b64encode(self.data).decode()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Image:
        """The image that `to_dict` wrote. Raises `ValueError` for anything else."""
        try:
            return cls(base64.b64decode(data["data"]), data["media_type"])
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable("an image", data, error) from error

    def __str__(self) -> str:
        """The text that replaces the image where it cannot be shown."""
        return f"[image {self.media_type}, {size_of(len(self.data))}]"

    def __repr__(self) -> str:
        return f"<Image {self.media_type}, {len(self.data)} bytes>"


@dataclass(frozen=True, slots=True)
class Native:
    """Data in a provider's own format that has to be sent back to it with one of its replies. Only this provider reads
    ``content``.
    """

    provider: str
    content: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "content", sound(self.content))


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Assistant messages have ``tool_calls``, tool messages ``tool_call_id`` and ``is_error``; user and tool messages may
    have ``images``, and their ``content`` says in words where an image belongs, for models that cannot read images.
    ``model`` and ``usage`` say which model wrote an assistant message and what it used, as far as it was reported.
    ``finish_reason`` is why the model stopped (``stop``, ``tool_calls``, ``length`` ...), or ``interrupted`` if an
    error or a cancel came before the end: the message is then the part that had arrived. ``native`` is data for the
    provider that wrote the message.

    All text is made valid UTF-8, because other text cannot be sent to a provider: a byte that is not valid UTF-8, for
    example in the name of a file, becomes ``\\xe9``, and half of a surrogate pair becomes U+FFFD.
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
    created_at: datetime = field(default_factory=partial(datetime.now, UTC))

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise ValueError(f"the role of a message must be one of {', '.join(_ROLES)}, not {self.role!r:.200}")
        if not isinstance(self.content, str):
            check("the content of a message", self.content, str, "text")
        if not self.content.isascii():
            object.__setattr__(self, "content", well_formed(self.content))
        if not (  # the common case, in a quarter of the time
            (calls := self.tool_calls).__class__ is tuple
            and not (calls and [call for call in calls if call.__class__ is not ToolCall])
            and self.images == ()
            and ((call_id := self.tool_call_id) is None or (call_id.__class__ is str and call_id.isascii()))
            and ((name := self.agent_name) is None or name.__class__ is str)
            and ((model := self.model) is None or model.__class__ is str)
            and ((reason := self.finish_reason) is None or reason.__class__ is str)
            and ((failed := self.is_error) is False or failed is True)
        ):
            self._check_parts()
        if self.usage is not None:
            check("the usage of a message", self.usage, Usage, "a Usage, or None")
        if self.native is not None and not isinstance(self.native, Native):
            provider, content = getattr(self.native, "provider", None), getattr(self.native, "content", None)
            if not isinstance(provider, str):
                raise TypeError(f"native of a message must be a NativeDelta, or None, not {self.native!r:.200}")
            object.__setattr__(self, "native", Native(provider, content))
        at = self.created_at
        if at.__class__ is not datetime:
            check("created_at of a message", at, datetime, "a datetime with a time zone")
        if at.tzinfo is None:  # a session that has one would be refused by `Session.from_dict`
            raise ValueError("created_at of a message must have a time zone, such as datetime.now(UTC)")

    def _check_parts(self) -> None:
        for what in ("tool_call_id", "agent_name", "model", "finish_reason"):
            check(f"the {what} of a message", getattr(self, what), (str, NoneType), "text, or None")
        if self.tool_call_id is not None:
            object.__setattr__(self, "tool_call_id", well_formed(self.tool_call_id))
        check_flags(is_error=self.is_error)
        for what, kind, wanted in _PARTS:
            items = getattr(self, what)
            if items.__class__ is not tuple or not all(each.__class__ is kind for each in items):
                object.__setattr__(self, what, check_items(f"the {what} of a message", items, kind, wanted))

    @property
    def ends_turn(self) -> bool:
        """Whether this is a complete reply after which it is the user's turn."""
        return self.role == "assistant" and not self.tool_calls and self.finish_reason != "interrupted"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, without the empty fields."""
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
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """The message that `to_dict` wrote. Raises `ValueError` for anything else."""
        try:
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
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _unreadable("a message", data, error) from error

    __repr__ = short_repr


_PARTS: Final = (
    ("tool_calls", ToolCall, "a list of ToolCall objects"),
    ("images", Image, "a list of Image objects"),
)


def _unreadable(what: str, data: object, error: Exception) -> ValueError:
    problem = describe(error) if isinstance(data, Mapping) else f"a mapping is wanted, not {data!r:.200}"
    return ValueError(f"this is not {what} as to_dict() writes it: {problem}")
