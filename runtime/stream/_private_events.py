"""Events that travel in the channel of a stream's events, and are not on the wire.

`Traffic` is what goes between a stream and its model, and what happens in the background: it is for the record and the
observers. It is sent in the one channel so that the record has everything in one order, and the forwarder takes it out
again: no consumer sees it, and a stream that has no forwarder sends none. A `ConsumerCall` is a tool call for the
consumer's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from .._dataclasses import dataclass, field
from ..events import Event
from ..model import Delta, ToolDefinition
from ..session._message import Message, ToolCall


@dataclass(frozen=True, slots=True)
class Traffic(Event):
    """The base of the events about model traffic and background streams, which no consumer sees."""


@dataclass(frozen=True, slots=True)
class ModelAsked(Traffic):
    """A model is asked. Its stream asks no other before this one is done."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...]


@dataclass(frozen=True, slots=True)
class ModelSaid(Traffic):
    """A delta of the model that was asked."""

    delta: Delta


@dataclass(frozen=True, slots=True)
class ModelDone(Traffic):
    """It has ended, or failed. There is no such word of a model that a cancel has cut off."""

    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class ToolReturned(Traffic):
    """The result of a tool, where the model is given another: a hook has changed it, or it is too long."""

    tool_call: ToolCall
    content: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class UserAnswered(Traffic):
    """The stream goes on with what the user has said to a question, a call or a request for more turns."""

    request_id: str


@dataclass(frozen=True, slots=True)
class InBackground(Traffic):
    """An event of a background stream: for the record and the observers."""

    event: Event


@dataclass(frozen=True, slots=True, eq=False)
class ConsumerCall(Event):
    """A tool call that waits for the consumer's thread; not among the events of the wire."""

    type: ClassVar[str] = "consumer_call"

    tool_call: ToolCall
    _work: list[Callable[[], None]] = field(repr=False)

    def run(self) -> None:
        """Make the call, in this thread. A failure is its result; Ctrl-C and its like are raised here.

        Harmless when it was made before, or nobody waits for it any more.
        """
        try:
            work = self._work.pop()  # a single step: two threads do not both get it
        except IndexError:
            return
        work()

    def withdraw(self) -> None:
        """Withdraw the call: nobody waits for it any more."""
        self._work.clear()

    def to_dict(self) -> dict[str, Any]:
        """Not possible: it is of use in this process only."""
        raise TypeError(f"a {self.type} stays in the process of its stream; call run()")
