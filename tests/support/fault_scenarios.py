"""What the fault injection runs. A new feature joins by adding a scenario here."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from channels import Cancelled, CancelToken, ChannelClosed
from runtime import (
    Agent,
    Answer,
    Budget,
    Compaction,
    Decision,
    FinishDelta,
    Hook,
    HookInput,
    HookResult,
    Image,
    ModelError,
    NotRunning,
    ReasoningDelta,
    RunError,
    Session,
    Tool,
    ToolCallDelta,
    ToolContext,
    ToolResult,
    UsageDelta,
    tool,
)
from runtime.models import Fallback, IdleTimeout, Retry
from support.faults import LONG, Outside, Point, Scenario
from support.scripted import AsyncScripted, Scripted, call, say

OVERFLOW = ModelError("context_overflow", "too long")
FORM = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


# -- parts -------------------------------------------------------------------------------------------------------------


@tool(read_only=True)
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@tool(read_only=True)
async def add_async(a: int, b: int) -> int:
    """Adds, on the loop."""
    return a + b


@tool(read_only=True)
def broken() -> str:
    """Raises."""
    raise LookupError("broken")


@tool(read_only=True, parallel=False)
def alone() -> str:
    """Must not run beside others."""
    return "alone"


@tool(read_only=True)
def ask(context: ToolContext) -> str:
    """Asks."""
    return context.elicit("How many?", FORM).action


@tool(read_only=True)
async def ask_async(context: ToolContext) -> str:
    """Asks, on the loop."""
    return (await context.aelicit("How many?", FORM)).action


@tool(read_only=True)
def ask_briefly(context: ToolContext) -> str:
    """Asks, and soon takes it back."""
    brief = CancelToken(timeout=0.003)
    try:
        return context.elicit("How many?", FORM, cancel=brief).action
    except Cancelled:
        if not brief.cancelled:
            raise
        return "gave up"


@tool(read_only=True)
async def ask_briefly_async(context: ToolContext) -> str:
    """The same, on the loop."""
    try:
        return (await asyncio.wait_for(context.aelicit("How many?", FORM), 0.003)).action
    except TimeoutError:
        return "gave up"


@tool
def write(text: str = "") -> str:
    """Has to be approved."""
    return f"wrote {text}"


@tool(destructive=True, parallel=False)
async def wipe() -> str:
    """Has to be approved, and runs alone."""
    return "wiped"


@tool(read_only=True, timeout=LONG, result_limit=10)
def report(context: ToolContext) -> str:
    """Tells how far it is, and asks, on a clock; what it comes to is too long."""
    context.progress("begun")
    context.progress("half", 1, 2)
    return context.elicit("How many?", FORM).action * 10


@tool(read_only=True)
async def report_async(context: ToolContext) -> ToolResult:
    """Tells how far it is, on the loop; comes to an image."""
    context.progress(progress=1)
    return ToolResult("[image]", images=(Image(b"x"),))


@tool(read_only=True, on="consumer")
def visit(context: ToolContext) -> str:
    """Runs in the consumer's thread."""
    context.progress("there")
    return "visited"


class Shelf:
    """A toolset."""

    def start(self) -> None:
        """Nothing to start."""

    def tools(self) -> Sequence[Tool]:
        """One."""
        return [add]

    def stop(self) -> None:
        """Nothing to stop."""


class Iterating(AsyncScripted):
    """An asynchronous model whose ``stream`` is a plain function."""

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        return super().stream(messages, tools, cancel=cancel)


def note(given: HookInput) -> HookResult:
    """A hook that adds something."""
    return HookResult(context=f"at {given.hook_event_name}")


def place(given: HookInput) -> HookResult:
    """The same, for one turn."""
    return HookResult(context=f"turn {given.iteration}")


def look_on(given: HookInput) -> None:
    """A hook that changes nothing."""


async def look_on_async(given: HookInput) -> None:
    """The same, on the loop."""


async def note_async(given: HookInput) -> None:
    """The same, on the loop."""


def refuse(given: HookInput) -> HookResult:
    """A hook that stops the run."""
    return HookResult(block=True, reason="no")


