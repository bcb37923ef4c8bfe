"""What the worker of a stream waits for, and which streams wait for each other.

A worker does little but wait, on a channel; what it waits for is found by whose channel that is. So nothing on the way
of a stream has to be noted down for it, and since when it waits the channel's own note says (`channels.parked`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from channels import Channel, Parked, ParkedCase

from ..execution._calls import Call
from ..human._asks import Ask
from ..session._outbox import Outbox
from ..stream._core import StreamCore
from ._data import WaitDump, WaitKind

_TURN: Final = "tool calls"  # the inbox of the calls of a turn
_MORE: Final = "more turns"
_KINDS: Final[tuple[WaitKind, ...]] = ("model", "tool", "hook")


def worker_rest(core: StreamCore) -> tuple[object, Call] | None:
    """Which rest it is of the worker, and what call its thread makes meanwhile; None where it does not rest."""
    return None if core.driver is None else core.driver.rest


def worker_wait(core: StreamCore, all_parked: Sequence[Parked]) -> Parked | None:
    """What the worker is parked in; None where it is not parked."""
    if worker_rest(core) is not None:
        return None  # what its thread is parked in is foreign code
    worker = core.threads[0].ident if core.threads else None
    # The last, where a signal handler has come into the wait of the thread.
    return next((wait for wait in reversed(all_parked) if wait.thread_id == worker and wait.task_name is None), None)


def asks_of(core: StreamCore) -> list[Ask[Any, Any]]:
    """What the stream asks the user."""
    shared = core.shared
    asks: list[Ask[Any, Any]] = [*shared.asks._pending.copy().values(), *shared.confirmations._pending.copy().values()]
    return [ask for ask in asks if ask.stream is core and not ask.written]


def waits(core: StreamCore, now: float, all_parked: Sequence[Parked]) -> list[WaitDump]:
    """What the worker waits for: several things, while the calls of a turn are under way."""
    if not core.threads:
        return [WaitDump(kind="none", what="", seconds=0.0)]
    rest = worker_rest(core)
    if rest is not None:
        return [_called(rest[1], now)]
    wait = worker_wait(core, all_parked)
    if wait is None:
        if _writes(core):
            return [WaitDump(kind="store", what="the store", seconds=0.0)]
        return [WaitDump(kind="running" if core.threads[0].is_alive() else "none", what="", seconds=0.0)]
    return list(_found(core, now, all_parked, wait))


def _found(core: StreamCore, now: float, all_parked: Sequence[Parked], wait: Parked) -> Iterator[WaitDump]:
    case = wait.cases[0] if wait.cases else None
    if case is None:
        yield WaitDump(kind="channel", what="nothing", seconds=wait.seconds)
    elif case.direction == "send":
        yield _sending(core, all_parked, wait, case)
    elif case.channel is core.mailbox._resumed:
        yield WaitDump(kind="pause", what="the end of a pause", seconds=wait.seconds)
    elif case.channel.name == _MORE:
        yield WaitDump(kind="answer", what="the user, who may allow more turns", seconds=wait.seconds)
    elif case.channel.name == _TURN:
        yield from _turn(core, now, wait, case.channel)
    else:
        call = _call_of(core, case.channel)
        if call is not None:
            yield _called(call, now)
        elif _writes(core):
            yield WaitDump(kind="store", what="the store", seconds=wait.seconds)
        else:
            yield WaitDump(kind="channel", what=repr(case.channel), seconds=wait.seconds)


def _sending(core: StreamCore, all_parked: Sequence[Parked], wait: Parked, case: ParkedCase) -> WaitDump:
    """The channel of its events is full: the consumer does not read, or the observers do not come to an end."""
    channel = case.channel
    if channel is not core.events:
        return WaitDump(kind="channel", what=f"somebody to receive from {channel!r}", seconds=wait.seconds)
    reads = core.out is core.events or any(
        each.direction == "send" and each.channel is core.out for other in all_parked for each in other.cases
    )
    if reads:
        what = f"the consumer, who has {len(core.out)} events to read"
        return WaitDump(kind="consumer", what=what, seconds=wait.seconds)
    return WaitDump(kind="observer", what=f"the observers, who have {len(channel)} events to see", seconds=wait.seconds)


def _turn(core: StreamCore, now: float, wait: Parked, inbox: Channel[Any]) -> Iterator[WaitDump]:
    """The calls of a turn, and what the user is asked for them."""
    asked = set()
    for ask in asks_of(core):
        asked.add(getattr(ask.call, "id", None) or getattr(getattr(ask.call, "call", None), "id", None))
        yield WaitDump(kind="answer", what="the user's answer", seconds=round(now - ask.began, 3))
    calls = [call for call in list(core.calls._live) if call.inbox is inbox and call.tool_call_id not in asked]
    for call in sorted(calls, key=lambda call: call.began):
        yield _called(call, now)
    if not asked and not calls:
        yield WaitDump(kind="call", what="a call that is about to end", seconds=wait.seconds)


def _call_of(core: StreamCore, channel: Channel[Any]) -> Call | None:
    """The call that says something on ``channel``."""
    live = list(core.calls._live)
    for call in (*live, *list(core.calls._nested)):
        if channel in (call.done, call.inbox, getattr(call.inbox, "channel", None)):
            return call
        if call.feed is not None and call.feed._channel is channel:
            return call
    return None


def _writes(core: StreamCore) -> bool:
    """Whether the worker is in the middle of writing to the store, which waits as it likes."""
    frame = sys._current_frames().get(core.threads[0].ident or 0)
    while frame is not None:
        if frame.f_code is Outbox.flush.__code__:
            return True
        frame = frame.f_back
    return False


def _called(call: Call, now: float) -> WaitDump:
    first = call.what.partition(" ")[0]
    kind: WaitKind = next((kind for kind in _KINDS if kind == first), "call")
    return WaitDump(kind=kind, what=call.what, seconds=round(now - call.began, 3))


# -- between streams ---------------------------------------------------------------------------------------------------


def circle(core: StreamCore, cores: Iterable[StreamCore], all_parked: Sequence[Parked]) -> list[tuple[StreamCore, str]]:
    """The streams that wait for each other in a circle through ``core``, which comes first, each with what it waits in
    for the next; empty where there is none.

    A stream waits for another where the thread of one of its calls is parked until the other sends an event or ends,
    or where one of its calls has not begun, because threads of the executor are taken by calls of the other.
    """
    waiting = _edges(list(cores), all_parked)
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


def _edges(cores: list[StreamCore], all_parked: Sequence[Parked]) -> dict[StreamCore, list[tuple[StreamCore, str]]]:
    owners: dict[int, StreamCore] = {}
    threads: dict[int, tuple[StreamCore, Call]] = {}
    queued: list[tuple[StreamCore, Call]] = []
    taken: list[tuple[StreamCore, Call]] = []
    for core in cores:
        for channel in (core.events, core.out, core.finished, core.over, core.log.released):
            owners[id(channel)] = core
        background = {task.call for task in list(core.background.values())}
        # The nested ones first: the thread of a tool that runs an agent is that of both calls, and named for its tool.
        for call in (*(each for each in list(core.calls._nested) if each not in background), *list(core.calls._live)):
            if call.thread is not None and call.thread.ident is not None:
                threads[call.thread.ident] = core, call
            if call.future is not None:
                (queued if call.thread is None else taken).append((core, call))
        for task in list(core.background.values()):
            child = next((each for each in cores if each.calls is core.calls._nested.get(task.call)), None)
            if child is not None:
                owners[id(task.call.done)] = child
    edges: dict[StreamCore, list[tuple[StreamCore, str]]] = {}
    for wait in all_parked:
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
