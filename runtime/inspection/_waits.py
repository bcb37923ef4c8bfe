"""What the worker of a stream waits for, and which streams wait for each other.

A worker does little but wait, on a channel; what it waits for is found by whose channel that is. So nothing on the way
of a stream has to be noted down for it, and since when it waits the channel's own note says (`channels.parked`).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from channels import Channel, Parked, ParkedCase

from ..execution._calls import Call
from ..human._asks import Ask
from ..session._outbox import Outbox
from ..stream._core import StreamCore
from ._data import WaitDump, WaitKind
from ._look import Look, since, snapshot

_TURN: Final = "tool calls"  # the inbox of the calls of a turn
_MORE: Final = "more turns"
_KINDS: Final[tuple[WaitKind, ...]] = ("model", "tool", "hook")


def asks_of(core: StreamCore) -> list[Ask[Any, Any]]:
    """What the stream asks the user."""
    shared = core.shared
    asks: list[Ask[Any, Any]] = [*shared.asks._pending.copy().values(), *shared.confirmations._pending.copy().values()]
    return [ask for ask in asks if ask.stream is core and not ask.written]


def waits(core: StreamCore, look: Look) -> list[WaitDump]:
    """What the worker waits for: several things, while the calls of a turn are under way."""
    worker = look.of(core).worker
    if worker.rest is not None:
        return [_called(worker.rest[1], look.now)]
    if worker.wait is not None:
        return list(_found(core, look, worker.wait))
    if _writes(worker.frame):
        return [WaitDump(kind="store", what="the store", seconds=0.0)]
    return [WaitDump(kind="running" if worker.alive else "none", what="", seconds=0.0)]


def _found(core: StreamCore, look: Look, wait: Parked) -> Iterator[WaitDump]:
    case = wait.cases[0] if wait.cases else None
    if case is None:
        yield WaitDump(kind="channel", what="nothing", seconds=wait.seconds)
    elif case.direction == "send":
        yield _sending(core, look, wait, case)
    elif case.channel is core.mailbox._resumed:
        yield WaitDump(kind="pause", what="the end of a pause", seconds=wait.seconds)
    elif case.channel.name == _MORE:
        yield WaitDump(kind="answer", what="the user, who may allow more turns", seconds=wait.seconds)
    elif case.channel.name == _TURN:
        yield from _turn(core, look, wait, case.channel)
    else:
        call = _call_of(core, look, case.channel)
        if call is not None:
            yield _called(call, look.now)
        elif _writes(look.of(core).worker.frame):
            yield WaitDump(kind="store", what="the store", seconds=wait.seconds)
        else:
            yield WaitDump(kind="channel", what=repr(case.channel), seconds=wait.seconds)


def _sending(core: StreamCore, look: Look, wait: Parked, case: ParkedCase) -> WaitDump:
    """The channel of its events is full: the consumer does not read, or the observers do not come to an end."""
    channel = case.channel
    if channel is not core.events:
        return WaitDump(kind="channel", what=f"somebody to receive from {channel!r}", seconds=wait.seconds)
    reads = core.out is core.events or any(
        each.direction == "send" and each.channel is core.out for other in look.parked for each in other.cases
    )
    if reads:
        what = f"the consumer, who has {len(core.out)} events to read"
        return WaitDump(kind="consumer", what=what, seconds=wait.seconds)
    return WaitDump(kind="observer", what=f"the observers, who have {len(channel)} events to see", seconds=wait.seconds)


def _turn(core: StreamCore, look: Look, wait: Parked, inbox: Channel[Any]) -> Iterator[WaitDump]:
    """The calls of a turn, and what the user is asked for them."""
    asked = set()
    for ask in asks_of(core):
        asked.add(getattr(ask.call, "id", None) or getattr(getattr(ask.call, "call", None), "id", None))
        yield WaitDump(kind="answer", what="the user's answer", seconds=since(ask.began, look.now))
    calls = [call for call, _ in look.of(core).calls if call.inbox is inbox and call.tool_call_id not in asked]
    for call in calls:
        yield _called(call, look.now)
    if not asked and not calls:
        yield WaitDump(kind="call", what="a call that is about to end", seconds=wait.seconds)


def _call_of(core: StreamCore, look: Look, channel: Channel[Any]) -> Call | None:
    """The call that says something on ``channel``."""
    seen = look.of(core)
    for call in (*(call for call, _ in seen.calls), *seen.ended):
        if channel in (call.done, call.inbox, getattr(call.inbox, "channel", None)):
            return call
        feed = call.feed
        if feed is not None and feed._channel is channel:
            return call
    return None


def _writes(frame: FrameType | None) -> bool:
    """Whether the worker is in the middle of writing to the store, which waits as it likes."""
    while frame is not None:
        if frame.f_code is Outbox.flush.__code__:
            return True
        frame = frame.f_back
    return False


def _called(call: Call, now: float) -> WaitDump:
    first = call.what.partition(" ")[0]
    kind: WaitKind = next((kind for kind in _KINDS if kind == first), "call")
    return WaitDump(kind=kind, what=call.what, seconds=since(call.began, now))


# -- between streams ---------------------------------------------------------------------------------------------------


def circle(core: StreamCore, look: Look) -> list[tuple[StreamCore, str]]:
    """Of the streams that were looked at, those that wait for each other in a circle through ``core``, which comes
    first, each with what it waits in for the next; empty where there is none.

    A stream waits for another where the thread of one of its calls is parked until the other sends an event or ends,
    or where one of its calls has not begun, because threads of the executor are taken by calls of the other.
    """
    waiting = _edges(look)
    trail: list[tuple[StreamCore, str]] = []
    seen: set[StreamCore] = set()

    def search(at: StreamCore) -> bool:
        for to, what in waiting.get(at, ()):
            trail.append((at, what))
            if to is core or (to not in seen and (seen.add(to) or search(to))):  # type: ignore[func-returns-value]
                return True
            trail.pop()
        return False

    return trail if search(core) else []


def _edges(look: Look) -> dict[StreamCore, list[tuple[StreamCore, str]]]:
    owners: dict[int, StreamCore] = {}
    threads: dict[int, tuple[StreamCore, Call]] = {}
    queued: list[tuple[StreamCore, Call]] = []
    taken: list[tuple[StreamCore, Call]] = []
    for core in look.cores:
        for channel in (core.events, core.out, core.finished, core.over, core.log.released):
            owners[id(channel)] = core
        seen, tasks = look.of(core), snapshot(core.background.values())
        background = {task.call for task in tasks}
        nested = set(snapshot(core.calls._nested))
        # The nested ones first: the thread of a tool that runs an agent is that of both calls, and named for its tool.
        for call, thread_id in sorted(seen.calls, key=lambda each: each[0] not in nested):
            if call in background:
                continue
            if thread_id is not None:
                threads[thread_id] = core, call
            if call.future is not None:
                (queued if call.thread is None else taken).append((core, call))
        for task in tasks:
            calls = core.calls._nested.get(task.call)
            child = next((each for each in look.cores if each.calls is calls), None)
            if child is not None:
                owners[id(task.call.done)] = child
    edges: dict[StreamCore, list[tuple[StreamCore, str]]] = {}
    for wait in look.parked:
        source = threads.get(wait.thread_id)
        targets = [owners.get(id(case.channel)) for case in wait.cases if case.direction == "recv"]
        if source is None or wait.task_name is not None or not targets or None in targets:
            continue  # one of several things that it waits for may come from elsewhere
        core, call = source
        edges.setdefault(core, []).extend(
            (target, f"{call.what} on {wait.thread_name}") for target in targets if target is not None
        )
    for core, call in queued:
        for holder, _ in taken:
            if holder is not core and holder.shared is core.shared:
                edges.setdefault(core, []).append((holder, f"{call.what} for a thread of the executor"))
    return edges
