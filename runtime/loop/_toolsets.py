"""The tools that an agent has, turn by turn: its own, those of its toolsets, and those for its team."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from channels import Cancelled, CancelToken, Channel, ChannelClosed, WouldBlock

from .. import events
from .._errors import describe
from ..agent._tool import Answer, Question, Tool, ToolSet
from ..agent._tool_context import waiting_stream
from ..execution._calls import INBOX, Finished
from ..human._asks import Ask
from ..stream._core import StreamCore
from ..stream._end_reason import StopRun
from ..stream._requests import settled_event


class AgentTools:
    """The tools of the agents that act in a stream, one after the other. Used by its worker."""

    def __init__(self, core: StreamCore) -> None:
        self._core = core
        self.notes: list[str] = []  # for the model
        self._missing: set[int] = set()  # toolsets that the agent goes on without

    def now(self, team: Sequence[Tool]) -> dict[str, Tool]:
        """The tools that the agent has now, by name: its own, those of its toolsets, which are started with the first
        stream that needs them, and those for its ``team``, which are made once for an agent that acts, and not every
        turn.
        """
        core = self._core
        tools: dict[str, Tool] = {tool.name: tool for tool in core.agent.made_tools}
        back = False
        for toolset in core.agent.toolsets:
            was_missing = id(toolset) in self._missing
            found = self._found(toolset)
            back = back or (was_missing and found is not None)
            for tool in found or ():
                if tool.name in tools:
                    problem = f"toolset {_name(toolset)}: there is another tool named {tool.name!r}"
                    if tool.server:
                        problem += "; MCPToolSet(..., prefix=) tells them apart"
                    raise StopRun("error", "tool_failed", problem)
                tools[tool.name] = tool
        for tool in team:
            if tool.name in tools:
                problem = f"the agent has a tool named {tool.name!r}, which is the name of a built-in tool"
                raise StopRun("error", "tool_failed", problem)
            tools[tool.name] = tool
        if back:
            core.emit(events.ToolsetInfo(tuple(tools), **core.tags))
        return tools

    def _found(self, toolset: ToolSet) -> Sequence[Tool] | None:
        """The tools of a toolset. None where it cannot be used, and the agent goes on without it: the user is told so
        when that begins, and when it is over.
        """
        core, name = self._core, _name(toolset)
        missing = id(toolset) in self._missing
        starts = not missing and not core.shared.toolsets.is_started(toolset)
        if starts:
            core.emit(events.McpInitStarted(name, **core.tags))
        try:
            found = self._asked(name, toolset)
        except BaseException as error:
            if core.token.cancelled:
                raise Cancelled(core.token.cause) from error
            problem = f"toolset {name} cannot be used: {describe(error)}"
            # Nobody is there who could sign in: the agent does what it can without, and says so.
            waits_for_user = getattr(error, "needs_user", False) and not core.interactive
            required = getattr(toolset, "required", True) and not waits_for_user
            if required or not isinstance(error, Exception):
                raise StopRun("error", "tool_failed", problem) from error
            if not missing:
                self._missing.add(id(toolset))
                if waits_for_user:
                    self.notes.append(f"The tools of {name} are not there: {describe(error)}")
                core.emit(events.Warning(f"{problem}; {core.agent.name} goes on without it", **core.tags))
            return None
        self._missing.discard(id(toolset))
        if starts or missing:
            core.emit(events.McpInitFinished(name, **core.tags))
        return found

    def _asked(self, name: str, toolset: ToolSet) -> Sequence[Tool]:
        """Ask a toolset for its tools. Meanwhile it may ask the user, whom a server wants to sign in."""
        core = self._core
        inbox: Channel[Any] = Channel(INBOX, name=f"toolset {name}")
        stream = _WaitingStream(core, inbox)

        def tools() -> Sequence[Tool]:
            waiting_stream.set(stream)
            return core.shared.toolsets.tools(toolset)

        core.calls.start(f"toolset {name}", inbox, tools)
        try:
            while not isinstance(message := inbox.recv(cancel=core.token), Finished):
                if isinstance(message, events.Event):
                    core.emit(message)
                else:
                    self._ask(stream, name, inbox, *message)
            found: Sequence[Tool] = message.result()
            return found
        finally:
            inbox.close()
            core.shared.asks.withdraw(stream, "the stream does not wait for these tools any more")

    def _ask(
        self,
        stream: _WaitingStream,
        name: str,
        inbox: Channel[Any],
        question: Question,
        settled: Callable[[Answer], object],
        dropped: Any,
    ) -> None:
        """Send the question to the consumer. Its waiter is registered before anyone can see it."""
        core = self._core
        if not core.interactive:
            settled(Answer("decline", note="nobody is there to be asked, this run is not interactive"))
            return
        asks = core.shared.asks

        def told(answer: Answer) -> None:
            if core.shared.tells_settled:
                with contextlib.suppress(ChannelClosed, WouldBlock):  # the tools are not waited for any more
                    inbox.try_send(settled_event(ask.id, answer, **core.tags))
            settled(answer)

        ask = Ask(core, core.root, stream, question, told)
        said = question.message, question.mode, question.schema or {}, question.url
        ask.event = events.ElicitationRequest(ask.id, *said, server=name, **core.tags)
        asks.register(ask, core.shared.answer_timeout if question.timeout is None else question.timeout)
        dropped.on_cancel(lambda: asks.withdraw(ask, "the question is over"))
        if asks.is_pending(ask):
            core.shared.bridge.send(ask.event, to=core.events, cancel=core.token)
            core.fire("on_user_input", reason=question.message)


class _WaitingStream:
    """`Asking`, for a toolset whose tools the stream waits for."""

    def __init__(self, core: StreamCore, inbox: Channel[Any]) -> None:
        self.session_id = core.session.id
        self.agent_name = core.agent.name
        self.cancel = core.token
        self._inbox = inbox

    def elicit(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        *,
        url: str = "",
        timeout: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Answer:
        question = Question(message, schema, "url" if url else "form", url, timeout)
        answers: Channel[Answer] = Channel(1, name="answer")
        either = CancelToken(self.cancel)
        dropped = CancelToken()
        self._post((question, lambda answer: answers.close(final=answer), dropped))
        with contextlib.nullcontext() if cancel is None else cancel.on_cancel(lambda: either.cancel(cancel.cause)):
            try:
                return answers.recv(cancel=either)
            except Cancelled:
                dropped.cancel()
                raise

    def tell(self, event: events.Event) -> None:
        self._post(event)

    def _post(self, message: object) -> None:
        try:
            self._inbox.try_send(message)
        except ChannelClosed:
            raise Cancelled(self.cancel.cause or "the stream has ended") from None


def _name(toolset: ToolSet) -> str:
    return getattr(toolset, "name", None) or type(toolset).__name__
