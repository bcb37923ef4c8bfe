"""What a dump says, as data: frozen, made of what JSON has (`Dump.to_dict`), and as text (`str`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from .._dataclasses import asdict, dataclass
from ..foreign._printable import escaped, printable
from ..foreign._sound import well_formed

#: What the worker of a stream waits for: the reply of a model, a tool, a hook, another call of code that is not
#: lockgate's, the user's answer, the consumer who does not take events (a full channel), the observers, the end of a
#: pause, the store, or some other channel. Or it does not wait, and runs; or it has not begun, or has ended.
WaitKind: TypeAlias = Literal[
    "model", "tool", "hook", "call", "answer", "consumer", "observer", "pause", "store", "channel", "running", "none"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitDump:
    """One thing that the worker of a stream waits for."""

    kind: WaitKind
    what: str
    seconds: float  #: for how long


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDump:
    """A call of foreign code that is under way: a tool, a hook, a model, a toolset, a nested agent."""

    what: str
    thread_name: str  #: where it runs; "event loop" for a task, "" where it has not begun
    seconds: float
    arguments: str  #: of a tool call, secrets taken out and shortened
    tool_call_id: str
    stack: str  #: innermost call last, as a traceback has it


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionDump:
    """An open question to the user."""

    id: str
    text: str  #: secrets taken out, shortened
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadDump:
    """A thread that belongs to a stream."""

    name: str
    parked: str  #: on which channel, and for how long; "" where it is not parked
    stack: str  #: where it is not parked


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDump:
    """A live stream, as it was at one moment."""

    number: int
    agent_name: str
    session_id: str
    session_holder: str  #: who has the right to write the session
    parent: int | None  #: the number of the stream that it is nested in
    interactive: bool
    turn: int  #: that it is in; 0 before the first
    seconds: float  #: since it began
    reason: str  #: why it ends, once that is decided; "" before that
    events: int  #: that wait for the consumer
    capacity: int  #: of the channel that they wait in
    waits: tuple[WaitDump, ...]
    questions: tuple[QuestionDump, ...]
    calls: tuple[CallDump, ...]
    threads: tuple[ThreadDump, ...]

    def __str__(self) -> str:
        return _stream_text(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelDump:
    """A channel on which threads or tasks wait."""

    name: str  #: as its `repr` has it
    buffered: int
    capacity: int
    closed: bool
    parked: tuple[str, ...]  #: the threads and tasks, what they do and for how long


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """The live streams of one runtime or of all runtimes of a process, and the channels on which threads or tasks wait.

    ``str()`` is a text for people, without terminal control characters; `to_dict` is for programs. A dump tells what
    was true a moment ago, and its parts may be from slightly different moments.
    """

    time: str  #: in UTC, ISO 8601
    process: int
    streams: tuple[StreamDump, ...]
    channels: tuple[ChannelDump, ...]
    idle_threads: int = 0  #: of lockgate, which wait for something to run

    def to_dict(self) -> dict[str, Any]:
        """The dump as JSON-ready data."""
        return asdict(self)

    def __str__(self) -> str:
        return _dump_text(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A stream that makes no progress although nobody is being asked: the argument of ``on_stall``."""

    seconds: float  #: since it last went on
    stream: StreamDump
    #: The streams that wait for each other in a circle, this one first, each with what it waits in; empty where the
    #: watchdog sees none.
    cycle: tuple[str, ...]
    dump: Dump  #: of this stream and of those in the circle

    def __str__(self) -> str:
        return _stall_text(self)


# -- as text -----------------------------------------------------------------------------------------------------------


def _dump_text(dump: Dump) -> str:
    lines = [f"lockgate process {dump.process} at {dump.time}: {_many(len(dump.streams), 'live stream')}"]
    for stream in dump.streams:
        lines += ["", _stream_text(stream)]
    if dump.channels:
        lines += ["", "channels with somebody parked:"]
    for channel in dump.channels:
        lines.append(f"  {escaped(channel.name)}")
        lines += [f"    {escaped(who)}" for who in channel.parked]
    if dump.idle_threads:
        lines += ["", _many(dump.idle_threads, "idle thread")]
    return well_formed("\n".join(lines))


def _stream_text(stream: StreamDump) -> str:
    return well_formed("\n".join(_stream(stream)))


def _stall_text(stall: Stall) -> str:
    stream = stall.stream
    lines = [f"stream {stream.number} of agent {escaped(stream.agent_name)} stands still for {_seconds(stall.seconds)}"]
    if stall.cycle:
        first = f"stream {stream.number}"
        lines.append("these wait for each other: " + " -> ".join([*map(escaped, stall.cycle), first]))
    return well_formed("\n".join([*lines, str(stall.dump)]))


def _stream(stream: StreamDump) -> Iterator[str]:
    nested = "" if stream.parent is None else f", nested in stream {stream.parent}"
    yield f"stream {stream.number}: agent {escaped(stream.agent_name)}, session {escaped(stream.session_id)}{nested}"
    ends = f", ends: {escaped(stream.reason)}" if stream.reason else ""
    asks = "" if stream.interactive else ", nobody to ask"
    yield f"  turn {stream.turn}, {_seconds(stream.seconds)} old{ends}{asks}"
    yield f"  {stream.events} of {stream.capacity} events wait for the consumer"
    yield f"  the session is held by {escaped(stream.session_holder)}"
    for wait in stream.waits:
        verb = {"running": "runs", "none": "has no worker"}.get(wait.kind, f"waits for {escaped(wait.what)}")
        yield f"  {verb}, for {_seconds(wait.seconds)}"
    for question in stream.questions:
        yield f"  asks the user {question.id} for {_seconds(question.seconds)}: {escaped(question.text)}"
    for call in stream.calls:
        yield from _call(call)
    for thread in stream.threads:
        yield f"  thread {escaped(thread.name)}: {escaped(thread.parked) or 'runs'}"
        if not thread.parked:
            yield from _stack(thread.stack)


def _call(call: CallDump) -> Iterator[str]:
    where = f"on {escaped(call.thread_name)}" if call.thread_name else "not begun"
    arguments = f" {escaped(call.arguments)}" if call.arguments else ""
    yield f"  call {escaped(call.what)}{arguments} {where}, for {_seconds(call.seconds)}"
    yield from _stack(call.stack)


def _stack(stack: str) -> Iterator[str]:
    return (f"    {line}" for line in printable(stack).splitlines())


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
