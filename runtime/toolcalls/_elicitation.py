"""The way of a question that a running tool, or its MCP server, asks the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .. import events
from ..agent._tool import Answer, Question
from ..human._asks import Ask
from ..session._journal import Request
from ..stream._requests import answer_of, keep, keep_answer, seconds_left, tell_consumers
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
    resumed = Resumed(message.call_id)
    settled = _settling(running, message, resumed, running.trace.asked())
    before = _asked_before(running, question)
    answer = None if before is None else answer_of(before)
    if answer is None and not core.interactive:
        answer = Answer("decline", note=_NOBODY)
    if answer is not None:
        running.questions += 1
        if before is not None:  # it was answered while no stream was there
            tell_consumers(core, before.id, answer)
        settled(answer)
        return
    asks = core.shared.asks
    ask = Ask(core, core.root, running, question, settled, None if before is None else before.id)
    resumed.request_id = ask.id
    ask.event = events.ElicitationRequest(
        ask.id,
        question.message,
        question.mode,
        question.schema or {},
        question.url,
        running.tool.name,
        running.tool.server,
        message.call_id,
        **core.tags,
    )
    timeout = core.shared.answer_timeout if question.timeout is None else question.timeout
    if before is None:
        fields = {"call_id": message.call_id, "ordinal": running.questions, "schema": question.schema}
        keep(core, ask, "question", timeout, **fields)
    else:
        timeout = seconds_left(before)
        keep_answer(core, ask, before)
    running.questions += 1
    asks.register(ask, timeout)
    turn.note_under_way()
    message.dropped.on_cancel(lambda: asks.withdraw(ask, _DROPPED))
    if asks.is_pending(ask):
        core.shared.bridge.send(ask.event, to=core.events, cancel=core.token)
        yield from running.fire("on_user_input", reason=question.message)


def _asked_before(running: Running, question: Question) -> Request | None:
    """The request that an earlier stream has made for this question, of a call that had come so far before.

    A tool asks the same again from its first question on. A server that is given back where it was asks from there on.
    """
    for request in running.state.requests:
        if request.kind == "question" and request.ordinal >= running.questions:
            same = request.event.get("message") == question.message and request.schema == question.schema
            if same:
                running.questions = request.ordinal
            if same or not running.tool.server:
                return request if same else None
    return None


def _settling(
    running: Running, message: Asked, resumed: Resumed, traced: Callable[[str], None]
) -> Callable[[Answer], None]:
    """The function that takes the answer: the tool's timeout goes on, and the answer's note is kept for the model."""
    goes_on = posting(running.turn.inbox, resumed)

    def settled(answer: Answer) -> None:
        resumed.answer = answer
        goes_on()
        traced(answer.action)
        told = message.dropped.cancelled or answer.note in running.notes  # it took the question back; said twice
        if answer.note and not told:
            running.notes.append(answer.note)
        message.settled(answer)

    return settled
