"""A stream inside a stream: an agent that a tool runs, on the tool's own thread.

The events of the nested stream reach the parent's consumer with their own session id, and its questions are answered by
that consumer. Its own first and last events stay here; `SubSessionCompleted` tells how it ended.
"""

from __future__ import annotations

from collections.abc import Callable

from channels import CancelToken

from . import events
from ._core import StreamCore
from ._open import open_stream
from .agent import Agent
from .session import Session
from .stream import RunResult


def run_nested(
    parent: StreamCore,
    agent: Agent,
    session: Session,
    forward: Callable[[events.Event], None],
    within: CancelToken,
) -> RunResult:
    """Run ``agent`` on ``session`` to its end, passing its events to ``forward``; what it came to.

    It is cancelled when ``within``, the token of the call, is. Raises `RunError` when it ends other than normally,
    `SessionBusy`, and what ``forward`` raises, which ends it too.
    """
    stream = open_stream(
        parent.shared,
        agent,
        session,
        interactive=parent.interactive,
        context=parent.context,
        parent=parent,
        within=within,
    )
    with parent.calls.nested(f"agent {agent.name}", stream._core.calls), stream:
        for event in stream._core.out:  # not the stream itself: it would run here what belongs to the root's consumer
            if isinstance(event, events.StreamStopped):
                forward(events.SubSessionCompleted(session.id, event.reason, **parent.tags))
            elif not isinstance(event, events.StreamStarted):
                forward(event)
        return stream.result()
