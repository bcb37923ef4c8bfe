"""Events that are sent through the channel of a stream, but are not part of the wire format.

`Traffic` events are about requests to the model, its replies, and background agents. They are for the record and the
observers. They go through the same channel as other events, so that the record has everything in one order, and the
forwarder removes them: no consumer sees them, and a stream without a forwarder sends none. A `ConsumerCall` is a tool
call that runs in the consumer's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from .._dataclasses import dataclass, field
from ..events import Event
from ..model import Delta, ToolDefinition
from ..session._journal import MailPoint
from ..session._message import Message, ToolCall


@dataclass(frozen=True, slots=True)
class Traffic(Event):
    """The base of the events about model traffic and background streams, which no consumer sees."""


@dataclass(frozen=True, slots=True)
class ModelAsked(Traffic):
    """A request to a model. The stream makes the next one only when this one is done."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...]


@dataclass(frozen=True, slots=True)
class ModelSaid(Traffic):
    """A delta of the model's reply."""

    delta: Delta


@dataclass(frozen=True, slots=True)
class ModelDone(Traffic):
    """The model's reply has ended, or failed. If a cancel has cut the reply off, this event is not sent."""

    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class ToolReturned(Traffic):
    """The result that a tool has returned, if the model is given another: a hook has changed it, or it was too long."""

    tool_call: ToolCall
    content: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class UserAnswered(Traffic):
    """The stream goes on with what the user has said to a question, a call or a request for more turns."""

    request_id: str


@dataclass(frozen=True, slots=True)
class UserMailed(Traffic):
    """A steering message or a follow-up that the next model call is shown."""

    point: MailPoint
    text: str


@dataclass(frozen=True, slots=True)
class InBackground(Traffic):
    """An event of a background agent's stream, for the record and the observers."""

    event: Event


@dataclass(frozen=True, slots=True, eq=False)
class ConsumerCall(Event):
    """A tool call that has to run in the consumer's thread. It is not part of the wire format. Iterating over a stream
    runs it; `channels.select`, `channels.merge` and `channels.aio.to_async` deliver it, and you call `run`.
    """

    type: ClassVar[str] = "consumer_call"

    tool_call: ToolCall
    _work: list[Callable[[], None]] = field(repr=False)

    def run(self) -> None:
        """Make the call, in this thread. If the tool raises an `Exception`, that is its result; Ctrl-C and other
        exceptions are raised here.

        Harmless if the call was made before, or is no longer needed.
        """
        try:
            work = self._work.pop()  # a single step: two threads do not both get it
        except IndexError:
            return
        work()

    def withdraw(self) -> None:
        """Withdraw the call, whose result is no longer needed."""
        self._work.clear()

    def to_dict(self) -> dict[str, Any]:
        """Raises `TypeError`, because the call can only be made in this process."""
        raise TypeError(f"a {self.type} stays in the process of its stream; call run()")
