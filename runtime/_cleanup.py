"""The hooks at the end of a turn and of the stream. They run whatever ended it, and with a bound.

While the stream is open, the worker waits for them before it goes on. A cancel ends that wait and the stream closes;
what had not run by then runs afterwards, in the same order, with the grace time for the hooks of each point.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from channels import Cancelled, CancelToken, Channel, ChannelClosed

from . import events
from ._calls import Call
from ._core import StreamCore, describe
from ._hooks import Hook, HookInput

_logger = logging.getLogger(__name__)


class Cleanup:
    """The hooks of ``turn_end`` and ``session_end`` of one stream. Those of one point run all at once."""

    def __init__(self, core: StreamCore) -> None:
        self._core = core
        self._at_start = core.hooks  # of the agent that had the ``session_start`` hooks: it has those of the end, too
        self._stages: list[_Stage] = []

    def fire(self, point: str, **fields: Any) -> None:
        """Run the hooks at ``point``, after those that are left from before; if not now, then in `finish`."""
        hooks = (self._at_start if point == "session_end" else self._core.hooks).at(point)
        if hooks:
            self._stages.append(_Stage(hooks, self._core.hook_input(point, **fields)))
        self.resume()

    def resume(self) -> None:
        """Run what is left, as long as nobody cancels."""
        while self._stages and not self._core.token.cancelled:
            try:
                self._stages[0].run(self._core)
            except Cancelled:
                return
            self._stages.pop(0)

    def finish(self) -> None:
        """The stream is closed: run what is left. Commands and coroutines that take too long are ended."""
        for stage in self._stages:
            stage.finish(self._core)

    @property
    def calls(self) -> set[Call]:
        """Those that are under way: they outlive the other calls of the stream."""
        return {call for stage in self._stages for call, _ in stage.calls}

    def __repr__(self) -> str:
        return f"<Cleanup {len(self._stages)} hook points left>"


class _Stage:
    """The hooks of one point, told the same."""

    def __init__(self, hooks: list[Hook], given: HookInput) -> None:
        self.calls: list[tuple[Call, Hook]] = []  # started, and not seen to end
        self._hooks: Iterator[Hook] = iter(hooks)
        self._given = given
        self._point = given.hook_event_name
        self._commands = CancelToken()

    def _starting(self, core: StreamCore) -> Iterator[Hook]:
        """Start them, each once, also when this is called again."""
        for hook in self._hooks:
            try:
                function = hook.bound(self._given, self._commands)
                self.calls.append((core.calls.start(f"hook {hook.name}", Channel(1), function), hook))
            except Exception as error:
                self._log(hook, describe(error))
            else:
                yield hook

    def run(self, core: StreamCore) -> None:
        """Start them, and wait for each as long as it may take. Raises `Cancelled`."""
        for hook in self._starting(core):
            core.emit(events.HookStarted(self._point, hook.name, **core.tags))
        while self.calls:
            call, hook = self.calls[0]
            failure = ""
            try:
                call.done.recv(timeout=hook.timeout, cancel=core.token)
            except ChannelClosed:
                failure = _failure(call, hook, self._point)
            except TimeoutError:
                call.cancel()
                failure = f"did not end within {hook.timeout:g} s"
            self.calls.pop(0)
            core.emit(events.HookFinished(self._point, hook.name, failure, **core.tags))
            if failure:
                core.emit(events.Warning(f"hook {hook.name} at {self._point} failed: {failure}", **core.tags))

    def finish(self, core: StreamCore) -> None:
        """Start those that have not been, and give them the grace time."""
        for _ in self._starting(core):
            pass
        deadline = CancelToken(timeout=core.shared.grace)
        for call, hook in self.calls:
            try:
                call.done.recv(cancel=deadline)
            except ChannelClosed:
                failure = _failure(call, hook, self._point)
            except Cancelled:
                call.cancel()  # a command is killed below
                failure = f"did not end within the {core.shared.grace:g} s that are left after the end"
            if failure:
                self._log(hook, failure)
        self._commands.cancel("the stream has ended")

    def _log(self, hook: Hook, failure: str) -> None:
        _logger.warning("hook %s at %s failed: %s", hook.name, self._point, failure)


def _failure(call: Call, hook: Hook, point: str) -> str:
    """How a call that is over failed, if it did."""
    try:
        hook.result(point, call.inbox.try_recv().result())
    except BaseException as error:
        return describe(error)
    return ""