def adding(name: str = "add", *ids: str) -> list[Any]:
    """A turn that calls ``name``, once for each id."""
    return [call(name, '{"a": 1, "b": 2}', id=each, index=i) for i, each in enumerate(ids or ("1",))]


# -- scenarios ---------------------------------------------------------------------------------------------------------


def plain(outside: Outside) -> Agent:
    """A model that speaks, thinks and counts."""
    return Agent("a", Scripted([ReasoningDelta("hm"), *say("one", "two"), UsageDelta(3, 4), FinishDelta("stop")]))


def tools(outside: Outside) -> Agent:
    """Two turns of tools: several at once, one that raises, one alone, one that is unknown, arguments that are
    wrong.
    """
    first = [*adding("add", "1", "2"), call("broken", id="3", index=2), call("alone", id="4", index=3)]
    second = [*say("again"), call("nothing", id="5"), call("add", "{", id="6", index=1)]
    return Agent("a", Scripted(first, second, say("done")), tools=[add, broken, alone])


def asynchronous(outside: Outside) -> Agent:
    """The same on the loop."""
    first = [*say("x"), *adding("add_async", "1", "2"), call("add", '{"a": 1, "b": 1}', id="3", index=2)]
    return Agent(
        "a",
        AsyncScripted(first, say("done", "and done")),
        tools=[add_async, add],
        hooks={"session_start": [note_async], "session_end": [note_async]},
    )


def iterating(outside: Outside) -> Agent:
    """A model that returns an asynchronous iterator."""
    return Agent("a", Iterating([*say("x"), *adding()], say("done")), tools=[add])


def questions(outside: Outside) -> Agent:
    """Tools that ask, one of them on the loop, at the same time."""
    turn = [call("ask", id="1"), call("ask_async", id="2", index=1), call("ask", id="3", index=2)]
    return Agent("a", Scripted(turn, say("thanks")), tools=[ask, ask_async])


def impatient(outside: Outside) -> Agent:
    """Tools that take their question back, if the answer is not quicker."""
    turn = [call("ask_briefly", id="1"), call("ask_briefly_async", id="2", index=1), call("ask", id="3", index=2)]
    return Agent("a", Scripted(turn, say("thanks")), tools=[ask, ask_briefly, ask_briefly_async])


def hooks(outside: Outside) -> Agent:
    """Hooks at all points, as callables, coroutines and commands."""
    return Agent(
        "a",
        Scripted(say("x")),
        hooks={
            "session_start": [note, note_async, "true"],
            "user_prompt_submit": ["""echo '{"context": "from a command"}'""", note],
            "session_end": [note, ["true"], note_async],
        },
    )


def turn_hooks(outside: Outside) -> Agent:
    """Hooks around turns and model calls; one makes the agent go on."""
    told: list[str] = []

    def once(given: HookInput) -> HookResult | None:
        told.append(given.response)
        return HookResult(block=True, reason="go on") if len(told) == 1 else None

    return Agent(
        "a",
        Scripted([*say("x"), *adding()], say("y"), say("z")),
        tools=[add],
        hooks={
            "turn_start": [place],
            "before_llm_call": [look_on, look_on_async],
            "after_llm_call": [look_on],
            "stop": [once],
            "turn_end": [look_on],
            "session_end": [look_on_async],
        },
    )


def blocked_late(outside: Outside) -> Agent:
    """A hook that stops the run in its second turn."""

    def second(given: HookInput) -> HookResult | None:
        return HookResult(block=True, reason="no") if given.iteration == 2 else None

    return Agent(
        "a",
        Scripted([*say("x"), *adding()], say("never")),
        tools=[add],
        hooks={
            "turn_start": [look_on],
            "before_llm_call": [second],
            "turn_end": [look_on_async],
            "on_error": [look_on],
            "session_end": [look_on],
        },
    )


def blocked(outside: Outside) -> Agent:
    """A hook that stops the run."""
    return Agent(
        "a",
        Scripted(say("never")),
        hooks={
            "user_prompt_submit": [note, refuse],
            "notification": [note],
            "on_error": [note, note_async],
            "session_end": [note],
        },
    )


