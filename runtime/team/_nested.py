"""Nested streams: an agent that a tool runs, on the tool's own thread.

The events of the nested stream reach the parent's consumer with the id of the nested session, and that consumer answers
its questions. The first and the last event of the nested stream are not passed on; `SubSessionCompleted` tells how it
ended.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, Final

from channels import CancelToken

from .. import events
from ..agent._agent import Agent
from ..agent._result import RunResult
from ..execution._calls import Call
from ..session._session import Session
from ..stream._core import StreamCore
from ..stream._event_stream import EventStream
from ..stream._open import open_stream

MAX_DEPTH: Final = 10  # streams inside each other: all but the innermost hold two threads, and only wait

Forward = Callable[[events.Event], None]
Fire = Callable[..., object]


def open_nested(
    parent: StreamCore,
    agent: Agent,
    session: Session,
    *,
    interactive: bool,
    within: CancelToken,
    call_id: str | None = None,
) -> EventStream:
    """A stream of ``agent`` on ``session``, which is cancelled when ``within`` is. It has the context of the tool that
    opens it, so that what the tool has set is seen in there, and the trace of one is in that of the other. Raises
    `SessionBusy`.
    """
    if len(parent.line) > MAX_DEPTH:
        names = " > ".join(core.agent.name for core in parent.line)
        raise RuntimeError(f"nested runs can be at most {MAX_DEPTH} deep: {names}")
    return open_stream(
        parent.shared,
        agent,
        session,
        interactive=interactive,
        context=contextvars.copy_context(),
        parent=parent,
        within=within,
        call_id=call_id,
    )


def follow(
    parent: StreamCore, stream: EventStream, forward: Forward, fire: Fire, call: Call | None = None
) -> RunResult[Any]:
    """Read a nested stream to its end, pass its events to ``forward``, and return its result.

    ``call`` is what the parent expects of it, where it did before. The hooks that the parent has for its end are run
    by ``fire``. Raises `RunError` when it ends other than normally, and what ``forward`` and ``fire`` raise, which ends
    it too.
    """
    session = stream.session
    call = call or parent.calls.expect(f"agent {stream._core.agent.name}", stream._core.calls)
    with parent.calls.nested(call), stream:
        for event in stream._core.out:  # not the stream itself: it would run here what belongs to the root's consumer
            if isinstance(event, events.StreamStopped):
                if event.reason == "waiting":  # and so will be the parent: nothing has ended
                    continue
                forward(events.SubSessionCompleted(session.id, event.reason, **parent.tags))
                if parent.hooks.at("subagent_stop"):
                    fire(
                        "subagent_stop",
                        sub_agent=event.agent_name,
                        sub_session_id=session.id,
                        reason=event.reason,
                        response=last_words(session),
                    )
            elif not isinstance(event, events.StreamStarted):
                forward(event)
        return stream.result()


def last_words(session: Session) -> str:
    """The last reply of the agent."""
    return next((message.content for message in reversed(session._messages) if message.role == "assistant"), "")
