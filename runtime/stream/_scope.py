"""`stream_scope`: the one way into and out of the bridge."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final

from channels import ChannelClosed, SupportsDone

from ..events import Event
from ..human._bridge import ElicitationBridge, Events, Place


class EventSink:
    """Where events go. All that a producer holds of a stream."""

    __slots__ = ("_events",)

    def __init__(self, events: Events) -> None:
        self._events: Final = events

    def emit(self, event: Event, cancel: SupportsDone | None = None) -> bool:
        """Send ``event``, waiting while the buffer is full; False when the stream is over.

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

    ``with stream_scope(bridge, events, final=last_event) as sink:`` - ``final()`` is called on exit, and what it
    returns is the last value of the channel, delivered even when the buffer is full. There is nothing between
    entering and the registration of the cleanup, and nothing to remember on any of the ways out: the bug this project
    began with is a ``return`` that stood between the two. If ``final`` fails, and fails again, the channel is closed
    without a last value, and the failure raised. Neither entering nor leaving ever waits.
    """

    __slots__ = ("_bridge", "_events", "_final", "_place")

    def __init__(self, bridge: ElicitationBridge, events: Events, *, final: Callable[[], Event] | None = None) -> None:
        self._bridge = bridge
        self._events = events
        self._final = final
        self._place = Place(events)

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
