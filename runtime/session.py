"""What was said: messages, and the session that holds them.

Only the worker of a stream writes a session, through the log it holds a lease on (`Session.lease`); everyone else
reads.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from types import NoneType, TracebackType
from typing import Any, Final, Literal, get_args

from channels import Cancelled, CancelToken, Channel, ChannelClosed

from ._arguments import ReadArguments, read_arguments
from ._checks import check, check_items
from ._errors import SessionBusy
from ._sound import sound, well_formed
from .permissions import Permissions, Rule
from .usage import Usage

LEAVING: Final = 2.0  # seconds that a stream which is to end may keep its session from the next
Role = Literal["system", "user", "assistant", "tool"]
_FROM_USER: Final = "for a text, use Session.from_user('hello')"


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
    """The same text for the same arguments, whatever their spaces and the order of their keys."""
    arguments = call.parsed
    return call.arguments if arguments is None else json.dumps(arguments, sort_keys=True)


def size_of(size: int) -> str:
    """A number of bytes, for people."""
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
        """What stands for it in a text."""
        return f"[image {self.media_type}, {size_of(len(self.data))}]"

    def __repr__(self) -> str:
        return f"<Image {self.media_type}, {len(self.data)} bytes>"


@dataclass(frozen=True, slots=True)
class Native:
    """What a provider wants back with one of its replies, in its own form. Nobody else reads ``content``."""

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


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a model is shown in place of the beginning of a session: the ``summary`` of the messages before ``start``.

    Tool results before ``shortened`` are cut. ``at`` is how many messages there were when this was decided.
    """

    summary: str = ""
    start: int = 0
    shortened: int = 0
    at: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "summary", well_formed(self.summary))