def busy() -> ModelError:
    """Worth another attempt."""
    return ModelError("overloaded", "busy", retryable=True)


def again(outside: Outside) -> Agent:
    """A model that is asked again, on the loop, in each turn."""
    model = AsyncScripted([busy()], [UsageDelta(1), busy()], [*say("x"), *adding("add_async")], [busy()], say("done"))
    return Agent("a", Retry(model, backoff=lambda attempt: 0), tools=[add_async])


def again_on_a_thread(outside: Outside) -> Agent:
    """The same on a helper, with a deadline."""
    model = Scripted([busy()], [*say("x"), *adding()], [busy()], say("done"))
    return Agent("a", Retry(IdleTimeout(model, LONG), backoff=lambda attempt: 0), tools=[add])


def stand_in(outside: Outside) -> Agent:
    """A model on the loop that fails, and one on a helper that takes over."""
    first = IdleTimeout(AsyncScripted([busy()]), LONG)
    return Agent("a", Fallback(first, Scripted([*say("x"), *adding()], say("done"))), tools=[add])


def toolset(outside: Outside) -> Agent:
    """Tools that have to be started."""
    return Agent("a", Scripted(adding(), say("done")), toolsets=[Shelf()])


def observed(outside: Outside) -> Agent:
    """Observers, and a channel that is often full."""
    return Agent("a", Scripted([*say("x", "y", "z"), call("ask", id="1")], say("done")), tools=[ask])


def narrow(outside: Outside) -> Agent:
    """A channel that is always full."""
    return Agent("a", Scripted([*say("x", "y"), *adding()], say("z")), tools=[add])


def endless(outside: Outside) -> Agent:
    """A model that never has enough."""
    return Agent("a", Scripted(*[adding("add", str(i)) for i in range(3)]), tools=[add], max_iterations=3)


def tool_hooks(outside: Outside) -> Agent:
    """Hooks at every point of tool calls, several at once: changed, blocked, approved by a hook, and by the user."""

    def change(given: HookInput) -> HookResult:
        if given.tool_use_id == "2":
            return HookResult(block=True, reason="no")
        return HookResult(updated_input={"a": 3, "b": 4})

    def permit(given: HookInput) -> HookResult:
        return HookResult(allow=given.tool_use_id == "3")

    writing = [call("write", id=str(n), index=n) for n in (3, 4)]
    return Agent(
        "a",
        Scripted([*adding("add", "1", "2"), *writing], say("done")),
        tools=[add, write],
        hooks={
            "pre_tool_use": [Hook(change, matcher="add")],
            "permission_request": [permit],
            "on_tool_approval_decision": [look_on_async],
            "on_user_input": [look_on],
            "tool_response_transform": [lambda given: HookResult(updated_response=given.tool_response.upper())],
            "post_tool_use": [Hook(note, matcher="w*")],
        },
    )


def blocked_after_a_tool(outside: Outside) -> Agent:
    """A hook that ends the run after the calls of a turn."""
    return Agent(
        "a",
        Scripted([*say("x"), *adding("add", "1", "2")], say("never")),
        tools=[add],
        hooks={"post_tool_use": [Hook(refuse, matcher="add")], "session_end": [look_on]},
    )


def extended(outside: Outside) -> Agent:
    """It asks for more turns, and asks again."""
    return Agent(
        "a",
        Scripted(*[adding("add", str(i)) for i in range(3)]),
        tools=[add],
        max_iterations=1,
        hooks={"on_max_iterations": [look_on], "on_user_input": [look_on], "notification": [look_on_async]},
    )


def looping(outside: Outside) -> Agent:
    """A model that does the same again and again."""
    turns = [[call("nothing", id=str(i))] for i in range(3)]
    return Agent("a", Scripted(*turns, say("never")), max_repeated_calls=3)


