"""The loop of an agent: turn after turn, until the model has no more tool calls to make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from channels import Cancelled
from channels._lazy import lazy

from .. import events
from .._errors import describe
from ..agent._agent import Agent
from ..agent._instructions import instructions_text
from ..agent._output import InvalidOutput
from ..agent._tool import Tool
from ..execution._calls import is_coroutine_function
from ..execution._driver import Steps
from ..execution._errands import call_here
from ..human._mailbox import Mail
from ..session._journal import CallState, Unfinished
from ..session._message import Message
from ..stream._core import EndHooks, StreamCore
from ..stream._end_reason import StopRun
from ..stream._ending import time_is_up
from ..stream._private_events import UserMailed
from ..team import _delegation
from ..toolcalls._dispatch import dispatch
from ._compact import OVERFLOWS, after_overflow, conversation
from ._limits import ask_for_more, check_budget, loop_detected, over_budget
from ._model_call import take_turn
from ._repeats import Repeats
from ._toolsets import AgentTools

if TYPE_CHECKING:
    import textwrap
else:
    textwrap = lazy("textwrap")

TITLE: Final = 60  # characters
STOPS_BLOCKED: Final = 8  # times that ``stop`` hooks may make the agent go on: a condition that never holds ends too


def run(core: StreamCore, cleanup: EndHooks) -> Steps[None]:
    """Run the agent on its session until it has nothing more to do. Raises `StopRun` and `Cancelled`."""
    try:
        core.emit(events.StreamStarted(**core.tags))
        if len(core.roster.names) > 1 and core.parent is None:
            core.emit(events.TeamInfo(core.roster.names, **core.tags))
        core.emit(events.AgentInfo(core.agent.model.id, core.agent.description, **core.tags))
        team = _delegation.tools(core)
        left = core.unfinished
        tools = AgentTools(core)
        run = _Run(core, cleanup, tools, team, _begin(core, tools, team))
        limit = core.agent.max_iterations
        asked = next((each for each in left.requests if each.kind == "turns"), None) if left is not None else None
        if asked is not None:
            limit = ask_for_more(core, limit, asked)
        elif left is not None and _is_over(core, left):
            return
        check_budget(core)
        while (yield from run.turn()):
            if run.iteration >= limit:
                limit += ask_for_more(core, limit)
    except Cancelled as error:
        if not core.out_of_time:
            raise
        time_is_up(core, cleanup)
        seconds = core.spending.seconds or 0.0
        raise over_budget(core, "time", seconds, seconds) from error


class _Run:
    """The turns of one stream, and the state that is passed from one turn to the next."""

    def __init__(
        self, core: StreamCore, cleanup: EndHooks, tools: AgentTools, team: Sequence[Tool], context: list[str]
    ) -> None:
        self.iteration = 0
        self._core = core
        self._cleanup = cleanup
        self._tools = tools
        self._team = team
        self._context = context  # what hooks want the model to know, as long as the stream lasts
        self._next: list[str] = []  # and for one turn
        self._repeats = Repeats(core.agent.max_repeated_calls)
        self._stops_blocked = 0
        self._successor: Agent | None = None  # whom the conversation was handed to
        self._asked_again = False
        self._left = core.unfinished.calls if core.unfinished is not None else {}

    def turn(self) -> Steps[bool]:
        """Call the model and make its tool calls. Returns whether there is more to do. The ``turn_end`` hooks run
        however the turn ends.
        """
        core = self._core
        self._between()
        self.iteration += 1
        core.turn = self.iteration
        reason = "error"
        self._cleanup.owe("turn_end", iteration=self.iteration)
        try:
            started = core.fire("turn_start", iteration=self.iteration)
            goes_on = yield from self._turn([*self._next, started.context])
            reason = "continue" if goes_on else "normal"
            return goes_on
        except StopRun as stop:
            reason = stop.reason
            raise
        except Cancelled:
            reason = "budget_exceeded" if core.out_of_time else "canceled"
            raise
        finally:
            self._cleanup.due("turn_end", reason)
            if core.stopping.cancelled:  # meanwhile: the hooks outlive that
                raise Cancelled(core.stopping.cause)

    def _between(self) -> None:
        """Before a turn: pause if the user wants to, and put another agent in charge after a hand-off."""
        core = self._core
        if core.mailbox.paused:
            core.emit(events.Paused(**core.tags))
            core.mailbox.wait(core.token)
        successor, self._successor = self._successor, None
        if successor is not None:
            before, after = core.agent.name, successor.name
            core.emit(events.AgentSwitching(before, after, **core.tags))
            core.fire("on_agent_switch", from_agent=before, to_agent=after)
            core.act(successor)
            self._repeats = Repeats(successor.max_repeated_calls)
            core.emit(events.AgentInfo(successor.model.id, successor.description, **core.tags))
            self._team = _delegation.tools(core)
            core.emit(events.ToolsetInfo(tuple(self._tools.now(self._team)), **core.tags))
            check_budget(core)

    def _turn(self, context: list[str]) -> Steps[bool]:
        core = self._core
        self._next = []
        unmade, self._left = self._left, {}
        if unmade:  # an earlier stream was parked, or its process died, in the middle of these calls
            reply = next(each for each in reversed(core.session._messages) if each.tool_calls)
            return (yield from self._calls(reply, self._tools.now(self._team), unmade))
        self._hear(core.mailbox.steering())
        model = core.agent.model.id
        tools = self._tools.now(self._team)
        blocked = core.fire("before_llm_call", model=model, iteration=self.iteration)
        core.stop_if_blocked("before_llm_call", blocked)
        definitions = [tool.definition for tool in tools.values()]
        system = yield from _system(core, [*self._context, *self._tools.notes, *context])
        shown, before = conversation(core, system, definitions), len(core.session._messages)
        for left in range(OVERFLOWS, -1, -1):
            try:
                reply = yield from take_turn(core, shown, definitions)
                break
            except StopRun as failure:
                less = after_overflow(core, failure, before, shown, definitions) if left else None
                if less is None:
                    raise
                shown = less
        core.fire("after_llm_call", model=model, iteration=self.iteration, response=reply.content, usage=reply.usage)
        if reply.tool_calls:
            return (yield from self._calls(reply, tools))
        if not (
            (yield from self._is_asked_again(reply)) or self._stop_is_blocked(reply) or self._hear(core.next_mail())
        ):
            return False
        check_budget(core)
        return True

    def _calls(
        self,
        reply: Message,
        tools: Mapping[str, Tool],
        left: Mapping[str, CallState] | None = None,
    ) -> Steps[bool]:
        """Make the calls of the reply, or those that an earlier stream has ``left``."""
        core = self._core
        check_budget(core)  # calls may have effects, and nobody would see their results
        made = yield from dispatch(core, reply, tools, left)
        self._next, self._successor = made.contexts, made.successor
        results = core.session._messages[-len(reply.tool_calls) :]
        repeated = self._repeats.look(reply.tool_calls, made.compared, results, tools)
        if repeated:
            raise loop_detected(core, repeated)
        check_budget(core)
        return True

    def _hear(self, messages: Sequence[Mail]) -> bool:
        """Record the user's steering messages and run their hooks. Returns whether there were any."""
        core = self._core
        for said in messages:
            core.record(Message("user", said.text), said.id)
            if core.recorded:
                core.emit(UserMailed(said.point, said.text, **core.tags))
        for said in messages:
            core.emit(events.UserMessage(said.text, **core.tags))
            submitted = core.fire(said.point, prompt=said.text)
            core.stop_if_blocked(said.point, submitted)
            if submitted.context:
                self._context.append(submitted.context)
        return bool(messages)

    def _is_asked_again(self, reply: Message) -> Steps[bool]:
        """Whether the model is asked again, because its reply does not fit the output type, for the first time in a
        row."""
        core = self._core
        if core.output is None:
            core.said = None
            return False
        try:
            core.said = yield from call_here(core.calls, "output type", core.output.read, reply.content)
            self._asked_again = False
            return False
        except InvalidOutput as error:
            if self._asked_again:
                text = f"the reply is not of the output type, nor was the one before: {error}"
                raise StopRun("error", "invalid_output", text) from error
            self._asked_again = True
            core.emit(
                events.Warning(
                    f"the reply is not of the output type, so the model is asked again: {error}", **core.tags
                )
            )
            core.record(Message("user", f"That cannot be used: {error}. {core.output.instructions}"))
            return True

    def _stop_is_blocked(self, reply: Message) -> bool:
        """Whether a ``stop`` hook makes the agent go on. The hook's reason is then the next message to the agent."""
        core = self._core
        answer = core.fire("stop", response=reply.content, stop_hook_active=self._stops_blocked > 0)
        if not answer.block:
            return False
        if self._stops_blocked == STOPS_BLOCKED:
            core.emit(
                events.Warning(
                    f"the stop hooks have made the agent go on {STOPS_BLOCKED} times, and no more", **core.tags
                )
            )
            return False
        self._stops_blocked += 1
        reason = answer.reason or "You are not done yet: go on."
        core.emit(events.HookBlocked("stop", reason, **core.tags))
        core.record(Message("user", reason))
        return True


