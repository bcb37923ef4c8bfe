"""Parking: a stream with a store ends while its user is asked, and another goes on with the session some other time.

Whoever wants that says so to the outermost stream, and those nested in it are told with it. A worker parks as soon as
nothing is under way in its stream but questions, and streams that are parked themselves: it ends with `parked`, settles
nothing, and leaves its open calls and requests to the store.
"""

from __future__ import annotations

from typing import Final

from channels import CancelToken

from .._errors import NotParkable
from ._end_reason import StopRun

_MODEL: Final = "model"


class Parking:
    """Whether a stream is to be parked. Its worker notes what is under way; any thread may read it or ask for
    parking."""

    def __init__(self, agent_name: str, outer: Parking | None, after: float | None) -> None:
        self.agent_name = agent_name
        self.after = after  # seconds, after which a stream that only asks is parked
        self.wanted: CancelToken = CancelToken(None if outer is None else outer.wanted)
        self.busy: tuple[str, ...] = (_MODEL,)  # what is under way, but for questions
        self._outermost: Parking = self if outer is None else outer._outermost
        self._forced = False
        self._all: list[Parking] = [] if outer is None else outer._all  # of the streams nested in the outermost
        self._all.append(self)

    @property
    def forced(self) -> bool:
        """Whether the stream is to be parked even if calls are under way, which are then let go."""
        return self._outermost._forced

    @property
    def under_way(self) -> list[str]:
        """What is under way in the outermost stream and its nested streams, except questions to the user."""
        return [f"{each.agent_name}'s {name}" for each in list(self._all) for name in each.busy]

    def park(self, *, force: bool = False) -> None:
        """Ask for the outermost stream and its nested streams to be parked. Raises `NotParkable`."""
        busy = self.under_way
        if busy and not force:
            if len(busy) == 1:
                said = f"{busy[0]} has not ended; wait until it has, or leave it to itself"
            else:
                said = f"{', '.join(busy[:-1])} and {busy[-1]} have not ended; wait until they have, or leave them to"
                said += " themselves"
            raise NotParkable(f"the run cannot be parked yet: {said} with force=True")
        self._outermost._forced = force
        self._outermost.wanted.cancel("parked")

    def at_the_model(self) -> None:
        """Note that no calls are under way."""
        self.busy = (_MODEL,)

    def end(self) -> None:
        """The stream has ended. Twice is harmless."""
        self.busy = ()
        if self in self._all:
            self._all.remove(self)

    def __repr__(self) -> str:
        state = "wanted" if self.wanted.cancelled else f"busy with {', '.join(self.busy)}" if self.busy else "only asks"
        return f"<Parking {state}>"


def parked() -> StopRun:
    """The exception with which a worker parks its stream."""
    return StopRun("waiting", "waiting", "the run waits for its user, and goes on when it is run again")
