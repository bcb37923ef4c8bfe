"""The elicitation bridge: it brings a question to the stream that it belongs to.

The bridge is an ordered list of places, one for each stream that runs. With a single slot, into which a stream puts
back what it has found there, a dead stream would come back when streams end out of order. Here each stream adds its own
place and drops its own place, and nothing is ever put back.

There is no lock: adding and removing an element of a list are single steps, and `current` looks at a copy.
"""

from __future__ import annotations

import contextlib
from types import NoneType
from typing import TypeAlias

from channels import Channel, ChannelClosed, SupportsDone

from .._checks import check
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
    """Brings questions to the open streams. All methods are thread-safe; only `send` waits."""

    def __init__(self) -> None:
        self._places: list[Place] = []

    @property
    def current(self) -> Events | None:
        """The channel of the newest place whose channel is open; None if no stream is open."""
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
        """Make ``channel`` the current one, and return the one that was current before.

        This is the low-level form: the caller has to undo it, by closing ``channel``. Use `stream_scope`, which does so
        on every way out.
        """
        check("what takes the place on the bridge", channel, Channel, "a Channel")
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

        Returns once the channel has accepted the event. Raises `ChannelClosed` if the stream closes before or
        meanwhile, or if there is no stream; `TimeoutError` after ``timeout`` seconds; `Cancelled` once ``cancel`` is
        done.
        """
        check("to", to, (Channel, NoneType), "the channel of a stream, or None")
        channel = self.current if to is None else to
        if channel is None:
            raise ChannelClosed("no stream is open, so there is nobody to ask")
        channel.send(event, timeout, cancel)

    def __len__(self) -> int:
        return len(self._places)

    def __bool__(self) -> bool:
        return True  # `if bridge:` asks whether there is a bridge, not whether a stream is open

    def __repr__(self) -> str:
        return f"<ElicitationBridge {len(self._places)} places, current {self.current!r}>"