def over_budget(outside: Outside) -> Agent:
    """More tokens than it may use; sooner with those of a nested stream, later without."""
    inner = outside.wrap(Agent("sub", Scripted([*say("s"), UsageDelta(30, 30)])), "sub ")

    @tool(read_only=True)
    def delegate(context: ToolContext) -> str:
        """Runs the other agent."""
        session = Session.from_user("sub task")
        outside.sessions.append(session)
        return context.run_agent(inner, session).text

    turns = [[call("delegate"), UsageDelta(30, 30)], [*adding("add", "2"), UsageDelta(30, 30)], say("never")]
    return Agent(
        "a",
        Scripted(*turns),
        tools=[delegate, add],
        budget=Budget(tokens=100),
        hooks={"turn_start": [look_on], "turn_end": [look_on], "session_end": [look_on]},
    )


def out_of_time(outside: Outside) -> Agent:
    """The time is up in the middle of a turn: here, when a tool says so."""

    @tool(read_only=True)
    def expire(context: ToolContext) -> str:
        """Takes too long."""
        assert outside.opened.wait(LONG)
        assert outside.core is not None
        outside.core.token.cancel(TimeoutError("the time is up"))
        return context.elicit("Too late?").action

    return Agent(
        "a",
        Scripted([*say("x"), call("expire")], say("in time")),
        tools=[expire],
        budget=Budget(seconds=1000 * LONG),
        hooks={
            "turn_start": [look_on],
            "turn_end": [look_on],
            "notification": [look_on],
            "session_end": [look_on, look_on_async],
        },
    )


def nested(outside: Outside) -> Agent:
    """A tool that runs an agent, which has a tool that asks."""
    inner = outside.wrap(
        Agent(
            "sub", Scripted([*say("s"), call("ask", id="1")], say("inner")), tools=[ask], hooks={"session_end": [note]}
        ),
        "sub ",
    )

    @tool(read_only=True)
    def delegate(context: ToolContext) -> str:
        """Runs the other agent."""
        session = Session.from_user("sub task")
        outside.sessions.append(session)
        return context.run_agent(inner, session).text

    turn = [call("delegate", id="1"), call("ask", id="2", index=1)]
    return Agent("a", Scripted(turn, say("done")), tools=[delegate, ask])


def siblings(outside: Outside) -> Agent:
    """Two nested agents at once, asynchronous, one of which fails."""

    @tool(read_only=True)
    def delegate(which: str, context: ToolContext) -> str:
        """Runs another agent."""
        model = AsyncScripted(
            [*say("s"), *adding("add_async")], [LookupError("no"), *say()] if which == "bad" else say("t")
        )
        session = Session.from_user(which)
        outside.sessions.append(session)
        return context.run_agent(outside.wrap(Agent(which, model, tools=[add_async]), f"sub {which} "), session).text

    turn = [call("delegate", f'{{"which": "{which}"}}', id=which, index=i) for i, which in enumerate(("good", "bad"))]
    return Agent("a", Scripted(turn, say("done")), tools=[delegate])


def background(outside: Outside) -> Agent:
    """A tool that leaves a thread behind, which asks and runs an agent when the call is over."""
    returned = threading.Event()
    inner = outside.wrap(Agent("sub", Scripted(say("inner"))), "sub ")

    @tool(read_only=True)
    def leave(context: ToolContext) -> str:
        """Leaves a thread behind."""

        def go_on() -> None:
            returned.wait(LONG)
            with contextlib.suppress(Cancelled, RunError):
                context.elicit("Too late?")
                context.run_agent(inner, "late")

        outside.start(go_on)
        returned.set()
        return "left"

    return Agent("a", Scripted([call("leave"), call("ask", id="2", index=1)], say("done")), tools=[leave, ask])


def transfer(id: str, index: int = 0) -> Any:
    """A call that gives ``sub`` a task."""
    return call("transfer_task", '{"agent": "sub", "task": "sub task"}', id=id, index=index)


