"""`StreamCore`: the parts of one stream, which the files of this folder share.

Objects on the consumer's side hold the core, but the core holds none of them, so a stream that its consumer drops is
garbage-collected.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Protocol

from channels import CancelToken, Channel, ChannelClosed
from channels._lazy import lazy_logger
from channels._park import give_way

from .._dataclasses import dataclass, field
from .._errors import SessionNotFound, StoreError, describe
from ..agent._agent import Agent
from ..agent._budget import Budget
from ..agent._hooks import HookInput, HookResult, Hooks, nothing
from ..agent._roster import Roster
from ..agent._spending import Spending
from ..events import Event, HookBlocked
from ..execution._calls import Call, Calls
from ..execution._driver import Driver, Steps
from ..execution._helpers import HelperPool
from ..execution._result_files import ResultFiles
from ..execution._threads import Running
from ..human._asks import Asks, Confirmations
from ..human._bridge import ElicitationBridge, Events
from ..human._listener import Listener
from ..human._mailbox import Mail, Mailbox
from ..permissions import Permissions
from ..session._journal import Request, Unfinished
from ..session._message import Message
from ..session._session import Session, SessionLog
from ..stores._store import Store
from ..usage import Prices
from ._commands import obey, obey_all
from ._end_reason import Ending, StopRun, Tags
from ._parking import Parking
from ._run_hooks import fire
from ._scope import stream_scope
from ._tasks import BackgroundTask
from ._tracing import UNTRACED, StreamTrace, Tracing, for_new_runtimes

if TYPE_CHECKING:
    from channels.aio import LoopThread

    from ..agent._output import Output
    from ..execution._toolsets import ToolSets
    from ._record_writer import Recorder

_logger = lazy_logger("runtime")
_numbers = itertools.count(1)
FAILURES: Final = 8  # tracebacks of tools that a stream keeps, the last ones


class EndHooks(Protocol):
    """The part of `_end_hooks.Cleanup` that the loop uses: the hooks at the end of turns and of the stream."""

    def owe(self, point: str, **fields: Any) -> None: ...
    def due(self, point: str, reason: str) -> None: ...
    def resume(self) -> None: ...
    @property
    def calls(self) -> Collection[Call]: ...


class Watch(Protocol):
    """The watchdog of a runtime, which checks its live streams."""

    def wake(self) -> None:
        """A stream has begun."""

    def rest(self) -> None:
        """A stream has ended, maybe the last."""


@dataclass(kw_only=True, eq=False)
class Shared:
    """Everything that the streams of one runtime share: its parts, its settings, its live streams and open
    questions."""

    helpers: HelperPool
    loop: Callable[[], LoopThread]
    toolsets: ToolSets
    result_files: ResultFiles
    #: The function that the worker calls between the first and the last event (the loop). This folder knows no turns.
    run: Callable[[StreamCore, EndHooks], Steps[None]]

    answer_timeout: float | None
    grace: float
    event_capacity: int
    observers: tuple[Any, ...]
    prices: Prices
    permissions: tuple[Permissions, ...]  # of the runtime and of the team
    roster: Roster  # of the team
    result_limit: int | None
    titles: bool
    store: Store | None = None
    listen: bool = False  # to commands of other processes
    park_after: float | None = None
    patient: bool = False  # nobody has set ``answer_timeout``: what is parked waits without end
    watch: Watch | None = None

    bridge: ElicitationBridge = field(default_factory=ElicitationBridge, init=False)
    asks: Asks = field(default_factory=Asks, init=False)
    confirmations: Confirmations = field(default_factory=Confirmations, init=False)
    listener: Listener | None = field(default=None, init=False)  # where there is a store
    cores: set[StreamCore] = field(default_factory=set, init=False)  # the live streams
    tracing: Tracing = field(default=UNTRACED, init=False)  # of streams that begin from now on
    tells_settled: bool = field(default=False, init=False)  # several may answer: all are told of an answer
    #: Set when the runtime closes, before it ends the live streams, so that no other stream starts from then on. It is
    #: a plain flag, so that a signal handler can set it at any moment.
    closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for made in for_new_runtimes:
            self.tracing = made(self)
        if self.store is not None:
            commanded = functools.partial(obey_all, self.cores, self.store)
            self.listener = Listener(self.store, self.asks, self.confirmations, commanded)


class StreamCore:
    """One stream: its channel, its token, its session, its calls, and the agent that is in charge."""

    __slots__ = (  # fifty names in a dict, which each live stream has, take three times as much memory
        "__weakref__",
        "_outbox",
        "_output",
        "agent",
        "background",
        "began",
        "call_ids",
        "calls",
        "context",
        "density",
        "driver",
        "ending",
        "events",
        "failures",
        "finished",
        "first_message",
        "gone",
        "hooks",
        "inherited",
        "interactive",
        "log",
        "mailbox",
        "number",
        "observed",
        "out",
        "over",
        "parent",
        "parking",
        "recorded",
        "recorder",
        "requested",
        "roster",
        "said",
        "scope",
        "session",
        "shared",
        "spending",
        "stopping",
        "tags",
        "task_numbers",
        "threads",
        "token",
        "trace",
        "turn",
        "unfinished",
        "window",
    )

    def __init__(
        self,
        shared: Shared,
        agent: Agent,
        session: Session,
        log: SessionLog,
        *,
        interactive: bool,
        context: Context,
        parent: StreamCore | None,
        budget: Budget | None,
        gone: CancelToken,
        observed: bool,
        output: Output | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.began = time.monotonic()
        self.turn = 0  # that the loop is in, for people
        self.shared = shared
        self.roster = shared.roster.of(agent)
        #: Who acts: ``agent``, or whom the conversation was handed to. Its worker changes it, between turns.
        self.agent = self.roster.find(session.agent_name) or agent
        self.session = session
        self.log = log
        self._outbox = log.outbox
        self.interactive = interactive
        self.context = context
        self.trace: StreamTrace = UNTRACED
        self.hooks = Hooks(self.agent.hooks)
        self.tags: Tags = {"agent_name": self.agent.name, "session_id": session.id}
        self.spending: Spending = Spending((self.agent.budget, budget), None if parent is None else parent.spending)
        #: Cancelled when nobody will read the events any more; the two below are cancelled with it.
        self.gone = gone
        #: Cancelled when the consumer wants the stream to end. One token does for all, where no forwarder has to know.
        self.stopping = log.token = CancelToken(gone) if observed else gone
        #: The stream's own: what is done for it ends with this. Cancelled at every end, and when the time is up; then
        #: `renew_token` puts another in its place, so nobody keeps it from one wait to the next.
        self.token = gone
        if observed or self.spending.seconds is not None:
            self.token = CancelToken(self.stopping, timeout=self.spending.seconds)
        self.observed = observed  # or recorded: a forwarder stands between the worker and the consumer
        self.parent = parent
        self.background: dict[str, BackgroundTask] = {}  # by id
        self.task_numbers: Final = itertools.count(1)  # their own, so that a replay names them as the run did
        self.recorder = recorder
        self.density = 1.0  # tokens of the model for one of our count, as far as it has told
        self.window: int | None = None  # that it has refused to exceed, where nobody knew
        self._output = output
        #: What the last reply said, where it has to be of a type. Written by the worker.
        self.said: Any = None
        self.recorded: bool = recorder is not None if parent is None else parent.recorded
        self.events: Events = Channel(shared.event_capacity, name=f"events {self.number}")
        #: What the consumer reads: `events`, or what the forwarder passes on after the observers have seen it.
        self.out: Events = self.events
        if observed:
            self.out = Channel(shared.event_capacity, name=f"observed events {self.number}")
        self.failures: tuple[str, ...] = ()  # tracebacks of tools, for people
        self.calls = Calls(self.token, shared.helpers, shared.loop, context)
        self.ending = Ending(self.tags)
        self.scope = stream_scope(shared.bridge, self.events, final=self.ending.stopped)
        #: Closes when the worker has ended; `over` when the forwarder has too.
        self.finished: Channel[None] = Channel(name=f"stream {self.number} finished")
        self.over: Channel[None] = Channel(name=f"stream {self.number} over") if observed else self.finished
        self.threads: list[Running] = []  # that of the worker is the first
        self.driver: Driver | None = None  # of the worker
        self.inherited = False  # by a forked child, which has none of these threads
        self.first_message = len(session._messages)
        #: What an earlier stream has left to do, as the store has it: it was parked, or its process has died.
        self.unfinished: Unfinished | None = session._unfinished if log.outbox.is_open else None
        self.requested: dict[str, Request] = {}  # what the store has of the questions of this stream, by id
        self.parking: Parking | None = None  # where there is a store
        if log.outbox.is_open:
            outer = None if parent is None else parent.parking
            self.parking = Parking(self.agent.name, outer, shared.park_after)
        self.mailbox: Final = Mailbox(session, log, self.unfinished.mail if self.unfinished is not None else ())
        #: The ids of all tool calls in the session: a model that numbers them anew each turn is given others.
        self.call_ids = log.call_ids()

    @property
    def root(self) -> StreamCore:
        """The stream whose consumer answers questions: the outermost stream that this one is nested in, or itself."""
        return self if self.parent is None else self.parent.root

    @property
    def line(self) -> list[StreamCore]:
        """The streams that this one is nested in, the outermost first, and this stream."""
        return [self] if self.parent is None else [*self.parent.line, self]

    @property
    def output(self) -> Output | None:
        """The output type that the last reply has to have: the run's, or else its agent's."""
        return self._output or self.agent._output

    @property
    def permissions(self) -> list[Permissions]:
        """The permissions for tool calls, in the order in which they decide: sessions from the innermost, runtime,
        team."""
        own = self.session.permissions
        return [own, *(self.shared.permissions if self.parent is None else self.parent.permissions)]

    # -- used by the worker --------------------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Send an event to this stream, once everything that it is about is in the store. Raises `Cancelled` when the
        stream is cancelled first.
        """
        if self._outbox.unwritten:
            self.commit()
        self.events.send(event, None, self.token)

    def try_emit(self, event: Event) -> bool:
        """`emit`, where that needs not wait. Returns whether it was sent. Any thread, as if it were the worker."""
        if self._outbox.unwritten or self.token.cancelled:
            return False
        try:
            return self.events._try_put(event)
        except ChannelClosed:
            return False

    def emit_many(self, batch: Sequence[Event], gives_way: bool = True) -> None:
        """`emit` for several events, in order. Where the stream is cancelled first, ``sent`` of the `Cancelled` tells
        how many were sent all the same.
        """
        if len(batch) == 1:  # as where a model is slower than its consumer
            self.emit(batch[0])
            if gives_way and not len(self.events):  # who has waited for it has it, and reads it before we go on
                give_way()
            return
        if self._outbox.unwritten:
            self.commit()
        self.events.send_many(batch, None, self.token)

    def commit(self) -> None:
        """Wait until the store has what the log has. Raises `StopRun` where it fails, and `Cancelled`."""
        try:
            self._outbox.commit(self.token)
        except StoreError as error:
            raise StopRun("error", "store_failed", describe(error)) from error

    def next_mail(self) -> list[Mail]:
        """The next messages of the user once the agent has nothing more to do. If there are none, the mailbox closes;
        before that, the store is asked for those of other processes that are on their way. Raises `Cancelled`.
        """
        store = self.shared.store
        if self.shared.listen and store is not None and self._outbox.is_open:
            with contextlib.suppress(StoreError, SessionNotFound):  # whoever writes next finds out
                self.calls.run("reading the mailbox", obey, self, store)
        return self.mailbox.next()

    def record(self, message: Message, mail: str | None = None) -> None:
        """Add a message to the session; ``mail`` is the id of the `Mail` that it comes from, if it comes from one."""
        self.log.append(message, mail)

    def note_failure(self, traceback: str) -> None:
        """Keep the traceback of a tool, with the last few before it."""
        self.failures = (*self.failures, traceback)[-FAILURES:]

    def act(self, agent: Agent) -> None:
        """Put ``agent`` in charge from now on."""
        self.agent = agent
        self.hooks = Hooks(agent.hooks)
        self.trace.act(agent)
        self.tags["agent_name"] = agent.name

    def hook_input(self, point: str, **fields: Any) -> HookInput:
        """The input of a hook at ``point``."""
        return HookInput(point, self.session.id, self.agent.name, **fields)

    def fire(self, point: str, **fields: Any) -> HookResult:
        """Run the hooks at ``point``, wait for them, and return their joint result, as in `firing`."""
        if not self.hooks.at(point):
            return nothing()
        return fire(self, point, **fields)

    def stop_if_blocked(self, point: str, result: HookResult) -> None:
        """End the stream if a hook has blocked."""
        if result.block:
            reason = result.reason or f"a {point} hook stopped the run"
            self.emit(HookBlocked(point, reason, **self.tags))
            raise StopRun("hook_blocked", "hook_blocked", reason)

    @property
    def out_of_time(self) -> bool:
        """Whether only the time budget ends the stream, and no cancel."""
        return self.token.cancelled and not self.stopping.cancelled

    def renew_token(self) -> None:
        """Where the time budget alone has cancelled the token: take another, which only the consumer cancels, to tell
        how the stream ends. Called by the worker, after what ran under the old one was let go (`_ending`).
        """
        if self.out_of_time:
            self.token = self.calls.token = CancelToken(self.stopping)

    def __repr__(self) -> str:
        return f"<stream {self.number} of {self.session!r}>"


def insist(function: Callable[..., object], *args: Any) -> None:
    """Call a function that may be called twice: if an exception interrupts it, call it once more and raise the
    exception."""
    try:
        function(*args)
    except BaseException:  # an asynchronous one, it may be: what has to be done at the end is done all the same
        function(*args)
        raise
