"""`Session`: the conversation, and the lease that gives it one writer.

Only the worker of a stream writes to a session, through the log that it gets with the lease (`Session.lease`). All
other code only reads it.
"""

from __future__ import annotations

import contextlib
import operator
import os
import sys
import threading
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any, Final

from channels import Cancelled, CancelToken, Channel, ChannelClosed, SupportsDone
from channels._lazy import lazy

from .._checks import check, check_items
from .._dataclasses import asdict, dataclass, replace
from .._errors import SessionBusy
from ..foreign._fields import Fields
from ..foreign._sound import well_formed
from ..permissions import Permissions, Rule
from ..usage import Usage
from . import _reading
from ._journal import (
    Allowed,
    Counted,
    Ended,
    HandedOver,
    Named,
    Request,
    Said,
    Shortened,
    Status,
    Unfinished,
)
from ._message import Image, Message
from ._outbox import Outbox

if TYPE_CHECKING:
    import uuid

    from ._idempotency import IdempotencyKey
else:
    uuid = lazy("uuid")

LEAVING: Final = 2.0  # seconds that a stream which is to end may keep its session from the next
_IMAGES: Final = "a list of images, such as [Image(data)]"
_FROM_USER: Final = "for a text, use Session.from_user('hello')"


@dataclass(frozen=True, slots=True)
class Compacted:
    """The compacted beginning of a session: a model is shown ``summary`` in place of the messages before ``start``.

    Tool results before ``shortened`` are cut. ``at`` is how many messages there were when this was decided.
    """

    summary: str = ""
    start: int = 0
    shortened: int = 0
    at: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "summary", well_formed(self.summary))


@dataclass(slots=True)
class Stored:
    """What a session knows about its copy in the store. Set by the store's `load`, `open` and journal."""

    epoch: int  # goes up with each stream that opens it: two copies that part are told apart by it
    messages: int  # how many of the messages are there
    #: A journal of it has failed, so that the store has less than this copy, in another order: the next `open` by it
    #: writes all of it anew, as long as the epoch is the same.
    behind: bool = False


