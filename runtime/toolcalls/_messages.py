"""What is said to the worker while the calls of a turn are under way, by tools, nested streams, timers, and whoever
answers for the user. It is posted to the inbox of the turn; who posts does not wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from channels import CancelToken, Channel, ChannelClosed

from .. import events
from .._dataclasses import dataclass
from ..agent._tool import Answer, Question
from ..human._asks import Ask
from ..permissions import Decision
from ..session._message import ToolCall
from ..stream._run_hooks import HookRun


@dataclass(frozen=True, slots=True)
class Asked:
    """The tool of the call ``call_id`` asks the user. ``settled`` takes the answer; it does not wait, and may be called
    twice.

    ``dropped`` is cancelled when the tool does not want to know any more.
    """

    call_id: str
    question: Question
    settled: Callable[[Answer], object]
    dropped: CancelToken


@dataclass(slots=True, eq=False)
class Resumed:
    """The tool of the call ``call_id`` no longer waits for the user or for the consumer's thread. It may come twice,
    and
    counts once.
    """

    call_id: str
    request_id: str = ""  # of the question that was answered
    answer: Answer | None = None
    taken: bool = False


@dataclass(frozen=True, slots=True)
class Decided:
    """The user has approved or rejected a call, or the time to do so is over. It may come twice."""

    ask: Ask[ToolCall, Decision]
    decision: Decision


@dataclass(frozen=True, slots=True)
class Late:
    """The time of a hook is up."""

    run: HookRun


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An event of a nested stream. The worker returns one credit when it has taken the message (back-pressure)."""

    event: events.Event
    credits: Channel[None]


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of the tool of the call ``call_id``. The worker returns one credit when it has taken the message."""

    call_id: str
    output: str
    progress: float | None
    total: float | None
    credits: Channel[None]


@dataclass(frozen=True, slots=True)
class NestedParked:
    """The nested stream of an agent that the call runs is parked."""

    call_id: str


@dataclass(frozen=True, slots=True)
class Park:
    """The stream is to be parked."""


@dataclass(frozen=True, slots=True)
class Fire:
    """A nested stream has reached a point for which this stream has hooks; ``done`` closes when they have run."""

    point: str
    fields: Mapping[str, Any]
    done: Channel[None]


def posting(inbox: Channel[Any], message: object) -> Callable[[], None]:
    """A function that sends the message to the worker, unless its inbox is closed."""

    def post() -> None:
        with contextlib.suppress(ChannelClosed):
            inbox.try_send(message)

    return post
