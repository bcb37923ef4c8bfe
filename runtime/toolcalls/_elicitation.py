"""A question that a running tool, or its MCP server, has for the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .. import events
from ..agent._tool import Answer
from ..human._asks import Ask
from ._messages import Asked, Resumed, posting
from ._running import OVER, Running, Steps, Turn

_DROPPED: Final = "the call that asked does not wait for the answer any more"
_NOBODY: Final = "the question was declined: nobody is there to be asked, this run is not interactive"


def elicitation(turn: Turn, message: Asked) -> Steps[None]:
    """Send the question to the stream that owns the call, and tell the hooks. Its waiter is registered before anyone
    can see it.
    """
    core, question = turn.core, message.question
    running = turn.running.get(message.call_id)
    if running is None or running.task is None:  # a thread that the call left behind
        message.settled(Answer("cancel", note=OVER))
        return

    running.pause()
    settled = _settling(running, message)
    if not core.interactive:
        settled(Answer("decline", note=_NOBODY))
        return
    asks = core.shared.asks
    ask = Ask(core, core.root, running, question, settled)
    ask.event = events.ElicitationRequest(
        ask.id,
        question.message,
        question.mode,
        question.schema or {},
        question.url,
        running.tool.name,
        running.tool.server,
        **core.tags,
    )
    asks.register(ask, core.shared.answer_timeout if question.timeout is None else question.timeout)
    message.dropped.on_cancel(lambda: asks.withdraw(ask, _DROPPED))
    if asks.is_pending(ask):
        core.shared.bridge.send(ask.event, to=core.events, cancel=core.token)
        yield from running.fire("on_user_input", reason=question.message)


def _settling(running: Running, message: Asked) -> Callable[[Answer], None]:
    """What takes the answer: the clock of the tool goes on, and a note that comes with it is for the model too."""
    resumed = posting(running.turn.inbox, Resumed(message.call_id))

    def settled(answer: Answer) -> None:
        resumed()
        told = message.dropped.cancelled or answer.note in running.notes  # it took the question back; said twice
        if answer.note and not told:
            running.notes.append(answer.note)
        message.settled(answer)

    return settled
