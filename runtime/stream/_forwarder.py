"""The forwarder: a thread that passes every event to the observers, once and in order, before the consumer gets it.

A stream without observers has no forwarder; its consumer reads the worker's events directly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Final, Protocol, TypeAlias

from channels import Cancelled, CancelToken, ChannelClosed, WouldBlock
from channels._lazy import lazy_logger

from .._errors import NotInTime
from ..events import Event, StreamStopped
from ..execution._calls import Calls
from ..session._session import Session
from ._core import StreamCore
from ._private_events import ConsumerCall, InBackground, Traffic
from ._quiet import WANTED, QuietCore
from ._record_writer import RecordWriter

_logger = lazy_logger("runtime")


class _OnRunStart(Protocol):
    def on_run_start(self, session: Session) -> None:
        """A stream of ``session`` has started."""


class _OnEvent(Protocol):
    def on_event(self, session: Session, event: Event) -> None:
        """The stream has sent ``event``, which its consumer gets afterwards. The last event is a `StreamStopped`."""


class Observer(_OnRunStart, _OnEvent, Protocol):
    """Watches streams. Its methods are called on helper threads, one call at a time for each stream. An observer may
    have only one of them, and they may be coroutine functions.
    """


AnyObserver: TypeAlias = Observer | _OnRunStart | _OnEvent
METHODS: Final = ("on_run_start", "on_event")


def checked(observers: Iterable[Any]) -> tuple[Any, ...]:
    """The observers of a runtime. Raises `TypeError` for an object that has no method of an observer."""
    if not isinstance(observers, Iterable) or isinstance(observers, (str, bytes)):
        raise TypeError(f"observers must be a list, such as [observer], not {observers!r:.200}")
    found = tuple(observers)
    for each in found:
        if isinstance(each, type):
            raise TypeError(f"an observer must be an object, not the class {each.__name__} itself")
        if not any(callable(getattr(each, method, None)) for method in METHODS):
            raise TypeError(
                "an observer must have a method on_event(session, event), on_run_start(session), or both;"
                f" {each!r:.200} has none"
            )
    return found


def forward(core: StreamCore, calls: Calls) -> None:
    """Pass the events of ``core`` on to the consumer, each after the observers have seen it, until the last event.

    If an observer raises, the exception is logged, and the observer still gets the next event. If it does not return
    within the grace time, it gets no more events. A consumer that does not read is waited for. But once the stream is
    to end, the consumer gets only the events for which there is room, and the last event; the observers get all events.

    If a stream was cancelled, its end does not wait for slow observers either: after the grace time the consumer gets
    the last event, and the observers go on without it.
    """
    forwarder = _Forwarder(core, calls)
    try:
        try:
            forwarder.run()
        except BaseException:  # nobody is told any more, but the consumer gets its last event
            _logger.exception("observers and the record of %r are left out from now on", core)
            forwarder.run(tells=False)
    finally:
        if not core.out.closed:
            core.out.close(final=core.ending.stopped())
        forwarder.finish()


class _Forwarder:
    """The state of the forwarder between one stream and its consumer."""

    def __init__(self, core: StreamCore, calls: Calls) -> None:
        self._core = core
        self._observers = _Watchers(core, calls, core.shared.observers)
        self._record = None if core.recorder is None else RecordWriter(core.recorder, calls, core.shared.grace)
        self._began = False
        self._event: Event | None = None  # taken, and not passed on yet
        self._late: list[Event] = []  # what there was no room for
        self._patience: CancelToken | None = None  # of the consumer of a stream that is to end, with the observers
        self._quiet = isinstance(core, QuietCore)

    def run(self, *, tells: bool = True) -> None:
        """Forward until the end of the stream. A second call goes on where an exception has ended the first."""
        if tells and not self._began:
            self._began = True
            self._observers.tell("on_run_start", self._core.session)
        if self._event is not None:
            self._take(self._event, tells)
        for event in self._core.events:
            self._take(event, tells)

    def _take(self, event: Event, tells: bool) -> None:
        self._event = event
        if self._core.stopping.cancelled:
            self._lose_patience()
        try:
            if tells:
                self._tell(event)
        finally:
            if isinstance(event, StreamStopped):
                self._stop(event)
        if self._is_for_consumer(event) and (self._late or not self._pass_on(event)):
            self._late.append(event)
        self._event = None

    def _is_for_consumer(self, event: Event) -> bool:
        if self._quiet:
            return isinstance(event, WANTED)
        return not isinstance(event, (Traffic, StreamStopped))

    def _tell(self, event: Event) -> None:
        session = self._core.session
        if isinstance(event, ConsumerCall):  # an errand between the worker and the consumer, and no news
            return
        background = isinstance(event, InBackground)
        said = event.event if isinstance(event, InBackground) else event
        if self._record is not None:
            self._record.tell(said)
        if background or not isinstance(event, Traffic):
            self._observers.tell("on_event", session, said)

    def _lose_patience(self) -> None:
        if self._patience is None:
            self._patience = CancelToken(timeout=self._core.shared.grace)
            self._patience.on_cancel(self._close_before_the_observers)
        elif self._patience.cancelled:  # when the worker was not through yet, it may be
            self._close_before_the_observers()

    def _close_before_the_observers(self) -> None:
        """Give the consumer the last event before the observers have seen it. Called on any thread. If the stream has
        ended before the cancel, nothing is skipped.
        """
        core = self._core
        if core.events.closed and core.ending.reason == "canceled":
            core.out.close(final=core.ending.stopped())

    def finish(self) -> None:
        """Complete the record: its last event may have been passed on before it was written."""
        self._patience = None  # which holds this
        if self._record is not None:
            self._record.finish()

    def _stop(self, event: StreamStopped) -> None:
        if event.reason != "canceled":  # the cancel came after the end: nothing may be missing
            self.finish()
            self._wait_to_pass_on()
        self._core.out.close(final=event)

    def _pass_on(self, event: Event) -> bool:
        """Pass the event on to the consumer. Returns False if the stream is to end and there is no room for the
        event."""
        core = self._core
        try:
            try:
                core.out.send(event, None, core.stopping)
            except Cancelled:
                core.out.try_send(event)
        except ChannelClosed:
            pass  # the consumer has left
        except WouldBlock:
            return False
        return True

    def _wait_to_pass_on(self) -> None:
        with contextlib.suppress(ChannelClosed, Cancelled):  # the consumer has left
            for event in self._late:
                self._core.out.send(event, None, self._core.gone)


class _Watchers:
    """The observers of one stream that still get its events."""

    def __init__(self, core: StreamCore, calls: Calls, observers: Iterable[Any]) -> None:
        self._core = core
        self._calls = calls
        self._observers = list(observers)
        self._failed: set[tuple[int, str]] = set()

    def tell(self, method: str, *args: Any) -> None:
        for observer in self._observers[:]:
            what = f"observer {type(observer).__name__}.{method}"
            try:
                function = getattr(observer, method, None)
                if function is not None:
                    self._calls.run(what, function, *args, timeout=self._core.shared.grace)
            except NotInTime:
                self._observers.remove(observer)
                _logger.warning("observer %r did not return from %s in time, and is left out now", observer, method)
            except BaseException:
                # Once a stream: one that fails on every event would fill a log with the same lines.
                known = (id(observer), method) in self._failed
                self._failed.add((id(observer), method))
                log = _logger.debug if known else _logger.error
                log("observer %r failed in %s", observer, method, exc_info=True)


def observing_calls(core: StreamCore) -> Calls:
    """The calls of observers. A cancel of the stream does not end them, because observers see a cancelled stream to its
    end."""
    return Calls(CancelToken(), core.shared.helpers, core.shared.loop, core.context)
