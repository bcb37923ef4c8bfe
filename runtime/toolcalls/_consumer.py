"""Tools that run in the consumer's thread, while it iterates: ``@tool(on="consumer")``.

The call is sent to the consumer like an event, after all events before it. Iterating over the stream,
`EventStream.recv` and `Runtime.run` make the call and go on. `channels.select` and `merge` do not know streams, so they
deliver the `ConsumerCall`, and the consumer calls its `run`. The call is made once, by the first thread that does so,
and not at all once its stream is to end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any, NoReturn

from channels import Cancelled, CancelToken, Channel

from ..agent._tool import Tool
from ..execution._calls import Call
from ..session._journal import CallState
from ..session._message import ToolCall
from ..stream._core import StreamCore
from ..stream._private_events import ConsumerCall
from ._context import StreamContext
from ._results import run_tool


class ConsumerContext(StreamContext):
    """The `ToolContext` of a call that runs in the consumer's thread, which cannot answer questions meanwhile."""

    def elicit(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError("a tool in the consumer's thread asks the user itself: nobody else would see the question")

    async def aelicit(self, *args: Any, **kwargs: Any) -> NoReturn:
        self.elicit()

    def run_agent(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError("a tool in the consumer's thread cannot run an agent: nobody would take its events")

    async def arun_agent(self, *args: Any, **kwargs: Any) -> NoReturn:
        self.run_agent()


def consumer_call(
    core: StreamCore,
    made: ToolCall,
    tool: Tool,
    values: Mapping[str, Any],
    token: CancelToken,
    inbox: Channel[Any],
    state: CallState,
    begun: Callable[[], None],
    within: Context,
) -> tuple[ConsumerCall, Call]:
    """A call to be sent to the consumer, and the `Call` that its last message to ``inbox`` will be about.

    ``begun`` is called in the consumer's thread when it begins. The tool runs in a copy of ``within``.
    """
    context = ConsumerContext(core, made, inbox, token, state, set())
    call = Call(f"tool {tool.name} in the consumer's thread", inbox)

    def work() -> None:
        if core.token.cancelled:
            return
        call.thread = threading.current_thread()
        begun()
        value, error = None, None
        try:
            value = within.copy().run(run_tool, tool, values, context)
        except BaseException as caught:
            error = caught
            if not isinstance(caught, (Exception, Cancelled)):  # the consumer's own, as if it had not iterated
                raise
        finally:
            within.copy().run(call.finish, value, error)  # which may log

    return ConsumerCall(made, [work], **core.tags), call
