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
from ..stream._firing import HookRun


@dataclass(frozen=True, slots=True)
class Asked:
    """The tool of ``call_id`` asks; ``settled`` takes the answer, and does not wait. It may be called twice.

    ``dropped`` is cancelled when the tool does not want to know any more.
    """

    call_id: str
    question: Question
    settled: Callable[[Answer], object]
    dropped: CancelToken


@dataclass(slots=True, eq=False)
class Resumed:
    """What the tool of ``call_id`` waited for is over: the user, or the consumer's thread. It may come twice, and
    counts once.
    """

    call_id: str
    request_id: str = ""  # of the question that was answered
    taken: bool = False


@dataclass(frozen=True, slots=True)
class Decided:
    """What the user has said about a call, or the time to do so is over. It may come twice."""

    ask: Ask[ToolCall, Decision]
    decision: Decision


@dataclass(frozen=True, slots=True)
class Late:
    """A hook has had its time."""

    run: HookRun


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An event of a nested stream. Taking it gives one credit back."""

    event: events.Event
    credits: Channel[None]


@dataclass(frozen=True, slots=True)
class Progress:
    """What the tool of ``call_id`` says while it runs. Taking it gives one credit back."""

    call_id: str
    output: str
    progress: float | None
    total: float | None
    credits: Channel[None]


@dataclass(frozen=True, slots=True)
class NestedParked:
    """The agent that the call runs is parked."""

    call_id: str


@dataclass(frozen=True, slots=True)
class Park:
    """The stream is to be parked."""


@dataclass(frozen=True, slots=True)
class Fire:
    """A nested stream has come to a point where this one has hooks; ``done`` closes when they have run."""

    point: str
    fields: Mapping[str, Any]
    done: Channel[None]


def posting(inbox: Channel[Any], message: object) -> Callable[[], None]:
    """A function that tells the worker, if it still listens."""

    def post() -> None:
        with contextlib.suppress(ChannelClosed):
            inbox.try_send(message)

    return post
