"""The watchdog: reports a stream that stands still though nobody is being asked.

There is one timer for a runtime, and it is set only while streams are live: the first stream sets it, and the end of
the last drops it. It is due when the first of them could have stood still for long enough; so a runtime whose streams
move pays one look every so often, and nothing for each event: since when a worker waits, its channel has noted anyhow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

from channels import CancelToken, Parked, parked
from channels._lazy import lazy_logger
from channels._park import Waiter, monotonic

from .._dataclasses import dataclass
from ..stream import _at_exit
from ..stream._core import StreamCore
from ._data import Stall
from ._dump import dump_of, snapshot
from ._waits import asks_of, circle, worker_rest, worker_wait

_logger = lazy_logger("runtime")
_LOOKS: Final = 5  # at a worker that is not parked: whether it is where it was, each time
_OFTEN: Final = 20  # looks within the time that a stream may stand still, at most


@dataclass(slots=True)
class _Watched:
    """What was seen of a stream."""

    since: float  # it stands still, as far as is known
    at: object = None  # where its worker was, which was not parked
    reported: float | None = None  # the ``since`` that was reported


class Watchdog:
    """Watches the streams of one runtime. All methods are thread-safe, and none but the timer's own look waits."""

    def __init__(self, cores: set[StreamCore], stall_after: float, on_stall: Callable[[Stall], object] | None) -> None:
        self._cores = cores
        self._stall_after = stall_after
        self._on_stall = on_stall
        self._timer: dict[None, CancelToken] = {}  # the one there is: who puts it there sets it, in a single step
        self._watched: dict[StreamCore, _Watched] = {}

    def wake(self) -> None:
        """A stream has begun."""
        if not self._timer:
            self._set(self._stall_after)

    def rest(self) -> None:
        """A stream has ended: where it was the last, there is no timer any more."""
        if not self._cores:
            self._timer.pop(None, None)  # a deadline goes with its token
            self._watched.clear()
            if self._cores:  # one has begun meanwhile, and has seen the timer that is gone now
                self.wake()

    def _set(self, seconds: float) -> None:
        token = CancelToken(timeout=seconds)
        if self._timer.setdefault(None, token) is token:
            token.on_cancel(self._look)

    def _look(self) -> None:
        """On a thread for callbacks, which ends by itself."""
        self._timer.pop(None, None)
        cores = [core for core in snapshot(self._cores) if not core.inherited]
        if not cores:
            return
        now, all_parked = monotonic(), parked()
        watched = {core: self._watched.get(core) or _Watched(now) for core in cores}
        stalled = []
        due = now + self._stall_after
        for core, seen in watched.items():
            self._note(core, seen, now, cores, all_parked)
            if seen.since + self._stall_after > now:
                due = min(due, seen.since + self._stall_after if seen.at is None else now + self._stall_after / _LOOKS)
            elif seen.reported != seen.since:
                seen.reported = seen.since
                stalled.append((core, now - seen.since))
        self._watched = watched
        # Before the reports: one that takes long, or for ever, keeps nobody from the next look.
        self._set(max(due - now, self._stall_after / _OFTEN))
        if not self._cores:
            self.rest()
        for core, seconds in stalled:
            self._report(core, seconds, all_parked)

    def _note(
        self, core: StreamCore, seen: _Watched, now: float, cores: Sequence[StreamCore], all_parked: Sequence[Parked]
    ) -> None:
        """Find out since when the stream stands still."""
        if _may_stand_still(core, cores, all_parked):
            seen.since, seen.at = now, None
            return
        wait = worker_wait(core, all_parked)
        if wait is not None:
            seen.since, seen.at = max(wait.since, core.calls.heard), None
            return
        at = _place(core)
        if at is None or at != seen.at:
            seen.since, seen.at = now, at

    def _report(self, core: StreamCore, seconds: float, all_parked: list[Parked]) -> None:
        try:
            found = circle(core, snapshot(_at_exit.live), all_parked)
            involved = dict.fromkeys((*core.line, *(each for each, _ in found)))
            dump = dump_of(involved)
            stall = Stall(
                seconds=round(seconds, 3),
                stream=next(stream for stream in dump.streams if stream.number == core.number),
                cycle=tuple(f"stream {each.number} (agent {each.agent.name}, {what})" for each, what in found),
                dump=dump,
            )
            if self._on_stall is None:
                _logger.warning("%s", stall, extra=core.tags)
            else:
                core.context.copy().run(self._on_stall, stall)  # as what else is called for the stream
        except Exception:
            _logger.exception("a stall of %r could not be reported", core, extra=core.tags)

    def __repr__(self) -> str:
        return f"<Watchdog of {len(self._cores)} streams, {self._stall_after:g} s>"


def _may_stand_still(core: StreamCore, cores: Sequence[StreamCore], all_parked: Sequence[Parked]) -> bool:
    """Whether the stream waits for the user, or for a stream inside it, which is watched itself."""
    wait = worker_wait(core, all_parked)
    if wait is not None and any(case.channel is core.mailbox._resumed for case in wait.cases):
        return True
    if asks_of(core):
        return True
    background = [core.calls._nested.get(task.call) for task in snapshot(core.background.values())]
    return any(child.parent is core and child.calls not in background for child in cores)


class _Same:
    """Is equal if it is about the same object, which it keeps: another one may come to its address."""

    __slots__ = ("_object",)

    def __init__(self, object: object) -> None:
        self._object = object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._object is self._object

    __hash__ = None  # type: ignore[assignment]


def _place(core: StreamCore) -> object:
    """Where the worker is that is not parked, and how far its stream has come; None where it is about to be served."""
    rest = worker_rest(core)
    if rest is not None:
        return _Same(rest[0])
    worker = core.threads[0].ident if core.threads else None
    frame = sys._current_frames().get(worker or 0)
    if frame is None or frame.f_code is Waiter.wait.__code__:
        return None
    return id(frame), frame.f_code, frame.f_lasti, core.turn, len(core.session._messages), len(core.out)
