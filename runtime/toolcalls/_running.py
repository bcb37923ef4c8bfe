"""The state of a tool call that is under way, and of the turn that it belongs to. Used by the worker's thread only."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from channels import CancelToken, Channel

from .._dataclasses import dataclass, field
from ..agent._agent import Agent
from ..agent._hooks import HookResult, nothing
from ..agent._tool import Tool, ToolResult
from ..execution._calls import INBOX, Call
from ..execution._errands import Held
from ..human._asks import Ask
from ..permissions import Decision
from ..session._journal import CallState
from ..session._message import ToolCall
from ..stream._core import StreamCore
from ..stream._private_events import ConsumerCall
from ..stream._run_hooks import HookRun, firing
from ..stream._tracing import UNTRACED, ToolTrace
from ._resolve import Ready

T = TypeVar("T")

OVER: Final = "the call that asked is over"


@functools.cache  # not a constant: to make the first one takes as long as all imports
def _open() -> CallState:
    """How far a call of this stream has come in the store: nobody looks at its id."""
    return CallState("")


@dataclass(frozen=True, slots=True)
class Approval:
    """A wait for the user's approval. ``told`` are the steps of the `on_user_input` hooks, which run meanwhile."""

    ask: Ask[ToolCall, Decision]
    told: Steps[HookResult]


#: What a tool call may wait for. When the wait is over, the call is sent the `Outcome` of a hook; the `Finished` of a
#: tool or of a check on a helper thread, or None if the time of the tool is up; the `Decision` of the user.
Wait: TypeAlias = HookRun | Call | Approval
Steps: TypeAlias = Generator[Wait, Any, T]


def nothing_to_note() -> None:
    """Before the calls of a turn, and after them."""


@dataclass(slots=True, eq=False)
class Turn:
    """The calls of one turn. Tools, helpers and timers send messages to ``inbox``, which closes when the turn is
    over."""

    core: StreamCore
    tools: Mapping[str, Tool]
    order: dict[str | None, int]  # of the calls, by id
    states: Mapping[str, CallState] = field(default_factory=dict)  # of those that an earlier stream has left, by id
    inbox: Channel[Any] = field(default_factory=lambda: Channel(INBOX, name="tool calls"))
    running: dict[str, Running] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)  # tools that have to begin
    results: dict[str, ToolResult] = field(default_factory=dict)
    blocked: HookResult = field(default_factory=nothing)  # or what a hook said that ends the run after these calls
    contexts: list[str] = field(default_factory=list)  # what hooks want the model to know next
    note_under_way: Callable[[], None] = nothing_to_note  # for who wants to park the stream: before a question is seen
    successor: Agent | None = None  # whom the conversation is handed to


@dataclass(slots=True, eq=False)
class Running:
    """A call from its first check to its last hook. It has a ``task`` while its tool
    runs, and an ``errand`` where that is on the consumer.
    """

    turn: Turn
    call: ToolCall
    ready: Ready
    token: CancelToken
    changed: bool = False  # a hook has changed the arguments: how long they are is not known
    task: Call | None = None
    errand: ConsumerCall | None = None
    ask: Ask[ToolCall, Decision] | None = None  # for the user's approval, until what he said is remembered
    agents: set[str] = field(default_factory=set)  # the sessions on which it runs agents now
    parked: bool = False  # one of these agents
    begun: bool = False  # the store is told that it has begun, or about to be
    questions: int = 0  # that the call has asked so far
    notes: list[str] = field(default_factory=list)  # why nobody was asked, for the model to read
    waited: float | None = None  # seconds, for the user's approval
    trace: ToolTrace = UNTRACED  # from when the tool is started
    # The clock of a tool with a timeout stands still while the tool waits for somebody.
    left: float | None = None
    deadline: float | None = None
    waits: int = 1  # it begins
    state: CallState = field(init=False)  # how far an earlier stream had come with the call

    def __post_init__(self) -> None:
        self.state = self.turn.states.get(self.call.id) or _open()

    @property
    def tool(self) -> Tool:
        return self.ready.tool

    def hooked(self, point: str) -> bool:
        """Whether there are hooks at ``point`` for this call, so that there is something to `fire`."""
        hooks = self.turn.core.hooks
        return bool(hooks) and bool(hooks.at(point, self.ready.tool.name))

    def fire(self, point: str, **fields: Any) -> Steps[HookResult]:
        """Run the hooks at ``point`` for this call."""
        return firing(
            self.turn.core,
            point,
            tool_name=self.tool.name,
            tool_use_id=self.call.id,
            tool_input=self.ready.arguments,
            **fields,
        )

    def pause(self) -> None:
        self.waits += 1
        if self.deadline is not None:
            self.left, self.deadline = self.deadline - time.monotonic(), None

    def resume(self) -> None:
        self.waits -= 1
        if self.left is not None and not self.waits:
            self.deadline, self.left = time.monotonic() + self.left, None

    def stop(self) -> None:
        """Note that the tool has ended, and withdraw its open questions."""
        self.task = self.left = self.deadline = None
        self.turn.core.shared.asks.withdraw(self, OVER)
