"""Dumps of live streams.

Made by whoever asks, in its own thread, from what the streams leave lying open. Nothing here takes a lock that anybody
holds for longer than a few steps, nor waits, nor asks the worker: a dump can be made in a signal handler, and while
every stream is stuck. So what it says was true a moment ago, and a field may be a step ahead of the one beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Final

from channels import Channel, Parked

from ..execution._calls import Call, stack_text
from ..execution._threads import Running, idle_threads
from ..foreign._redact import Redaction
from ..human._asks import Ask
from ..session._message import Message, ToolCall
from ..stream import _at_exit
from ..stream._core import StreamCore
from ._data import CallDump, ChannelDump, Dump, QuestionDump, StreamDump, ThreadDump
from ._look import Look, since, snapshot
from ._waits import asks_of, waits

_READ: Final = 20_000  # characters of a text that is searched for secrets: all that is shown comes from them
_SHOWN: Final = 300  # characters of a text that are shown
_LAST: Final = 200  # messages in which the calls that are under way are looked for
NOT_SHOWN: Final = "<not shown: its redaction failed>"


def dump_of(cores: Iterable[StreamCore] | None = None) -> Dump:
    """The dump of these streams; of all live streams of the process, where ``cores`` is left out. Any thread."""
    found = Look(snapshot(_at_exit.live) if cores is None else cores)
    redaction = Redaction()
    streams = [_stream(core, found, redaction) for core in sorted(found.cores, key=lambda core: core.number)]
    return Dump(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        process=os.getpid(),
        streams=tuple(streams),
        channels=tuple(_channels(found.parked)),
        idle_threads=idle_threads(),
    )


def _stream(core: StreamCore, look: Look, usual: Redaction) -> StreamDump:
    seen, now = look.of(core), look.now
    redaction = _redaction(core, usual)
    tool_calls = {call.id: call for call in _open_calls(core.session._messages[-_LAST:])}
    holder = core.session._leases.get(None)
    return StreamDump(
        number=core.number,
        agent_name=core.agent.name,
        session_id=core.session.id,
        session_holder=_holder(core, holder),
        parent=None if core.parent is None else core.parent.number,
        interactive=core.interactive,
        turn=core.turn,
        seconds=since(core.began, now),
        reason=core.ending.reason if core.ending.decided else "",
        events=len(core.out),
        capacity=core.out.capacity,
        waits=tuple(waits(core, look)),
        questions=tuple(_question(ask, now, redaction) for ask in asks_of(core)),
        calls=tuple(_call(call, thread, look, tool_calls, redaction) for call, thread in seen.calls),
        threads=tuple(_thread(thread, ident, look) for thread, ident in seen.threads),
    )


def _call(
    call: Call, thread_id: int | None, look: Look, tool_calls: dict[str, ToolCall], redaction: Callable[[str], str]
) -> CallDump:
    made = tool_calls.get(call.tool_call_id or "")
    on_loop, thread = call.task is not None or call.feed is not None, call.thread
    return CallDump(
        what=_short(redaction(call.what[:_READ])),
        thread_name="event loop" if on_loop else "" if thread is None else thread.name,
        seconds=since(call.began, look.now),
        arguments="" if made is None else _short(redaction(made.arguments[:_READ])),
        tool_call_id=call.tool_call_id or "",
        stack=call.stack() if on_loop else _stack(look.frames.get(thread_id or 0)),
    )


def _question(ask: Ask[Any, Any], now: float, redaction: Callable[[str], str]) -> QuestionDump:
    asked = ask.question
    text = f"may {asked.name} be called?" if isinstance(asked, ToolCall) else str(getattr(asked, "message", ""))
    return QuestionDump(id=ask.id, text=_short(redaction(text[:_READ])), seconds=since(ask.began, now))


def _thread(thread: Running, ident: int | None, look: Look) -> ThreadDump:
    parked = "; ".join(_parked(wait) for wait in look.parked if wait.thread_id == ident and not wait.task_name)
    return ThreadDump(name=thread.name, parked=parked, stack="" if parked else _stack(look.frames.get(ident or 0)))


def _stack(frame: FrameType | None) -> str:
    return "" if frame is None else stack_text(frame)


def _parked(wait: Parked) -> str:
    return str(wait).partition(": ")[2]


def _holder(core: StreamCore, holder: Any) -> str:
    if holder is None:
        return "nobody any more"
    which = f"stream {core.number}" if holder is core.log else "another stream"
    return which if holder.process == os.getpid() else f"{which} of process {holder.process}"


def _channels(all_parked: list[Parked]) -> Iterable[ChannelDump]:
    found: dict[int, tuple[Channel[Any], list[Parked]]] = {}
    for wait in all_parked:
        for channel in {id(case.channel): case.channel for case in wait.cases}.values():
            found.setdefault(id(channel), (channel, []))[1].append(wait)
    for channel, waiting in found.values():
        yield ChannelDump(
            name=repr(channel),
            buffered=len(channel),
            capacity=channel.capacity,
            closed=channel.closed,
            parked=tuple(map(_on_one, waiting)),
        )


def _on_one(wait: Parked) -> str:
    """Who is parked, where the channel is known."""
    who = wait.thread_name if wait.task_name is None else f"task {wait.task_name} on {wait.thread_name}"
    return f"{who}: {wait.operation}, for {wait.seconds:.1f} s"


def _open_calls(messages: list[Message]) -> list[ToolCall]:
    """The tool calls that have no result yet."""
    answered = {message.tool_call_id for message in messages if message.role == "tool"}
    return [call for message in messages for call in message.tool_calls if call.id not in answered]


def _redaction(core: StreamCore, usual: Redaction) -> Callable[[str], str]:
    """What takes out secrets: as in the record of the run, where it has one."""
    own: Redaction = getattr(core.root.recorder, "_redaction", None) or usual

    def clean(text: str) -> str:
        try:
            return own.text(text)
        except Exception:  # the user's own part of it; nothing is shown that it may have taken out
            return NOT_SHOWN

    return clean


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ... ({len(text)} characters)"
