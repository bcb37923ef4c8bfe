"""Where a stream says what it does to whoever traces it (`runtime.otel`). Nobody does unless asked to: then every call
here is one of `UNTRACED`, which does nothing.

The worker says when a piece of work begins and how it ends. What begins may bring a context, in which the foreign code
of that work runs: spans that a tool or a model opens are then its children. None of these methods raises, none waits,
and none calls foreign code, but for ``begin``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from ..agent._agent import Agent
    from ..agent._tool import Tool, ToolResult
    from ..model import Model, ToolDefinition
    from ..session._message import Message, ToolCall
    from ..session._session import Session
    from ._end_reason import Ending

Take: TypeAlias = Callable[[Sequence[Any]], object]  # what is done with the deltas that have come together


class Traced(Protocol):
    """A stream, as whoever traces it knows it."""

    trace: StreamTrace
    context: Context  # what its work runs in
    agent: Agent
    session: Session
    ending: Ending


class Tracing(Protocol):
    """Whoever traces the streams of a runtime."""

    def begin(self, core: Traced) -> None:
        """A stream begins: its trace is set, and its context may be changed. In the thread that opens the stream."""


#: What traces runtimes that are made from now on; none or one. It is given the parts that they share.
for_new_runtimes: Final[list[Callable[[Any], Tracing]]] = []


class StreamTrace(Protocol):
    """The trace of one stream. Used by its worker, but for `end`."""

    def model_call(
        self, model: Model, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, typed: bool = False
    ) -> ModelTrace:
        """A model is about to be asked, ``typed`` for JSON of a schema; to be used in a ``with``, which ends it."""

    def tool_call(
        self, call: ToolCall, tool: Tool, arguments: Mapping[str, Any], waited: float | None = None
    ) -> ToolTrace:
        """A tool is about to be called. ``waited`` is how many seconds the user took to approve that."""

    def refused(
        self, call: ToolCall, tool: Tool | None, why: str, result: ToolResult, waited: float | None = None
    ) -> None:
        """A call is not made: ``why`` is a word for programs, ``result`` what the model is told instead."""

    def act(self, agent: Agent) -> None:
        """Another agent acts from now on."""

    def end(self) -> None:
        """The stream has ended, as its ``ending`` says, and so has all of it that is not ended by now. Harmless when
        it is called again. It may wait for the grace time.
        """


class ModelTrace(Protocol):
    """The trace of one model call."""

    @property
    def context(self) -> Context | None:
        """What the model runs in; None where that is the context of its stream."""

    def watch(self, take: Take) -> Take:
        """The same, and the deltas are seen on their way."""

    def said(self, reply: Message) -> None:
        """The reply, whole or as far as it came."""

    def __enter__(self) -> ModelTrace: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class ToolTrace(Protocol):
    """The trace of one tool call, from the moment when its tool is started."""

    @property
    def context(self) -> Context | None:
        """What the tool runs in; None where that is the context of its stream."""

    def asked(self) -> Callable[[str], None]:
        """The tool asks the user something. What is returned takes the action of the answer, in any thread; it may
        be called twice.
        """

    def end(self, result: ToolResult, error: BaseException | None = None) -> None:
        """The tool has ended, with an ``error`` where it raised one."""

    def let_go(self) -> None:
        """The stream does not wait for the tool any more, since it ends itself: how, is not known yet."""


class _Untraced:
    """Nobody traces."""

    context = None

    def begin(self, core: Traced) -> None: ...

    def model_call(self, *args: Any, **kwargs: Any) -> _Untraced:
        return self

    def tool_call(self, *args: Any, **kwargs: Any) -> _Untraced:
        return self

    def refused(self, *args: Any, **kwargs: Any) -> None: ...

    def act(self, agent: Agent) -> None: ...

    def watch(self, take: Take) -> Take:
        return take

    def said(self, reply: Message) -> None: ...

    def asked(self) -> Callable[[str], None]:
        return self.answered

    def answered(self, action: str) -> None: ...

    def end(self, *args: Any) -> None: ...

    def let_go(self) -> None: ...

    def __enter__(self) -> _Untraced:
        return self

    def __exit__(self, *args: object) -> None: ...

    def __repr__(self) -> str:
        return "<untraced>"


UNTRACED: Final = _Untraced()
