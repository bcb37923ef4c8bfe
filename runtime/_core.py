"""What one stream consists of, shared by the files that make it run.

Consumer-side objects hold the core, the core holds none of them: a consumer that is forgotten can be collected.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, TypedDict

from channels import Cancelled, CancelToken, Channel

from ._asks import Asks
from ._calls import Call, Calls
from ._helpers import HelperPool
from ._hooks import HookFailed, HookInput, HookResult, Hooks
from .agent import Agent
from .bridge import ElicitationBridge, Events
from .events import Event, StopReason, StreamStopped, Warning
from .session import Message, Session, SessionLog

if TYPE_CHECKING:
    from channels.aio import LoopThread

    from ._toolsets import ToolSets

_logger = logging.getLogger(__name__)
_numbers = itertools.count(1)


class StopRun(Exception):
    """Ends the stream, with an `Error` event. Raised by whoever finds the reason, handled in one place: the worker."""

    def __init__(self, reason: StopReason, code: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code


class Tags(TypedDict):
    """What every event of a stream is marked with."""

    agent_name: str
    session_id: str


class Ending:
    """How a stream ends. Written by its worker only; the first decision stands, and until then it is "error"."""

    def __init__(self, tags: Tags) -> None:
        self._tags = tags
        self.decided = False
        self.reason: StopReason = "error"
        self.code = "internal"
        self.message = ""
        self.error: BaseException | None = None

    def decide(self, reason: StopReason, code: str = "", message: str = "", error: BaseException | None = None) -> None:
        """Say how it ends. ``code`` and ``message`` are those of the `Error` event, ``error`` is what was raised."""
        if not self.decided:
            self.decided = True
            self.reason, self.code, self.message, self.error = reason, code or reason, message, error

    def stopped(self) -> StreamStopped:
        """The last event."""
        return StreamStopped(self.reason, **self._tags)

    def __repr__(self) -> str:
        return f"<Ending {self.reason if self.decided else 'undecided'}>"


class Shared:
    """What the streams of one runtime share."""

    def __init__(
        self,
        *,
        helpers: HelperPool,
        loop: Callable[[], LoopThread],
        toolsets: ToolSets,
        answer_timeout: float | None,
        grace: float,
        event_capacity: int,
        observers: tuple[Any, ...],
    ) -> None:
        self.bridge: Final = ElicitationBridge()
        self.asks: Final = Asks()
        self.helpers = helpers
        self.loop = loop
        self.toolsets = toolsets
        self.answer_timeout = answer_timeout
        self.grace = grace
        self.event_capacity = event_capacity
        self.observers = observers
        self.cores: Final[set[StreamCore]] = set()  # the live streams


class StreamCore:
    """One stream: its channel, its token, its session, its calls."""

    def __init__(
        self,
        shared: Shared,
        agent: Agent,
        session: Session,
        log: SessionLog,
        *,
        interactive: bool,
        context: Context,
        root: StreamCore | None,
        gone: CancelToken,
        observed: bool,
    ) -> None:
        self.number = next(_numbers)
        self.shared = shared
        self.agent = agent
        self.session = session
        self.log = log
        self.interactive = interactive
        self.context = context
        self.hooks = Hooks(agent.hooks)
        self.tags: Tags = {"agent_name": agent.name, "session_id": session.id}
        #: Cancelled when nobody will read the events any more; the two below are cancelled with it.
        self.gone = gone
        #: Cancelled when the consumer wants the stream to end. One token does for all, where no forwarder has to know.
        self.stopping = CancelToken(gone) if observed else gone
        #: The stream's own: what is done for it ends with this. Cancelled at every end.
        self.token = CancelToken(self.stopping) if observed else gone
        self._root = root
        self.events: Events = Channel(shared.event_capacity, name=f"events {self.number}")
        #: What the consumer reads: `events`, or what the forwarder passes on after the observers have seen it.
        self.out: Events = self.events
        if observed:
            self.out = Channel(shared.event_capacity, name=f"observed events {self.number}")
        self.calls = Calls(self.token, shared.helpers, shared.loop, context)
        self.ending = Ending(self.tags)
        #: Closes when the worker has ended; `over` when the forwarder has too.
        self.finished: Channel[None] = Channel(name=f"stream {self.number} finished")
        self.over: Channel[None] = Channel(name=f"stream {self.number} over") if observed else self.finished
        self.threads: list[threading.Thread] = []
        self.inherited = False  # by a forked child, which has none of these threads
        messages = session.messages
        self.first_message = len(messages)
        #: The ids of all tool calls in the session: a model that numbers them anew each turn is given others.
        self.call_ids = {call.id for message in messages for call in message.tool_calls}
        self.input_tokens = 0
        self.output_tokens = 0

    @property
    def root(self) -> StreamCore:
        """The stream whose consumer answers: this one, or the outermost it is nested in."""
        return self._root or self

    # -- used by the worker --------------------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Send an event to this stream. Raises `Cancelled` when the stream is cancelled first."""
        self.events.send(event, None, self.token)

    def record(self, message: Message) -> None:
        """Add a message to the session."""
        self.log.append(message)

    def hook_input(self, point: str, **fields: Any) -> HookInput:
        """What a hook at ``point`` is told."""
        return HookInput(point, self.session.id, self.agent.name, **fields)

    def fire(self, point: str, **fields: Any) -> HookResult:
        """Run the hooks at ``point``, one after the other; the first that blocks ends it.

        Context adds up. A hook that fails or takes too long is a `Warning` event and nothing more.
        """
        contexts = []
        for hook in self.hooks.at(point):
            call = hook.bound(self.hook_input(point, **fields), self.token)
            try:
                result = hook.result(self.calls.run(f"hook {hook.name}", call, timeout=hook.timeout))
            except Cancelled:
                if self.token.cancelled:
                    raise
                self.emit(Warning(f"hook {hook.name} at {point} failed: cancelled", **self.tags))
            except BaseException as error:
                self.emit(Warning(f"hook {hook.name} at {point} failed: {describe(error)}", **self.tags))
            else:
                if result.block:
                    return result
                if result.context:
                    contexts.append(result.context)
        return HookResult(context="\n".join(contexts))

    def start_cleanup(self) -> list[Call]:
        """Start the ``session_end`` hooks, all at once and whatever the token says."""
        given = self.hook_input("session_end", reason=self.ending.reason)
        return [
            self.calls.start(f"hook {hook.name}", Channel(1), hook.bound(given, None))
            for hook in self.hooks.at("session_end")
        ]

    def __repr__(self) -> str:
        return f"<stream {self.number} of {self.session!r}>"


def describe(error: BaseException) -> str:
    """An exception in one line, for people."""
    text = str(error)
    if isinstance(error, HookFailed):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
