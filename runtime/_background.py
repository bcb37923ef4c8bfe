"""Agents in the background: nested streams that outlive the tool call which starts them, and end with their parent.

A task of the background belongs to the stream that started it. A thread of its own reads it, keeps what it says, and
passes on its end; what else happens in it is for the observers and the record of the outermost stream. It has nobody to
ask. When the parent ends normally it stops them first, so that they are over by its last event; when it is cancelled
they are cancelled with it.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from channels import Cancelled, CancelToken, ChannelClosed

from . import events
from ._calls import Call
from ._errors import RunError
from ._scope import EventSink
from ._traffic import InBackground, Traffic
from .agent import Agent
from .session import Session

if TYPE_CHECKING:
    from ._core import StreamCore
    from .stream import EventStream

_logger = logging.getLogger(__name__)
MAX_RUNNING: Final = 20  # at once, for one stream: each has two threads


class BackgroundTask:
    """A sub-agent at work in the background."""

    def __init__(self, id: str, core: StreamCore, call: Call) -> None:
        self.id = id
        self.agent_name = core.agent.name
        self.core = core  # its own
        self.call = call  # of its parent's: over when it has been read to its end
        self.text: list[str] = []  # said so far
        self.began = time.monotonic()
        self.ended: float | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.ended is None

    @property
    def status(self) -> str:
        """``running``, ``completed``, ``stopped`` or ``failed``."""
        reason = self.core.ending.reason
        return "running" if self.running else {"normal": "completed", "canceled": "stopped"}.get(reason, "failed")

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def output(self) -> str:
        """What it has said so far, and why it failed, if it did."""
        said = "".join(self.text)
        return f"{said}\n{self.core.ending.message}".strip() if self.status == "failed" else said

    def stop(self, cause: str) -> None:
        """Ask it to end."""
        self.core.stopping.cancel(cause)

    def wait(self, timeout: float | None, cancel: CancelToken | None) -> bool:
        """Wait for its end; False where that takes longer than ``timeout`` seconds. Raises `Cancelled`."""
        try:
            self.call.done.recv(timeout, cancel)
        except ChannelClosed:
            return True
        except TimeoutError:
            pass
        return False

    def __repr__(self) -> str:
        return f"<BackgroundTask {self.id} {self.agent_name}, {self.status}>"


def start(parent: StreamCore, agent: Agent, session: Session) -> BackgroundTask:
    """Run ``agent`` on ``session`` in the background. Called by tools."""
    from ._nested import open_nested  # it opens streams, whose workers make tools that start these

    running = sum(task.running for task in list(parent.background.values()))
    if running >= MAX_RUNNING:
        raise RuntimeError(f"{running} agents run in the background, and no more may: wait for one, or stop one")
    stream = open_nested(parent, agent, session, interactive=False, within=parent.token)
    call = parent.calls.expect(f"background agent {agent.name}", stream._core.calls)
    task = BackgroundTask(f"task-{next(parent.task_numbers)}", stream._core, call)
    # No helper: an executor that is full must not keep a stream waiting for its reader.
    reader = threading.Thread(
        target=_read, args=(parent, task, stream), name=f"lockgate-background-{stream._core.number}", daemon=True
    )
    try:
        reader.start()
    except BaseException:
        parent.calls.ended(call)
        stream.close()
        raise
    parent.threads.append(reader)
    parent.background[task.id] = task
    return task


def _read(parent: StreamCore, task: BackgroundTask, stream: EventStream) -> None:
    """What the reader's thread runs."""
    from ._consumer import ConsumerCall
    from ._nested import follow

    sink = EventSink(parent.events)
    observed = parent.root.out is not parent.root.events

    def forward(event: events.Event) -> None:
        if isinstance(event, events.AgentChoice) and event.session_id == stream.session.id:
            task.text.append(event.content)
        if isinstance(event, events.SubSessionCompleted) and event.session_id == parent.session.id:
            task.ended = time.monotonic()
            sink.emit(event, parent.token)
        elif isinstance(event, (ConsumerCall, Traffic)):
            sink.emit(event, parent.token)
        elif observed:
            sink.emit(InBackground(event), parent.token)

    try:
        follow(parent, stream, forward, parent.fire, task.call)
    except (RunError, Cancelled, ChannelClosed):  # how it ended is known, and a parent that has left is not told
        pass
    except BaseException:
        _logger.exception("%r could not be read to its end", task)
    finally:
        task.ended = task.ended or time.monotonic()


def stop_all(parent: StreamCore) -> None:
    """End them, and wait for that, the grace time at most, unless the parent is cancelled. Called by its worker."""
    tasks = list(parent.background.values())
    if not tasks:
        return
    for task in tasks:
        task.stop("the agent that started it has ended")
    deadline = CancelToken(parent.token, timeout=parent.shared.grace)
    for task in tasks:
        try:
            task.wait(None, deadline)
        except Cancelled:
            return
