"""Hooks that run beside the tool calls of a turn: how they end is a message to the worker, like the end of a call.

So a hook of one call keeps no other call waiting, and holds no thread but the one it runs on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from channels import CancelToken, Channel, ChannelClosed

from .._errors import NotInTime
from ..agent._hooks import NOTHING, HookResult
from ..execution._calls import Call, Finished, Outcome
from ._core import StreamCore

Then = Callable[[HookResult], None]


@dataclass(frozen=True, slots=True)
class _Late:
    """A message to the worker: a hook has had its time."""

    call: Call
    timeout: float


@dataclass(frozen=True, slots=True)
class _Step:
    """One hook under way; ``steps`` goes on when it has ended, ``then`` when all have."""

    steps: Generator[Any, Outcome | None, HookResult]
    then: Then
    deadline: CancelToken  # it goes when nobody holds it


class Firings:
    """The hooks under way of one turn. Used by the worker's thread; what they post goes to ``inbox``."""

    def __init__(self, core: StreamCore, inbox: Channel[Any]) -> None:
        self._core = core
        self._inbox = inbox
        self._under_way: dict[Call, _Step] = {}
        self._late: set[Call] = set()

    def start(self, point: str, then: Then, **fields: Any) -> None:
        """Run the hooks at ``point``, then call ``then`` with what they come to: at once, where there are none."""
        if self._core.hooks.at(point, fields.get("tool_name", "")):
            self._step(self._core.firing(point, **fields), then, None)
        else:
            then(NOTHING)

    def take(self, message: Any) -> bool:
        """Go on, where ``message`` is about a hook; whether it was."""
        if not isinstance(message, (Finished, _Late)):
            return False
        step = self._under_way.pop(message.call, None)
        if step is None:
            return isinstance(message, _Late) or message.call in self._late
        outcome: Outcome
        if isinstance(message, _Late):
            self._late.add(message.call)
            message.call.cancel()
            outcome = Outcome(None, NotInTime(f"{message.call.what} did not end within {message.timeout:g} s"))
        else:
            outcome = message
        self._step(step.steps, step.then, outcome)
        return True

    def _step(self, steps: Generator[Any, Outcome | None, HookResult], then: Then, outcome: Outcome | None) -> None:
        try:
            hook, function = steps.send(outcome)
        except StopIteration as end:
            then(end.value)
            return
        call = self._core.calls.start(f"hook {hook.name}", self._inbox, function)
        deadline = CancelToken(timeout=hook.timeout)
        self._under_way[call] = _Step(steps, then, deadline)
        deadline.on_cancel(lambda: self._post(_Late(call, hook.timeout)))

    def _post(self, message: _Late) -> None:
        with contextlib.suppress(ChannelClosed):
            self._inbox.try_send(message)

    def __len__(self) -> int:
        return len(self._under_way)

    def __repr__(self) -> str:
        return f"<Firings {len(self)} under way>"