class Session:
    """A conversation: its messages, permissions, usage and title.

    It may be read at any time, from any thread. A stream of the session writes to it, from one thread, until its last
    event; by then every tool call has a result. Between streams, `add_user` adds the user's next message.
    ``permissions`` are the patterns for the tool calls of this session, to which lasting approvals of the user are
    added. ``agent_name`` is the agent that the conversation was handed to, with which the next stream begins.
    ``compacted`` says what a model is shown of a long conversation; `messages` has every message.
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
        check("agent_name", agent_name, (str, NoneType), "the name of an agent, or None")
        check("compacted", compacted, (Compacted, NoneType), "the `compacted` of a session, or None")
        self.id = id or uuid.uuid4().hex
        self.title = title
        self._permissions = permissions or Permissions()
        self._agent_name = agent_name
        self._compacted = compacted or Compacted()
        self._messages = list(given)
        self._usage: Usage | None = None
        for message in self._messages:
            self._count(message.usage)
        self._settled = 0  # of the first messages each call has its result behind it: who settles looks at the others
        self._call_ids: tuple[int, set[str]] = (0, set())  # of so many of the first messages: see `call_ids`
        self._sizes: Any = None  # how long the messages are: the next stream on the session goes on from there
        self._stored: Stored | None = None
        self._unfinished: Unfinished | None = None  # what its last stream has left to do, as its store has it
        self._idempotency: IdempotencyKey | None = None  # of the request whose stream is the next to open it
        self._leases: dict[None, SessionLog] = {}  # the one there is: who puts it there has it, in a single step
        self._lock = threading.Lock()  # for _permissions, which several workers may write

    @classmethod
    def from_user(cls, text: str, *, images: Iterable[Image] = (), permissions: Permissions | None = None) -> Session:
        """A new session with one message of the user, with images."""
        check("what the user says", text, str, "text")
        message = Message("user", text, images=check_items("images", images, Image, _IMAGES))
        return cls([message], permissions=permissions)

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
        """The session that `to_dict` wrote. Raises `ValueError` for anything else, with the place where it differs."""
        said = Fields(data, "the session")
        permissions, messages = said.needed("permissions"), said.objects("messages", sys.maxsize)
        session = cls(
            [_reading.message(each) for each in messages],
            id=said.text("id"),
            title=said.text("title"),
            permissions=permissions.made(
                Permissions,
                approve_all=permissions.flag("approve_all"),
                **{name: _reading.rules(permissions, name) for name in ("allow", "ask", "deny")},
            ),
            agent_name=said.maybe("agent_name"),
            compacted=Compacted(*_reading.compacted(said.needed("compacted"), len(messages) or None)),
        )
        session._usage = said.maybe_object("usage", _reading.usage)
        return session

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, in this process or another: the messages, in a list of their own, and no live stream."""
        kept: dict[str, Any] = {"_messages": list(self._messages), "_leases": {}, "_lock": None}
        return {**self.__dict__, **kept, "_call_ids": (0, set()), "_sizes": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages so far."""
        return tuple(self._messages)

    @property
    def permissions(self) -> Permissions:
        """The patterns for tool calls, including the user's lasting approvals."""
        return self._permissions

    @property
    def agent_name(self) -> str | None:
        """The name of the agent that the conversation was handed to; None if it was not handed to another agent."""
        return self._agent_name

    @property
    def waiting(self) -> tuple[Request, ...]:
        """The requests to the user that were open when the session was loaded from its store, or was parked."""
        left = self._unfinished
        if left is None:
            return ()
        requests = [*left.requests, *(each for call in left.calls.values() for each in call.requests)]
        return tuple(each for each in requests if each.answer is None and not each.expired)

    @property
    def compacted(self) -> Compacted:
        """The summary that a model is shown in place of the older messages; None if it is shown every message."""
        return self._compacted

    @property
    def usage(self) -> Usage:
        """The usage of the model calls of this session, including calls that failed without a message. The calls of a
        nested stream belong to the nested stream's own session.
        """
        return self._usage or Usage()

    def _count(self, usage: Usage | None) -> None:
        if usage is not None:
            self._usage = usage if self._usage is None else self._usage + usage

    def add_user(self, text: str, *, images: Iterable[Image] = ()) -> None:
        """Add the user's next message, with images. Raises `SessionBusy` while a stream runs on the session."""
        message = Message("user", text, images=check_items("images", images, Image, _IMAGES))
        log = self.lease()
        try:  # not as a context manager: Ctrl-C at the call of its `__enter__` or `__exit__` would keep the lease
            log.append(message)
            log.release()
        except BaseException:
            log.release()  # twice is harmless
            raise

    @property
    def _lease(self) -> SessionLog | None:
        return self._leases.get(None)

    def lease(self) -> SessionLog:
        """The right to write, for one stream at a time; leaving its ``with`` block gives it back.

        If the stream that holds the lease was cancelled, or left by its consumer (a ``break`` in the loop), this waits
        for the stream's end, for a few seconds at most. Raises `SessionBusy` if another stream holds the lease.
        """
        log = SessionLog(self)
        deadline: CancelToken | None = None
        try:
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
                raise SessionBusy(
                    f"session {self.id} has a live stream; wait for its end, or close it, before the next"
                )
        except BaseException:  # Ctrl-C as it was taken: nobody would ever give it back
            if self._leases.get(None) is log:
                self._leases.pop(None, None)
            raise
        return log

    def __repr__(self) -> str:
        title, state = f" {self.title!r:.80}" if self.title else "", ", live" if self._lease is not None else ""
        count = len(self._messages)
        return f"<Session {self.id[:8]}{title}, {count} message{'s' if count != 1 else ''}{state}>"


class SessionLog:
    """The writing end of a session. Held by one worker, used by its thread only, except for `allow`.

    Each change is made in memory, and noted in the ``outbox`` for the store of the session, if it has one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sealed = False
        self.outbox = Outbox()
        #: How the stream ends, for the store: written by the worker before it gives the lease back.
        self.status: Status = "idle"
        self.reason = ""
        self.released: Channel[None] = Channel(name="session released")  # closes
        self.token: CancelToken | None = None  # cancelled when its stream is to end
        self.process = os.getpid()
        self.dropped = False  # by its consumer, which nobody has told the stream yet

    @property
    def is_ending(self) -> bool:
        """Whether the lease will be given back soon."""
        return self.dropped or (self.token is not None and self.token.cancelled)

    @property
    def session(self) -> Session:
        """The session that this log writes to."""
        return self._session

    def append(self, message: Message, mail: str | None = None) -> None:
        """Add a message; ``mail`` is the id under which the store has it already, as a steering message."""
        if self._sealed:
            raise RuntimeError("the session is sealed: its stream has ended")
        self._session._messages.append(message)
        self._session._count(message.usage)
        self.outbox.note(Said(message, mail))

    def add_result(self, message: Message, order: Mapping[str | None, int]) -> None:
        """Add the result of a call of the last reply, at its place in the ``order`` of the calls."""
        if self._sealed:
            raise RuntimeError("the session is sealed: its stream has ended")
        messages, place = self._session._messages, order[message.tool_call_id]
        at = len(messages)
        while at and messages[at - 1].role == "tool" and order.get(messages[at - 1].tool_call_id, -1) > place:
            at -= 1
        if at < self._session._settled:
            self._session._settled = 0
        messages.insert(at, message)
        self.outbox.note(Ended(message))

    def hand_over(self, agent_name: str) -> None:
        """Put the agent of this name in charge from the next turn on, in later streams too."""
        if not self._sealed:
            self._session._agent_name = agent_name
            self.outbox.note(HandedOver(agent_name))

    def compact(self, compacted: Compacted) -> None:
        """From now on, show the model ``compacted``."""
        if not self._sealed:
            self._session._compacted = compacted
            self.outbox.note(Shortened(compacted.summary, compacted.start, compacted.shortened, compacted.at))

    def name(self, title: str) -> None:
        """Give the session a title."""
        if not self._sealed:
            self._session.title = well_formed(title)
            self.outbox.note(Named(self._session.title))

    def count(self, usage: Usage) -> None:
        """Add the usage of a model call that left no message."""
        self._session._count(usage)
        self.outbox.note(Counted(usage))

    def allow(self, rule: Rule | None) -> None:
        """Record an approval of the calls that match ``rule``, or, with None, of all calls.

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
            self.outbox.note(Allowed(rule))

    def settle(self, note: str, keep: Collection[str] = ()) -> None:
        """Give every tool call without a result the result ``note``, and put the results after their calls, in the
        order of the calls, because a model refuses a conversation with open calls. The calls in ``keep`` stay open.
        """
        if self._sealed:
            return
        session = self._session
        first = session._settled
        before = session._messages[first:]
        after = settled(before, note, keep)
        if len(before) != len(after) or any(map(operator.is_not, before, after)):
            place = {id(message): i for i, message in enumerate(after, first)}

            def moved(index: int) -> int:
                if index < first:
                    return index
                return place[id(before[index - first])] if index - first < len(before) else first + len(after)

            was = session._compacted
            session._messages[first:] = after
            session._sizes = None
            known = set(map(id, before))
            self.outbox.note(*(Ended(message) for message in after if id(message) not in known))
            moved_to = replace(was, start=moved(was.start), shortened=moved(was.shortened), at=moved(was.at))
            if moved_to != was:
                self.compact(moved_to)
        if not keep:
            session._settled = first + len(after)

    def call_ids(self) -> set[str]:
        """The ids of all tool calls in the session, to which its stream adds those that it gives."""
        messages = self._session._messages
        known, ids = self._session._call_ids
        ids.update(call.id for message in messages[known:] for call in message.tool_calls)
        self._session._call_ids = len(messages), ids
        return ids

    def release(self, timeout: float | None = None, cancel: SupportsDone | None = None) -> None:
        """Seal the session against further writes, and give its lease back. Releasing twice is harmless.

        Raises `StoreError` where the store did not take all of it, within ``timeout`` seconds or before ``cancel`` is
        done.
        """
        with self._session._lock:
            self._sealed = True
        try:
            self.outbox.release(self.status, self.reason, timeout, cancel)
        finally:
            if self.outbox.failed and self._session._stored is not None:
                self._session._stored.behind = True
            if self._session._lease is self:
                self._session._leases.pop(None, None)
            self.released.close()

    def __enter__(self) -> SessionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def settled(messages: Sequence[Message], note: str | None, keep: Collection[str] = ()) -> list[Message]:
    """The messages, each call followed by its result, in the order of the calls. A call without one gets ``note`` as
    its result, but for those in ``keep``; with None, none does: a store has results in the order in which they came.
    """
    after: list[Message] = []
    rest = deque(messages)
    last = next((message for message in reversed(messages) if message.tool_calls), None)
    while rest:
        message = rest.popleft()
        after.append(message)
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
        for call in message.tool_calls:
            if call.id in results:
                after.append(results[call.id])
            elif note is not None and not (call.id in keep and message is last):
                after.append(Message("tool", note, tool_call_id=call.id, is_error=True))
        after += others
    return after
