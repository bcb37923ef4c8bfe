"""`stream_scope`: the one way into and out of the bridge."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final

from channels import Channel, ChannelClosed, SupportsDone

from .._checks import check
from ..events import Event
from ..human._bridge import ElicitationBridge, Events, Place


class EventSink:
    """Where a producer of events sends them. A producer holds nothing else of a stream. Thread-safe."""

    __slots__ = ("_events",)

    def __init__(self, events: Events) -> None:
        self._events: Final = events

    def emit(self, event: Event, cancel: SupportsDone | None = None) -> bool:
        """Send ``event``, waiting while the buffer is full. Returns False if the stream has ended.

        Raises `Cancelled` once ``cancel`` is done.
        """
        try:
            self._events.send(event, None, cancel)
        except ChannelClosed:
            return False
        return True

    def __repr__(self) -> str:
        return f"<EventSink of {self._events!r}>"


class stream_scope:
    """Puts ``events`` on the bridge; on exit **always** drops that place and closes ``events``.

    Use it as ``with stream_scope(bridge, events, final=last_event) as sink:``. On exit ``final()`` is called, and its
    return value is the last value of the channel, which is delivered even if the buffer is full. No code can run
    between entering and the registration of the cleanup, so no ``return`` or exception there can leave the place on the
    bridge. If ``final`` fails twice, the channel is closed without a last value, and the exception is raised. Neither
    entering nor leaving ever waits.
    """

    __slots__ = ("_bridge", "_events", "_final", "_place")

    def __init__(self, bridge: ElicitationBridge, events: Events, *, final: Callable[[], Event] | None = None) -> None:
        check("the bridge of a stream_scope", bridge, ElicitationBridge, "an ElicitationBridge")
        check("the events of a stream_scope", events, Channel, "a Channel")
        if final is not None and not callable(final):
            raise TypeError(f"final must be a function that returns the last event, or None, not {final!r:.200}")
        self._bridge = bridge
        self._events = events
        self._final = final
        self._place = Place(events)

    def __repr__(self) -> str:
        return f"<stream_scope of {self._events!r}>"

    def __enter__(self) -> EventSink:
        self._bridge.enter(self._place)
        return EventSink(self._events)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.leave()
        except BaseException:  # of `final`, or an asynchronous one: all of it may be done twice
            try:
                self.leave()
            finally:
                self._events.close()
            raise

    def leave(self) -> None:
        """What leaving the block does. Doing it twice is harmless."""
        try:
            self._bridge.drop(self._place)
        finally:
            if self._final is not None and not self._events.closed:
                self._events.close(final=self._final())
            self._events.close()
