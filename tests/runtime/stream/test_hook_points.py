"""Each hook point fires on each path it should, once, in its place, and on no other: the table of paths and points."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest

from runtime import (
    Agent,
    Budget,
    EventStream,
    HookInput,
    HookResult,
    Permissions,
    Runtime,
    Session,
    Tool,
    ToolContext,
    UsageDelta,
    tool,
)
from runtime.agent._hook_points import HOOK_POINTS
from runtime.events import (
    ElicitationRequest,
    Event,
    HookFinished,
    HookStarted,
    MaxIterationsReached,
    ToolCallConfirmation,
)
from support.scripted import Scripted, Stall, call, say


class Log:
    """A hook at every point, on whatever thread."""

    def __init__(self) -> None:
        self.fired: list[str] = []
        self.untold: list[str] = []  # what was told where the table does not say so
        self._lock = threading.Lock()

    def __call__(self, given: HookInput) -> None:
        point = given.hook_event_name
        told = {"hook_event_name", "session_id", "agent_name", "cwd", *HOOK_POINTS[point].told}
        said = {each.name for each in fields(HookInput) if getattr(given, each.name) != each.default}
        with self._lock:
            self.untold += [f"{point}: {name}" for name in said - told]
            self.fired.append(f"{point} {given.reason}" if point in ("turn_end", "session_end") else point)

    def hooks(self) -> dict[str, list[Any]]:
        return {point: [self] for point in HOOK_POINTS}


@dataclass
class Path:
    """A way through a stream, and what fires on it."""

    name: str
    points: str
    model: Callable[[Stall], Scripted] = lambda stall: Scripted(say("ok"))
    tools: Callable[[Stall], Sequence[Tool]] = lambda stall: ()
    more: dict[str, Any] = field(default_factory=dict)  # of the agent
    hooks: dict[str, Callable[[Stall], Any]] = field(default_factory=dict)  # after the one that logs
    cancels: bool = False  # once something stalls
    expires: bool = False  # its time is up, then
    interactive: bool = True
    said: str = "hi"
    answers: bool | None = None  # what the user says to everything
    denies: bool = False
    nests: bool = False  # the tool runs an agent with the same hooks
    sorted: bool = False  # hooks overtake each other: several calls, or a user who answers at once


def look() -> str:
    """Looks."""
    return "seen"


def ask(context: ToolContext) -> str:
    """Asks."""
    return context.elicit("Really?").action


def block(stall: Stall) -> Any:
    return lambda given: HookResult(block=True, reason="no")


def stand(stall: Stall) -> Any:
    return stall


class Broken:
    """A toolset that cannot start."""

    def start(self) -> None:
        raise OSError("no server")

    def tools(self) -> Sequence[Tool]:
        return ()

    def stop(self) -> None:
        """It never started."""


LOOK = Tool("look", look, read_only=True)
START = "session_start user_prompt_submit"
TURN = "turn_start before_llm_call after_llm_call"
DECIDED = "pre_tool_use on_tool_approval_decision"
ASKED = "pre_tool_use permission_request"
RAN = "tool_response_transform post_tool_use"
CALL = f"{TURN} {DECIDED} {RAN}"  # a turn with a call that needs no approval
OK = f"{TURN} stop turn_end:normal session_end:normal"
WORKS = lambda stall: Scripted([call("look")], say("ok"))  # noqa: E731
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
ASKS = lambda stall: [Tool("look", look)]  # noqa: E731
WITH_LOOK = lambda stall: [LOOK]  # noqa: E731
FAILED = "notification on_error session_end:error"
LOOP = "notification on_error session_end:loop_detected"
BLOCKED = "notification on_error session_end:hook_blocked"

PATHS = [
    Path("normal", f"{START} {TURN} stop turn_end:normal session_end:normal"),
    Path("nothing to submit", f"session_start {TURN} stop turn_end:normal session_end:normal", said=""),
    Path(
        "model error",
        f"{START} turn_start before_llm_call turn_end:error {FAILED}",
        lambda stall: Scripted([OSError()]),
    ),
    Path("toolset cannot start", f"session_start {FAILED}", more={"toolsets": [Broken()]}),
    Path(
        "cancelled in the model",
        f"{START} turn_start before_llm_call turn_end:canceled session_end:canceled",
        lambda stall: Scripted([*say("x"), stall]),
        cancels=True,
    ),
    Path("blocked at session_start", f"session_start {BLOCKED}", hooks={"session_start": block}),
    Path("blocked at user_prompt_submit", f"{START} {BLOCKED}", hooks={"user_prompt_submit": block}),
    Path(
        "blocked at before_llm_call",
        f"{START} turn_start before_llm_call turn_end:hook_blocked {BLOCKED}",
        hooks={"before_llm_call": block},
    ),
    Path(
        "blocked at stop",
        f"{START} {TURN} stop turn_end:continue {TURN} stop turn_end:normal session_end:normal",
        lambda stall: Scripted(say("one"), say("two")),
        hooks={"stop": lambda stall: lambda given: None if given.stop_hook_active else HookResult(block=True)},
    ),
    *(
        Path(f"cancelled in {point}", f"{points} session_end:canceled", hooks={point: stand}, cancels=True)
        for point, points in {
            "session_start": "session_start",
            "user_prompt_submit": START,
            "turn_start": f"{START} turn_start turn_end:canceled",
            "before_llm_call": f"{START} turn_start before_llm_call turn_end:canceled",
            "after_llm_call": f"{START} {TURN} turn_end:canceled",
            "stop": f"{START} {TURN} stop turn_end:canceled",
            "turn_end": f"{START} {TURN} stop turn_end:normal",
        }.items()
    ),
    Path(
        "cancelled in on_error",
        f"{START} turn_start before_llm_call turn_end:error {FAILED}",
        lambda stall: Scripted([OSError()]),
        hooks={"on_error": stand},
        cancels=True,
    ),
    Path(
        "cancelled in session_end",
        f"{START} {TURN} stop turn_end:normal session_end:normal",
        hooks={"session_end": stand},
        cancels=True,
    ),
    Path(
        "max_iterations",
        f"{START} {CALL} turn_end:continue on_max_iterations on_user_input notification session_end:max_iterations",
        WORKS,
        WITH_LOOK,
        {"max_iterations": 1},
    ),
    Path(
        "max_iterations, nobody to ask",
        f"{START} {CALL} turn_end:continue on_max_iterations notification session_end:max_iterations",
        WORKS,
        WITH_LOOK,
        {"max_iterations": 1},
        interactive=False,
    ),
    Path(
        "budget",
        f"{START} {TURN} turn_end:budget_exceeded notification session_end:budget_exceeded",
        lambda stall: Scripted([call("look"), UsageDelta(5, 5)]),
        WITH_LOOK,
        {"budget": Budget(tokens=10)},
    ),
    Path(
        "out of time",
        f"{START} turn_start before_llm_call turn_end:budget_exceeded notification session_end:budget_exceeded",
        lambda stall: Scripted([stall]),
        more={"budget": Budget(seconds=60)},
        expires=True,
    ),
    Path("tool", f"{START} {CALL} turn_end:continue {OK}", WORKS, WITH_LOOK),
    Path(
        "two tools",
        f"{START} {TURN} {DECIDED} {DECIDED} {RAN} {RAN} turn_end:continue {OK}",
        lambda stall: Scripted([call("look", id="1"), call("look", id="2", index=1)], say("ok")),
        lambda stall: [Tool("look", look, read_only=True, parallel=True)],
        sorted=True,
    ),
    Path(
        "tool that raises",
        f"{START} {CALL} turn_end:continue {OK}",
        WORKS,
        lambda stall: [Tool("look", lambda: 1 / 0, read_only=True)],
    ),
    Path("unknown tool", f"{START} {TURN} turn_end:continue {OK}", WORKS),
    Path(
        "invalid arguments",
        f"{START} {TURN} turn_end:continue {OK}",
        lambda stall: Scripted([call("look", '{"x": 1')], say("ok")),
        WITH_LOOK,
    ),
    Path(
        "invalid arguments by a hook",
        f"{START} {TURN} pre_tool_use turn_end:continue {OK}",
        WORKS,
        lambda stall: [Tool("look", look, read_only=True, parameters=EMPTY)],
        hooks={"pre_tool_use": lambda stall: lambda given: HookResult(updated_input={"x": 1})},
    ),
    Path(
        "tool that is approved",
        f"{START} {TURN} {ASKED} on_user_input on_tool_approval_decision {RAN} turn_end:continue {OK}",
        WORKS,
        ASKS,
        answers=True,
        sorted=True,
    ),
    Path(
        "tool that is rejected",
        f"{START} {TURN} {ASKED} on_user_input on_tool_approval_decision turn_end:continue {OK}",
        WORKS,
        ASKS,
        answers=False,
        sorted=True,
    ),
    Path(
        "nobody to approve it",
        f"{START} {TURN} {ASKED} on_tool_approval_decision turn_end:continue {OK}",
        WORKS,
        ASKS,
        interactive=False,
    ),
    Path(
        "approved by a hook",
        f"{START} {TURN} {ASKED} on_tool_approval_decision {RAN} turn_end:continue {OK}",
        WORKS,
        ASKS,
        hooks={"permission_request": lambda stall: lambda given: HookResult(allow=True)},
    ),
    Path(
        "rejected by a hook",
        f"{START} {TURN} {ASKED} on_tool_approval_decision turn_end:continue {OK}",
        WORKS,
        ASKS,
        hooks={"permission_request": block},
    ),
    Path("denied", f"{START} {TURN} {DECIDED} turn_end:continue {OK}", WORKS, WITH_LOOK, denies=True),
    Path(
        "blocked at pre_tool_use",
        f"{START} {TURN} pre_tool_use turn_end:continue {OK}",
        WORKS,
        WITH_LOOK,
        hooks={"pre_tool_use": block},
    ),
    Path(
        "blocked at post_tool_use",
        f"{START} {CALL} turn_end:hook_blocked {BLOCKED}",
        WORKS,
        WITH_LOOK,
        hooks={"post_tool_use": block},
    ),
    *(
        Path(
            f"cancelled in {point}",
            f"{START} {TURN} {points} turn_end:canceled session_end:canceled",
            WORKS,
            tools,
            hooks={point: stand},
            cancels=True,
        )
        for point, points, tools in (
            ("pre_tool_use", "pre_tool_use", WITH_LOOK),
            ("permission_request", ASKED, ASKS),
            ("on_user_input", f"{ASKED} on_user_input", ASKS),
            ("on_tool_approval_decision", DECIDED, WITH_LOOK),
            ("tool_response_transform", f"{DECIDED} tool_response_transform", WITH_LOOK),
            ("post_tool_use", f"{DECIDED} {RAN}", WITH_LOOK),
        )
    ),
    Path(
        "cancelled in the tool",
        f"{START} {TURN} {DECIDED} turn_end:canceled session_end:canceled",
        WORKS,
        lambda stall: [Tool("look", lambda: stall(), read_only=True)],
        cancels=True,
    ),
    Path(
        "a tool asks",
        f"{START} {TURN} {DECIDED} on_user_input {RAN} turn_end:continue {OK}",
        WORKS,
        lambda stall: [tool(name="look", read_only=True)(ask)],
        answers=True,
        sorted=True,
    ),
    Path(
        "a tool asks nobody",
        f"{START} {CALL} turn_end:continue {OK}",
        WORKS,
        lambda stall: [tool(name="look", read_only=True)(ask)],
        interactive=False,
    ),
    Path(
        "nested",
        f"{START} {TURN} {DECIDED} {START} {OK} subagent_stop {RAN} turn_end:continue {OK}",
        WORKS,
        nests=True,
    ),
    Path(
        "loop",
        f"{START} {CALL} turn_end:continue {CALL} turn_end:loop_detected {LOOP}",
        lambda stall: Scripted([call("look", id="1")], [call("look", id="2")]),
        WITH_LOOK,
        {"max_repeated_calls": 2},
    ),
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_what_fires(path: Path) -> None:
    """The points, in their order, and each once: what stands in the table."""
    log = Log()
    with Stall() as stall:
        hooks = log.hooks()
        for point, make in path.hooks.items():
            hooks[point] = [*hooks[point], make(stall)]
        agent = Agent("a", path.model(stall), tools=path.tools(stall), hooks=hooks, **path.more)
        if path.nests:
            child = Agent("child", Scripted(say("inner")), hooks=hooks)

            def delegate(context: ToolContext) -> str:
                return context.run_agent(child, "go").text

            agent = replace(agent, tools=[Tool("look", delegate, read_only=True)])
        session = Session.from_user(path.said) if path.said else Session()
        permissions = Permissions(deny=["look"] if path.denies else [])
        with (
            Runtime(agent, permissions=permissions) as runtime,
            runtime.run_stream(session, interactive=path.interactive) as stream,
        ):
            events = _read(stream, stall, path)
    fired, expected = log.fired, path.points.replace(":", " ")
    if path.sorted:
        fired, expected = sorted(" ".join(fired).split()), " ".join(sorted(expected.split()))
    assert " ".join(fired) == expected
    assert log.untold == []
    _check_events(events, path)


def _read(stream: EventStream, stall: Stall, path: Path) -> list[Event]:
    events = []
    if path.cancels:
        assert stall.reached.wait(5)
        stream.cancel()
        threading.Timer(0.05, stall.go_on.set).start()
    if path.expires:
        assert stall.reached.wait(5)
        stream._core.token.cancel(TimeoutError("the time is up"))
    for event in stream:
        events.append(event)
        if isinstance(event, MaxIterationsReached) and event.request_id:
            stream.extend(event, 0)
        if isinstance(event, ElicitationRequest) and path.answers is not None:
            stream.respond(event, "accept" if path.answers else "decline")
        if isinstance(event, ToolCallConfirmation) and path.answers is not None:
            if path.answers:
                stream.approve(event)
            else:
                stream.reject(event)
    stall.go_on.set()
    return events


def _check_events(events: list[Event], path: Path) -> None:
    """Each hook is announced before it runs; one that ends in time is seen to end."""
    started = [event.hook_event for event in events if isinstance(event, HookStarted)]
    finished = [event.hook_event for event in events if isinstance(event, HookFinished)]
    if not path.cancels:
        assert sorted(started) == sorted(finished)