def transferred(outside: Outside) -> Agent:
    """A sub-agent that is given a task, and asks."""
    inner = outside.wrap(Agent("sub", Scripted([*say("s"), call("ask", id="1")], say("inner")), tools=[ask]), "sub ")
    turn = [transfer("1"), call("ask", id="2", index=1)]
    return Agent(
        "a", Scripted(turn, say("done")), tools=[ask], sub_agents=[inner], hooks={"subagent_stop": [look_on, "true"]}
    )


def handed_over(outside: Outside) -> Agent:
    """The conversation goes to another agent, and back."""
    hand = [call("handoff", f'{{"agent": "{name}"}}', id=name) for name in ("b", "a")]
    around: dict[str, Any] = {"turn_start": [look_on], "turn_end": [look_on], "on_agent_switch": [look_on_async]}
    other = outside.wrap(Agent("b", Scripted([*say("x"), hand[1]]), tools=[add], handoffs=["a"], hooks=around))
    return Agent(
        "a", Scripted([*say("y"), hand[0]], say("z")), handoffs=[other], hooks={**around, "session_end": [look_on]}
    )


class Waiting(Scripted):
    """A model that knows the task that it was given."""

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
        """As it is written, with the task's id for TASK."""
        task = next((each.content for each in messages if each.content.startswith("task-")), "").partition(":")[0]
        for delta in super().stream(messages, tools, cancel=cancel):
            is_call = isinstance(delta, ToolCallDelta)
            yield replace(delta, arguments=delta.arguments.replace("TASK", task)) if is_call else delta  # type: ignore[union-attr, type-var]


def in_the_background(outside: Outside) -> Agent:
    """A sub-agent in the background, which is waited for."""
    inner = outside.wrap(
        Agent("sub", Scripted([*say("s"), call("ask", id="1"), call("write", id="2", index=1)], say("t")), tools=[ask]),
        "sub ",
    )
    start = call("run_background_agent", '{"agent": "sub", "task": "sub task"}')
    wait = call("wait_background_agent", '{"task_id": "TASK"}', id="2")
    return Agent(
        "a",
        Waiting([start], [*say("x"), wait], say("done")),
        sub_agents=[inner],
        background_agents=True,
        hooks={"subagent_stop": [look_on]},
    )


def left_in_the_background(outside: Outside) -> Agent:
    """One on the loop, which is at work when its stream ends, and one that may have ended."""

    async def forever() -> None:
        await asyncio.Event().wait()

    slow = Agent("slow", AsyncScripted([*say("s"), forever]))  # no points: it is being cancelled at its last
    quick = outside.wrap(Agent("quick", Scripted(say("t"))), "sub ")
    turn = [
        call("run_background_agent", f'{{"agent": "{name}", "task": "go"}}', id=name, index=index)
        for index, name in enumerate(("slow", "quick"))
    ]
    return Agent("a", Scripted(turn, say("done")), sub_agents=[slow, quick], background_agents=True)


def steered(outside: Outside) -> Agent:
    """The user says something meanwhile, and pauses the stream: here, when a tool says so."""

    @tool(read_only=True)
    def talk() -> str:
        """Speaks for the user."""
        assert outside.opened.wait(LONG)
        assert outside.core is not None
        box = outside.core.mailbox
        for tell, text in ((box.steer, "steer"), (box.follow_up, "follow")):
            with contextlib.suppress(NotRunning):
                tell(text)
                outside.told.append(text)
        with contextlib.suppress(NotRunning):
            box.pause()
        return "said"

    points = ("user_steering_messages_submit", "user_followup_submit")
    return Agent(
        "a",
        Scripted([*say("x"), call("talk")], [*say("y"), *adding("add", "2")], say("z"), say("done")),
        tools=[talk, add],
        hooks={point: [note] for point in points},
    )


def approval(outside: Outside) -> Agent:
    """Several calls that wait for approval, beside one that need not; then one that must run alone."""
    first = [call("write", f'{{"text": "{i}"}}', id=str(i), index=i) for i in range(3)]
    second = [call("wipe", id="4"), call("write", '{"text": "x"}', id="5", index=1)]
    return Agent("a", Scripted([*first, *adding("add", "3")], second, say("done")), tools=[write, wipe, add])


