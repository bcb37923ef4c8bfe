"""Whether a tool call is made: permissions decide first, then hooks, then the user."""

from __future__ import annotations

import functools
import time
from typing import Final

from .. import events
from ..agent._hooks import nothing
from ..agent._tool import Tool
from ..execution._calls import Finished
from ..human._asks import Ask
from ..permissions import Decision, Rule, Verdict, decide
from ..session._journal import Request
from ..session._message import ToolCall
from ..stream._requests import decision_of, keep, keep_answer, seconds_left, tell, tell_consumers
from ._messages import Decided
from ._running import Approval, Running, Steps

_LONG: Final = 10_000  # characters of arguments


def approval(running: Running) -> Steps[Decision]:
    """Decide whether the call is made, and why. The first of these that applies decides:

    1. a ``deny`` pattern at any level, also where everything is approved;
    2. what was decided already, when an earlier stream was parked or its process died;
    3. ``approve_all`` at any level;
    4. the first level with an ``allow`` or ``ask`` pattern for the call: ``allow`` makes it, ``ask`` goes on with 6;
    5. that the tool is read-only;
    6. a hook at ``permission_request``, unless the user has been asked already;
    7. the user;
    8. where nobody is there to be asked, the call is refused.
    """
    core, tool = running.turn.core, running.tool

    verdict, rule = yield from _permitted(running)  # 1, and 3 to 5
    if verdict == "deny":
        return Decision(False, reason=f"it is denied by the permission {str(rule)!r}")
    asked, earlier = _earlier(running)  # 2
    if earlier is not None:
        if asked is not None and running.state.phase != "began":  # it was answered while no stream was there
            tell_consumers(core, asked.id, earlier)
        remember(running, earlier)
        return earlier
    if verdict == "allow":
        return _allowed(_why(rule, tool))

    hooks = nothing() if asked is not None else (yield from running.fire("permission_request"))  # 6
    if hooks.allow:
        return Decision(True, reason=hooks.reason or "a permission_request hook allows it")
    if hooks.block:
        return Decision(False, reason=hooks.reason or "a permission_request hook denies it")

    if core.interactive:  # 7
        began = time.monotonic()
        ask = _asked(running, asked)
        told = running.fire("on_user_input", reason=f"approval of {tool.name}")
        decision: Decision = yield Approval(ask, told)
        running.waited = time.monotonic() - began
        tell(core, ask.id, decision)
        remember(running, decision)
        return decision

    note = "it needs the user's approval, and nobody is there to be asked: this run is not interactive"  # 8
    return Decision(False, reason=note)


def is_made_anyway(running: Running) -> bool:
    """Whether nobody has a say in the call but the permissions, which allow it: no hook before it, nor the user."""
    core, tool = running.turn.core, running.tool
    if not core.log.outbox.is_open or tool.read_only or core.hooks.at("pre_tool_use", tool.name):
        return False
    if len(running.call.arguments) >= _LONG:  # that is for a helper to find out
        return False
    verdict, _ = decide(core.permissions, tool.names, running.ready.shown, owner=tool.owner, read_only=False)
    return verdict == "allow"


def _permitted(running: Running) -> Steps[tuple[Verdict, Rule | None]]:
    """The verdict of the permissions, and the rule that decided."""
    core, tool = running.turn.core, running.tool
    said = core.permissions, tool.names, running.ready.shown
    judge = functools.partial(decide, *said, owner=tool.owner, read_only=tool.read_only)
    if len(running.call.arguments) < _LONG and not running.changed:
        return judge()
    judged: Finished = yield core.calls.start("permissions", running.turn.inbox, judge)  # patterns see all of it
    verdict: tuple[Verdict, Rule | None] = judged.result()
    return verdict


def _earlier(running: Running) -> tuple[Request | None, Decision | None]:
    """The request that an earlier stream has made for the approval of the call, and what was decided by then."""
    state = running.state
    if state.phase == "open" and not state.requests:  # as where there was no earlier stream
        return None, None
    asked = next((each for each in reversed(state.requests) if each.kind == "approval"), None)
    if state.phase == "began":
        return asked, Decision(True, reason="it had been approved")
    return asked, None if asked is None else decision_of(asked)


def _asked(running: Running, before: Request | None) -> Ask[ToolCall, Decision]:
    """The question to the consumer of the stream, under the id that it had ``before``. Its answer is awaited before
    anyone can see it.
    """
    core, inbox = running.turn.core, running.turn.inbox

    def settled(decision: Decision) -> None:
        inbox.try_send(Decided(ask, decision))

    ask = running.ask = Ask(core, core.root, running, running.call, settled, None if before is None else before.id)
    tool = running.tool
    ask.event = events.ToolCallConfirmation(
        running.call, ask.id, running.ready.shown, tool.destructive, tool.server, tool.open_world, **core.tags
    )
    timeout = core.shared.answer_timeout
    if before is None:
        keep(core, ask, "approval", timeout, call_id=running.call.id, arguments=running.ready.text)
    else:
        timeout = seconds_left(before)
        keep_answer(core, ask, before)
    core.shared.confirmations.register(ask, timeout)
    running.turn.note_under_way()
    core.shared.bridge.send(ask.event, to=core.events, cancel=core.token)
    return ask


def remember(running: Running, decision: Decision) -> None:
    """What is approved for longer than once holds for the whole conversation: for the session of the outermost stream,
    whose consumer has said so. A tool is that of its owner.
    """
    log, tool = running.turn.core.root.log, running.tool
    if decision.approved and decision.scope == "tool":
        log.allow(Rule.exactly(tool.names[-1], tool.owner))
    elif decision.approved and decision.scope == "session":
        log.allow(None)
    running.ask = None


def remember_late(running: Running) -> None:
    """The same, where the user has said so, even if too late for the call."""
    decision = None if running.ask is None else running.ask.answer
    if decision is not None:
        remember(running, decision)


@functools.lru_cache(64)  # most calls are made for the same few reasons
def _allowed(reason: str) -> Decision:
    return Decision(True, reason=reason)


def _why(rule: Rule | None, tool: Tool) -> str:
    """Why a call is made without asking."""
    if rule is not None:
        return f"it is allowed by the permission {str(rule)!r}"
    return "it only reads" if tool.read_only else "everything is approved"
