"""The limits of a stream. When a limit is reached, the stream asks for more, or ends with a reason of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from channels import Cancelled, CancelToken, Channel

from .. import events
from .._errors import NotParkable
from ..agent._tool import Answer, Question
from ..human._asks import Ask
from ..session._journal import Request
from ..stream._core import StreamCore
from ..stream._end_reason import StopRun
from ..stream._parking import parked
from ..stream._requests import answer_of, keep, keep_answer, seconds_left, tell, tell_consumers

#: The schema of the answer to `MaxIterationsReached`.
MORE: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"iterations": {"type": "integer", "minimum": 1}},
    "required": ["iterations"],
}


def ask_for_more(core: StreamCore, limit: int, before: Request | None = None) -> int:
    """Ask for more turns, when the stream has taken ``limit`` turns and needs another. Returns their number, 1 or more.

    ``before`` is the request of an earlier stream, which has asked already. Where nobody answers, says so, or can be
    asked, the stream ends (`StopRun`).
    """
    reason = f"the agent has used up its turns ({limit})"
    if before is None:
        core.fire("on_max_iterations", reason=reason)
    answer = Answer("decline")
    earlier = None if before is None else answer_of(before)
    if before is not None and earlier is not None:
        tell_consumers(core, before.id, earlier)
        answer = earlier
    elif core.interactive:
        answers: Channel[Answer] = Channel(1, name="more turns")

        def settled(answer: Answer) -> None:
            answers.close(final=answer)

        asked = None if before is None else before.id
        ask = Ask(core, core.root, None, Question("How many more turns?", MORE), settled, asked)
        ask.event = events.MaxIterationsReached(limit, ask.id, **core.tags)
        timeout = core.shared.answer_timeout
        if before is None:
            keep(core, ask, "turns", timeout, schema=MORE)
        else:
            timeout = seconds_left(before)
            keep_answer(core, ask, before)
        core.shared.asks.register(ask, timeout)
        if core.parking is not None:
            core.parking.busy = ()  # before the event is seen
        core.emit(ask.event)
        core.fire("on_user_input", reason=reason)
        answer = _awaited(core, answers)
        tell(core, ask.id, answer)
    else:
        core.emit(events.MaxIterationsReached(limit, **core.tags))
    if answer.accepted:
        return int(answer.content["iterations"])
    raise StopRun("max_iterations", "max_iterations", reason, note=f"Stopped: {reason}.")


def _awaited(core: StreamCore, answers: Channel[Answer]) -> Answer:
    """The answer; where the stream is to be parked meanwhile, it ends (`StopRun`)."""
    parking = core.parking
    if parking is None:
        return answers.recv(cancel=core.token)
    either = CancelToken(core.token)
    try:
        with parking.wanted.on_cancel(either.canceller("parked")):
            while True:
                try:
                    return answers.recv(parking.after, either)
                except TimeoutError:
                    with contextlib.suppress(NotParkable):
                        parking.park()
    except Cancelled:
        if core.token.cancelled:
            raise Cancelled(core.token.cause) from None
        raise parked() from None
    finally:
        parking.at_the_model()


def check_budget(core: StreamCore) -> None:
    """End the stream (`StopRun`) if it has used up its budget, or if its cost cannot be known."""
    if not core.spending.bounded:
        return
    model = core.agent.model.id
    if core.spending.counts_cost and core.shared.prices.find(model) is None:
        raise StopRun(
            "error",
            "model_error",
            f"there is a budget in dollars, but no price for {model}: give Runtime(prices={{{model!r}: Price(...)}})",
        )
    exceeded = core.spending.exceeded()
    if exceeded is not None:
        raise over_budget(core, *exceeded)


def over_budget(core: StreamCore, kind: str, limit: float, used: float) -> StopRun:
    """Tell the consumer that a budget is used up. Returns the `StopRun` that ends the stream."""
    core.emit(events.BudgetExceeded(kind, limit, used, **core.tags))
    units = {"tokens": "tokens", "cost": "dollars", "time": "seconds"}
    reason = f"the budget of {limit:g} {units[kind]} is used up"
    return StopRun("budget_exceeded", "budget_exceeded", reason, note=f"Stopped: {reason}.")


def loop_detected(core: StreamCore, names: Sequence[str]) -> StopRun:
    """The `StopRun` for tools that were called once too often with the same arguments and results."""
    times = core.agent.max_repeated_calls
    verb = "was" if len(names) == 1 else "were"
    reason = f"{', '.join(names)} {verb} called {times} times in a row with the same arguments and the same result"
    return StopRun("loop_detected", "loop_detected", reason, note=f"Stopped: {reason}.")