class Session:
    """A conversation.

    Read it at any time. A stream that runs on it writes it, from one thread, and seals what it wrote before its last
    event: by then every tool call has a result. Between streams, `add_user` says the next thing. ``permissions`` are
    the patterns for tool calls of this session; what the user approves for longer than once is added to them.
    ``agent_name`` is the agent that the conversation was handed to: the next stream goes on with it. ``compacted`` is
    what its model is shown of a long one; `messages` has everything.
    """

    def __init__(
        self,
        messages: Iterable[Message] = (),
        *,
        id: str | None = None,
        title: str = "",
        permissions: Permissions | None = None,
        agent_name: str | None = None,
        compacted: Compacted | None = None,
    ) -> None:
        given = check_items("what a session begins with", messages, Message, f"a list of messages; {_FROM_USER}")
        check("the id of a session", id, (str, NoneType), "text")
        check("the title of a session", title, str, "text")
        check("permissions", permissions, (Permissions, NoneType), "made with Permissions(allow=[...], ...)")
        self.id = id or uuid.uuid4().hex
        self.title = title
        self._permissions = permissions or Permissions()
        self._agent_name = agent_name
        self._compacted = compacted or Compacted()
        self._messages = list(given)
        self._usage: Usage | None = None
        for message in self._messages:
            self._count(message.usage)
        self._leases: dict[None, SessionLog] = {}  # the one there is: who puts it there has it, in a single step
        self._lock = threading.Lock()  # for _permissions, which several workers may write

    @classmethod
    def from_user(cls, text: str, *, images: Iterable[Image] = (), permissions: Permissions | None = None) -> Session:
        """A new session that begins with what the user says, and shows."""
        check("what the user says", text, str, "text")
        return cls([Message("user", text, images=tuple(images))], permissions=permissions)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, with everything that a later stream needs."""
        rules = {name: [asdict(rule) for rule in getattr(self._permissions, name)] for name in ("allow", "ask", "deny")}
        return {
            "id": self.id,
            "title": self.title,
            "messages": [message.to_dict() for message in self.messages],  # which may grow meanwhile
            "permissions": {**rules, "approve_all": self._permissions.approve_all},
            "agent_name": self._agent_name,
            "compacted": asdict(self._compacted),
            "usage": None if self._usage is None else self._usage.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Session:
        """The session that `to_dict` wrote."""
        rules = {
            name: [
                Rule(each["tool"], tuple((key, value) for key, value in each["arguments"]), each.get("owner", ""))
                for each in said
            ]
            for name, said in data["permissions"].items()
            if name != "approve_all"
        }
        session = cls(
            [Message.from_dict(message) for message in data["messages"]],
            id=data["id"],
            title=data["title"],
            permissions=Permissions(**rules, approve_all=data["permissions"]["approve_all"]),
            agent_name=data["agent_name"],
            compacted=Compacted(**data["compacted"]),
        )
        session._usage = None if data["usage"] is None else Usage(**data["usage"])
        return session

    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets, in this process or another: what was said, in a list of its own, and no live stream."""
        return {**self.__dict__, "_messages": list(self._messages), "_leases": {}, "_lock": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said so far."""
        return tuple(self._messages)

    @property
    def permissions(self) -> Permissions:
        """The patterns for tool calls, and what the user has approved so far."""
        return self._permissions

    @property
    def agent_name(self) -> str | None:
        """The agent that the conversation was handed to; None as long as it is with the one it began with."""
        return self._agent_name

    @property
    def compacted(self) -> Compacted:
        """What a model is shown in place of the beginning."""
        return self._compacted

    @property
    def usage(self) -> Usage:
        """What the model calls of this session used, also those that failed and left no message. A nested stream's
        calls belong to its own session.
        """
        return self._usage or Usage()

    def _count(self, usage: Usage | None) -> None:
        if usage is not None:
            self._usage = usage if self._usage is None else self._usage + usage

    def add_user(self, text: str, *, images: Iterable[Image] = ()) -> None:
        """Add what the user says next, and shows. Raises `SessionBusy` while a stream runs on the session."""
        with self.lease() as log:
            log.append(Message("user", text, images=tuple(images)))

    @property
    def _lease(self) -> SessionLog | None:
        return self._leases.get(None)

    def lease(self) -> SessionLog:
        """The right to write, for one stream at a time; leaving its ``with`` block gives it back.

        Where the stream that holds it was cancelled, or left by its consumer (a ``break`` in the loop), waits for its
        end, for a few seconds at most. Raises `SessionBusy` when another holds it.
        """
        log = SessionLog(self)
        deadline: CancelToken | None = None
        while (holder := self._leases.setdefault(None, log)) is not log:
            if holder.process != log.process:  # forked in the middle: whoever has it is not here
                self._lock = threading.Lock()
                self._leases.pop(None, None)
                continue
            if holder.is_ending and not (deadline is not None and deadline.cancelled):
                deadline = deadline or CancelToken(timeout=LEAVING)
                with contextlib.suppress(ChannelClosed, Cancelled):
                    holder.released.recv(cancel=deadline)
                continue
            raise SessionBusy(f"session {self.id} has a live stream; wait for its end, or close it, before the next")
        return log

    def __repr__(self) -> str:
        state = ", live" if self._lease is not None else ""
        return f"<Session {self.id[:8]} {self.title!r} {len(self._messages)} messages{state}>"


class SessionLog:
    """The writing end of a session. Held by one worker, used by its thread only."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sealed = False
        self.released: Channel[None] = Channel(name="session released")  # closes
        self.token: CancelToken | None = None  # cancelled when its stream is to end
        self.process = os.getpid()
        self.dropped = False  # by its consumer, which nobody has told the stream yet

    @property
    def is_ending(self) -> bool:
        """Whether it will be given back soon."""
        return self.dropped or (self.token is not None and self.token.cancelled)

    @property
    def session(self) -> Session:
        """The session that this writes."""
        return self._session

    def append(self, message: Message) -> None:
        """Add a message."""
        if self._sealed:
            raise RuntimeError("the session is sealed: its stream has ended")
        self._session._messages.append(message)
        self._session._count(message.usage)

    def add_result(self, message: Message, order: Mapping[str | None, int]) -> None:
        """Add the result of a call of the last reply, at its place in the ``order`` of the calls."""
        if self._sealed:
            raise RuntimeError("the session is sealed: its stream has ended")
        messages, place = self._session._messages, order[message.tool_call_id]
        at = len(messages)
        while at and messages[at - 1].role == "tool" and order.get(messages[at - 1].tool_call_id, -1) > place:
            at -= 1
        messages.insert(at, message)

    def hand_over(self, agent_name: str) -> None:
        """Let the agent of this name act from the next turn on, also that of another stream."""
        if not self._sealed:
            self._session._agent_name = agent_name

    def compact(self, compacted: Compacted) -> None:
        """Show the model less from now on."""
        if not self._sealed:
            self._session._compacted = compacted

    def name(self, title: str) -> None:
        """Give the session a title."""
        if not self._sealed:
            self._session.title = well_formed(title)

    def count(self, usage: Usage) -> None:
        """Add the usage of a model call that left no message."""
        self._session._count(usage)

    def allow(self, rule: Rule | None) -> None:
        """Let the calls that ``rule`` is about be made without asking, or all of them with None.

        Thread-safe, unlike the rest: a nested stream's worker writes here what its user approved. Refused, without an
        error, once the session is sealed.
        """
        session = self._session
        with session._lock:
            if self._sealed:
                return
            before = session._permissions
            if rule is None:
                session._permissions = replace(before, approve_all=True)
            else:
                session._permissions = replace(before, allow=(*before.allow, rule))

    def settle(self, note: str) -> None:
        """Give every tool call that has no result one that says ``note``, and let the results follow their calls, in
        the order of these: a model refuses a conversation with open calls.
        """
        if self._sealed:
            return
        session = self._session
        before = list(session._messages)
        after = _settled(before, note)
        if len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True)):
            return
        place = {id(message): i for i, message in enumerate(after)}

        def moved(index: int) -> int:
            return place[id(before[index])] if index < len(before) else len(after)

        was = session._compacted
        session._messages[:] = after
        session._compacted = replace(was, start=moved(was.start), shortened=moved(was.shortened), at=moved(was.at))

    def release(self) -> None:
        """Seal what was written, and let the next stream have the session."""
        with self._session._lock:
            self._sealed = True
        if self._session._lease is self:
            self._session._leases.pop(None, None)
        self.released.close()

    def __enter__(self) -> SessionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def _settled(messages: Sequence[Message], note: str) -> list[Message]:
    """The messages, with a result behind every call."""
    settled: list[Message] = []
    rest = deque(messages)
    while rest:
        message = rest.popleft()
        settled.append(message)
        if not message.tool_calls:
            continue
        calls = {call.id for call in message.tool_calls}
        results: dict[str | None, Message] = {}
        others: list[Message] = []
        while rest and not rest[0].tool_calls:  # ids may come again with later calls
            each = rest.popleft()
            if each.role == "tool" and each.tool_call_id in calls and each.tool_call_id not in results:
                results[each.tool_call_id] = each
            else:
                others.append(each)
        settled += [
            results.get(call.id) or Message("tool", note, tool_call_id=call.id, is_error=True)
            for call in message.tool_calls
        ]
        settled += others
    return settled
