"""The watchdog: reports a stream that stands still though nobody is being asked.

There is one timer for a runtime, and it is set only while streams are live: the first stream sets it, and the end of
the last drops it. So a runtime whose streams move pays a few looks in the time that one may stand still, and nothing
for each event: since when a worker waits, its channel has noted anyhow. A look that comes late tells that the process
itself stood still, stopped or on a computer that was closed: then nothing could go on, and that time does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from channels import CancelToken
from channels._lazy import lazy_logger
from channels._park import Waiter, monotonic

from .._dataclasses import dataclass
from ..stream import _at_exit
from ..stream._core import StreamCore
from ._data import Stall
from ._dump import dump_of
from ._look import Look, Worker, snapshot
from ._waits import asks_of, circle

_logger = lazy_logger("runtime")
_LOOKS: Final = 5  # within the time that a stream may stand still, at the least
_OFTEN: Final = 20  # and at the most


@dataclass(slots=True)
class _Watched:
    """What was seen of a stream."""

    began: float  # when it came to where it stands, as far as is known: another time if it has moved meanwhile
    since: float  # when it would have, had this process not stood still meanwhile
    at: object = None  # where its worker was, which was not parked
    reported: float | None = None  # the ``began`` that was reported
    excused: bool = False  # whether it might stand still
    not_before: float = 0.0  # when it was no longer excused: what it waited for until then was not late


class Watchdog:
    """Watches the streams of one runtime. All methods are thread-safe, and none but the timer's own look waits."""

    def __init__(self, cores: set[StreamCore], stall_after: float, on_stall: Callable[[Stall], object] | None) -> None:
        self._cores = cores
        self._stall_after = stall_after
        self._on_stall = on_stall
        # The one there is, and when it is due: who puts it there sets it, in a single step.
        self._timer: dict[None, tuple[CancelToken, float]] = {}
        self._watched: dict[StreamCore, _Watched] = {}

    def wake(self) -> None:
        """A stream has begun."""
        if not self._timer:
            self._set(self._stall_after / _LOOKS)

    def rest(self) -> None:
        """A stream has ended: where it was the last, there is no timer any more."""
        if not self._cores:
            self._timer.pop(None, None)  # a deadline goes with its token
            self._watched.clear()
            if self._cores:  # one has begun meanwhile, and has seen the timer that is gone now
                self.wake()

    def _set(self, seconds: float) -> None:
        timer = CancelToken(timeout=seconds), monotonic() + seconds
        if self._timer.setdefault(None, timer) is timer:
            timer[0].on_cancel(self._look)

    def _look(self) -> None:
        """On a thread for callbacks, which ends by itself."""
        timer = self._timer.pop(None, None)
        cores = [core for core in snapshot(self._cores) if not core.inherited]
        if not cores:
            return
        asking = {core for core in cores if asks_of(core)}  # first: who has an answer by now has waited for that
        look = Look(cores)
        now, often = look.now, self._stall_after / _OFTEN
        late = 0.0 if timer is None else now - timer[1]
        stood_still = late if late > often else 0.0  # less is the machine's way to be busy
        watched = {core: self._watched.get(core) or _Watched(now, now) for core in cores}
        stalled = []
        due = now + self._stall_after / _LOOKS
        for core, seen in watched.items():
            self._note(core, seen, look, core in asking, stood_still)
            if seen.since + self._stall_after > now:
                due = min(due, seen.since + self._stall_after)
            elif seen.reported != seen.began:
                seen.reported = seen.began
                stalled.append((core, now - seen.since))
        self._watched = watched
        # Before the reports: one that takes long, or for ever, keeps nobody from the next look.
        self._set(max(due - now, often))
        if not self._cores:
            self.rest()
        for core, seconds in stalled:
            self._report(core, seconds)

    def _note(self, core: StreamCore, seen: _Watched, look: Look, asks: bool, stood_still: float) -> None:
        """Find out since when the stream stands still."""
        worker, now = look.of(core).worker, look.now
        if asks or _may_stand_still(core, look):
            seen.began = seen.since = now
            seen.at, seen.excused = None, True
            return
        if seen.excused:
            seen.excused, seen.not_before = False, now
        before, seen.at = seen.at, None
        if worker.wait is not None:
            began = max(worker.wait.since, core.calls.heard, seen.not_before)
        else:
            seen.at = _place(core, worker)
            began = seen.began if seen.at is not None and seen.at == before else now
        seen.since = min((seen.since if began == seen.began else began) + stood_still, now)
        seen.began = began

    def _report(self, core: StreamCore, seconds: float) -> None:
        try:
            found = circle(core, Look(snapshot(_at_exit.live)))
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


def _may_stand_still(core: StreamCore, look: Look) -> bool:
    """Whether the stream is paused, or waits for a stream inside it, which is watched itself."""
    wait = look.of(core).worker.wait
    if wait is not None and any(case.channel is core.mailbox._resumed for case in wait.cases):
        return True
    background = [core.calls._nested.get(task.call) for task in snapshot(core.background.values())]
    return any(child.parent is core and child.calls not in background for child in look.cores)


class _Same:
    """Is equal if it is about the same object, which it keeps: another one may come to its address."""

    __slots__ = ("_object",)

    def __init__(self, object: object) -> None:
        self._object = object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._object is self._object

    __hash__ = None  # type: ignore[assignment]


def _place(core: StreamCore, worker: Worker) -> object:
    """Where the worker is that is not parked, and how far its stream has come; None where it is about to be served, or
    went on while it was looked at.
    """
    if worker.rest is not None:
        return _Same(worker.rest[0])
    frame = worker.frame
    if frame is None or frame.f_code is Waiter.wait.__code__:
        return None
    return id(frame), frame.f_code, frame.f_lasti, core.turn, len(core.session._messages), len(core.out)