def nested_approval(outside: Outside) -> Agent:
    """A nested stream whose call waits for the approval of the root's consumer, while its parent's does too."""
    inner = outside.wrap(Agent("sub", Scripted([call("write", id="1")], say("inner")), tools=[write]), "sub ")

    @tool(read_only=True)
    def delegate(context: ToolContext) -> str:
        """Runs the other agent."""
        session = Session.from_user("sub task")
        outside.sessions.append(session)
        return context.run_agent(inner, session).text

    turn = [call("delegate", id="1"), call("write", id="2", index=1)]
    return Agent("a", Scripted(turn, say("done")), tools=[delegate, write])


def reports(outside: Outside) -> Agent:
    """Progress, a clock that a question stops, results that are cut and that have images."""
    turn = [call("report", id="1"), call("report_async", id="2", index=1)]
    return Agent("a", Scripted(turn, say("done")), tools=[report, report_async])


def expired(outside: Outside) -> Agent:
    """A tool whose time is up, beside one that has all the time."""

    @tool(read_only=True, timeout=0.001)
    def late(context: ToolContext) -> str:
        """Ends when it is told to."""
        with contextlib.suppress(ChannelClosed):
            context.cancel.done.recv(timeout=LONG)
        return "late"

    turn = [call("late", id="1"), call("report_async", id="2", index=1)]
    return Agent("a", Scripted(turn, say("done")), tools=[late, report_async])


def visits(outside: Outside) -> Agent:
    """Calls for the consumer's thread, from the root and from a nested stream, which also needs its approval."""
    careful = copy.copy(visit)
    careful.read_only = False
    inner = outside.wrap(Agent("sub", Scripted([call("visit")], say("inner")), tools=[careful]), "sub ")

    @tool(read_only=True)
    def delegate(context: ToolContext) -> str:
        """Runs the other agent."""
        session = Session.from_user("sub task")
        outside.sessions.append(session)
        return context.run_agent(inner, session).text

    turn = [call("delegate", id="1"), call("visit", id="2", index=1), call("visit", id="3", index=2)]
    return Agent("a", Scripted(turn, say("done")), tools=[delegate, visit])


@dataclass
class Sum:
    """What the scenario of structured output is to come to."""

    total: int


def structured(outside: Outside) -> Agent:
    """A reply that is not of the output type, asked for again after a tool call."""
    return Agent("a", Scripted(say("three"), adding(), say('{"total": ', "3}")), tools=[add], output_type=Sum)


def unstructured(outside: Outside) -> Agent:
    """Replies that never are."""
    return Agent("a", Scripted(say("three"), say("3")), output_type=Sum, hooks={"session_end": [look_on]})


def compacted(outside: Outside) -> Agent:
    """The window is full before the second call; when the summary fails, the run goes on without it."""
    summarizing = outside.wrap_model(Scripted([*say("s", "ummary"), UsageDelta(1, 1)]), "summary ")
    return Agent(
        "a",
        Scripted([*adding(), UsageDelta(90, 9)], say("done")),
        tools=[add],
        compaction=Compaction(at=0.5, keep=0.1, window=100, model=summarizing),
        hooks={"before_compaction": [look_on], "after_compaction": [look_on_async], "session_end": [look_on]},
    )


def overflowing(outside: Outside) -> Agent:
    """The second call is too long for the model. The reply before it is longer than a summary, or none would help."""
    return Agent(
        "a",
        Scripted([*say("long " * 400), *adding()], [OVERFLOW], say("done")),
        tools=[add],
        compaction=Compaction(model=Scripted(say("summary"))),
        hooks={"before_compaction": [look_on_async], "after_compaction": [look_on]},
    )


def decline(request: Any) -> Answer:
    """Says no."""
    return Answer("decline")


def undecided(request: Any) -> Decision:
    """One yes, one no, one yes for good, and so on."""
    kinds = {"0": Decision(True), "1": Decision(False, reason="no"), "2": Decision(True, "tool")}
    return kinds.get(request.arguments.get("text"), Decision(False))


ASIDE = ("sub", "hook subagent_stop", "observer", "consumer")