def _is_over(core: StreamCore, left: Unfinished) -> bool:
    """Whether an earlier stream has left nothing to do, and the user has said nothing since: its process died between
    its last reply and its end, or it had come to that.
    """
    last = core.session.messages[-1] if core.session.messages else None
    return not (left.calls or left.mail) and last is not None and last.ends_turn


def _begin(core: StreamCore, tools: AgentTools, team: Sequence[Tool]) -> list[str]:
    """Run the first hooks and start the toolsets. Returns the context that the hooks have for the model."""
    started = core.fire("session_start")
    core.stop_if_blocked("session_start", started)
    core.emit(events.ToolsetInfo(tuple(tools.now(team)), **core.tags))
    extra = [started.context]
    last = core.session._messages[-1] if core.session._messages else None
    if last is not None and last.role == "user":
        core.emit(events.UserMessage(last.content, **core.tags))
        if core.shared.titles and core is core.root:
            _give_title(core)
        submitted = core.fire("user_prompt_submit", prompt=last.content)
        core.stop_if_blocked("user_prompt_submit", submitted)
        extra.append(submitted.context)
    return [text for text in extra if text]


def _system(core: StreamCore, extra: Sequence[str]) -> Steps[str]:
    """The system message: the instructions, and the context of hooks."""
    wanted = "" if core.output is None else core.output.instructions
    instructions = yield from _instructions(core)
    return "\n\n".join(text for text in (instructions, *extra, wanted) if text)


def _instructions(core: StreamCore) -> Steps[str]:
    """The agent's instructions. If they are a function, it is called."""
    given = core.agent._instructions
    if given.function is None:
        return given.text
    try:
        what = f"instructions of {core.agent.name}"
        if is_coroutine_function(given.function):
            made = core.calls.run(what, given.function, core.session)
        else:
            made = yield from call_here(core.calls, what, given.function, core.session)
        return instructions_text(made)
    except BaseException as error:
        if core.token.cancelled:
            raise Cancelled(core.token.cause) from error
        text = f"the instructions of agent {core.agent.name!r} could not be made: {describe(error)}"
        raise StopRun("error", "instructions_failed", text) from error


def _give_title(core: StreamCore) -> None:
    """Give the session the user's first words as its title, if it has none."""
    if core.session.title:
        return
    first = next((each.content for each in core.session._messages if each.role == "user" and each.content.strip()), "")
    if first:
        title = textwrap.shorten(first, TITLE, placeholder=" ...")
        core.log.name(title)
        core.emit(events.SessionTitle(title, **core.tags))
