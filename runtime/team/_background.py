"""Agents in the background: nested streams that outlive the tool call which starts them, and end with their parent.

A background task belongs to the stream that started it. A thread of its own reads the task's stream, keeps its text,
and reports its end to the parent; its other events go to the observers and the record of the outermost stream. A
background agent cannot ask the user. When the parent ends normally, it stops its tasks first, so that they have ended
before its last event; when the parent is cancelled, its tasks are cancelled too.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from channels import Cancelled, ChannelClosed
from channels._lazy import lazy_logger

from .. import events
from .._errors import RunError
from ..agent._agent import Agent
from ..execution import _threads
from ..session._session import Session
from ..stream._core import StreamCore
from ..stream._event_stream import EventStream
from ..stream._private_events import ConsumerCall, InBackground, Traffic
from ..stream._scope import EventSink
from ..stream._tasks import BackgroundTask
from ._nested import follow, open_nested

_logger = lazy_logger("runtime")
MAX_RUNNING: Final = 20  # at once, for one stream: each has two threads


def start(parent: StreamCore, agent: Agent, session: Session) -> BackgroundTask:
    """Run ``agent`` on ``session`` in the background. Called by tools."""
    running = sum(task.running for task in list(parent.background.values()))
    if running >= MAX_RUNNING:
        raise RuntimeError(f"{running} agents run in the background, and no more may: wait for one, or stop one")
    stream = open_nested(parent, agent, session, interactive=False, within=parent.token)
    call = parent.calls.expect(f"background agent {agent.name}", stream._core.calls)
    task = BackgroundTask(
        f"task-{next(parent.task_numbers)}", agent.name, stream._core.ending, stream._core.stopping, call
    )
    # No helper: an executor that is full must not keep a stream waiting for its reader.
    read = partial(parent.context.copy().run, _read, parent, task, stream)
    try:
        reader = _threads.start(read, f"lockgate-background-{stream._core.number}")
    except BaseException:
        parent.calls.ended(call)
        stream.close()
        raise
    parent.threads.append(reader)
    parent.background[task.id] = task
    return task


def _read(parent: StreamCore, task: BackgroundTask, stream: EventStream) -> None:
    """The function of the thread that reads a background stream."""
    sink = EventSink(parent.events)
    observed = parent.root.observed

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