SCENARIOS = [
    Scenario("plain", plain),
    Scenario("tools", tools),
    Scenario("asynchronous", asynchronous),
    Scenario("iterating", iterating, capacity=4),
    Scenario("again", again, capacity=2),
    Scenario("again on a thread", again_on_a_thread),
    Scenario("stand in", stand_in, observed=True, capacity=1),
    Scenario("questions", questions),
    Scenario("questions declined", questions, answer=decline, capacity=2),
    Scenario("questions taken back", impatient, capacity=1),
    Scenario("not interactive", questions, interactive=False, executor=True),
    Scenario("hooks", hooks),
    Scenario("blocked", blocked, reason="hook_blocked", hinge=Point("hook user_prompt_submit", 2)),
    Scenario("toolset", toolset),
    Scenario("observed", observed, observed=True, capacity=2),
    Scenario("narrow", narrow, capacity=1),
    Scenario("recorded", tools, recorded=True, capacity=4),
    Scenario("recorded nested", nested, recorded=True, observed=True),
    Scenario("max iterations", endless, reason="max_iterations"),
    Scenario("structured", structured),
    Scenario("unstructured", unstructured, reason="error", code="invalid_output"),
    Scenario("compacted", compacted, recorded=True),
    Scenario("overflowing", overflowing),
    Scenario("turn hooks", turn_hooks),
    Scenario("blocked late", blocked_late, reason="hook_blocked", hinge=Point("hook before_llm_call", 2)),
    Scenario("tool hooks", tool_hooks),
    Scenario("blocked after a tool", blocked_after_a_tool, reason="hook_blocked"),
    Scenario("more turns", extended, reason="max_iterations", more=1),
    Scenario("no more turns", extended, reason="max_iterations", interactive=False),
    Scenario("loop", looping, reason="loop_detected"),
    Scenario("budget", over_budget, reason="budget_exceeded"),
    Scenario("out of time", out_of_time, reason="budget_exceeded", hinge=Point("tool expire", 1)),
    Scenario("executor", tools, executor=True),
    Scenario("nested", nested),
    Scenario("background", background, aside=("sub", "observer", "consumer")),
    Scenario("transferred", transferred),
    Scenario("handed over", handed_over, observed=True, capacity=2),
    Scenario("in the background", in_the_background, aside=ASIDE),
    Scenario("observed in the background", in_the_background, aside=ASIDE, observed=True, capacity=2),
    Scenario("left in the background", left_in_the_background, aside=ASIDE, executor=True),
    Scenario("steered", steered),
    Scenario("approval", approval),
    Scenario("approved and rejected", approval, decision=undecided, observed=True, capacity=2),
    Scenario("approved for good", approval, decision=lambda request: Decision(True, "session"), executor=True),
    Scenario("rejected", approval, decision=lambda request: Decision(False, reason="no"), capacity=1),
    Scenario("refused", approval, interactive=False),
    Scenario("nested approval", nested_approval),
    Scenario("questions, answers interrupted", questions, interrupted=True),
    Scenario("approval, answers interrupted", approval, interrupted=True, decision=undecided),
    Scenario("more turns, answers interrupted", extended, interrupted=True, reason="max_iterations", more=1),
    Scenario("stored tools", tools, stored=True),
    Scenario("stored approval", approval, stored=True, decision=undecided),
    Scenario("stored questions", questions, stored=True, observed=True, capacity=2),
    Scenario("stored nested", nested_approval, stored=True),
    Scenario("stored, more turns", extended, stored=True, reason="max_iterations", more=1),
    Scenario("stored, steered", steered, stored=True),
    Scenario("stored, handed over", handed_over, stored=True),
    Scenario("reports", reports),
    Scenario("reports in a narrow channel", reports, capacity=1, observed=True),
    Scenario("expired", expired, aside=("observer", "consumer", "tool late")),
    Scenario("visits", visits),
    Scenario("visits observed", visits, observed=True, capacity=1),
    Scenario("nested siblings", siblings, observed=True, capacity=3),
]
