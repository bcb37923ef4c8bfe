"""The elicitation bridge: it leads a question to the stream that it belongs to.

The bridge is an ordered list of places, one for each stream that runs. Upstream had one slot, and a stream put back
what it had found there: when streams ended out of order, a dead one came back. Here a stream adds its own place and
drops its own place, and nothing is ever put back.

There is no lock: adding and removing an element of a list are single steps, and `current` looks at a copy.
"""

from __future__ import annotations

import contextlib
from typing import TypeAlias

from channels import Channel, ChannelClosed, SupportsDone

from ..events import Event

Events: TypeAlias = Channel[Event]


class Place:
    """One stream's entry. Two entries of one channel are two places, each dropped by whoever added it."""

    __slots__ = ("channel",)

    def __init__(self, channel: Events) -> None:
        self.channel = channel

    def __repr__(self) -> str:
        return f"<Place of {self.channel!r}>"


class ElicitationBridge:
    """Leads questions to the streams that are open. All methods are thread-safe and none of them waits but `send`."""

    def __init__(self) -> None:
        self._places: list[Place] = []

    @property
    def current(self) -> Events | None:
        """The channel of the newest place whose channel is open; None when no stream is."""
        for place in reversed(self._places[:]):
            if not place.channel.closed:
                return place.channel
        return None

    def enter(self, place: Place) -> None:
        """Add the place, as the newest. `stream_scope` does this, and drops it."""
        self._places.append(place)

    def drop(self, place: Place) -> None:
        """Remove the place. Dropping it twice is harmless."""
        with contextlib.suppress(ValueError):
            self._places.remove(place)

    def swap(self, channel: Events) -> Events | None:
        """Make ``channel`` the current one; what was current before.

        The low-level form, which leaves the undoing to the caller: once ``channel`` is closed it is not current any
        more. Use `stream_scope`, which cannot forget.
        """
        previous = self.current
        for place in self._places[:]:
            if place.channel.closed:
                self.drop(place)
        self.enter(Place(channel))
        return previous

    def send(
        self,
        event: Event,
        *,
        to: Events | None = None,
        timeout: float | None = None,
        cancel: SupportsDone | None = None,
    ) -> None:
        """Send ``event`` to the stream whose channel is ``to``, or else to the current one.

        Returns once it is accepted. Raises `ChannelClosed` when that stream closes, or has closed, or there is none;
        `TimeoutError` after ``timeout`` seconds; `Cancelled`.
        """
        channel = self.current if to is None else to
        if channel is None:
            raise ChannelClosed("no stream is open, so there is nobody to ask")
        channel.send(event, timeout, cancel)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<ElicitationBridge {len(self._places)} places, current {self.current!r}>"
