"""The hooks at the end of a turn and of the stream. They run whatever ended it, and with a bound.

They are owed from the moment that the turn or the stream begins, so no way out can miss them: not even that of an
exception which comes from another thread, and skips what stands in a `finally`. While the stream is open, the worker
waits for them before it goes on. A cancel ends that wait and the stream closes; what had not run by then runs
afterwards, in the same order, with the grace time for the hooks of each point.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from channels import Cancelled, CancelToken, Channel, ChannelClosed

from .._errors import describe
from ..agent._hooks import Hook
from ..execution._calls import Call
from ._core import StreamCore
from ._firing import answer, tell_finished, tell_started

_logger = logging.getLogger(__name__)


class Cleanup:
    """The hooks of ``turn_end`` and ``session_end`` that one stream owes, the last to run first.

    Those of one point run all at once.
    """

    def __init__(self, core: StreamCore) -> None:
        self._core = core
        self._owed: list[_Stage] = []
        self.owe("session_end")

    def owe(self, point: str, **fields: Any) -> None:
        """From here on the hooks at ``point`` will run: when they are `due`, or else in `finish`."""
        self._owed.append(_Stage(point, self._core.hooks.at(point), fields))

    def due(self, point: str, reason: str) -> None:
        """What they were owed for has ended: run them, after those that are left from before; if not now, later."""
        for stage in reversed(self._owed):
            stage.reason = stage.reason or reason
            if stage.point == point:
                break
        self.resume()

    def resume(self) -> None:
        """Run what is due, as long as nobody cancels."""
        while self._owed and self._owed[-1].reason and not self._core.token.cancelled:
            try:
                self._owed[-1].run(self._core)
            except Cancelled:
                return
            self._owed.pop()

    def finish(self) -> None:
        """The stream is closed: run what is left. Commands and coroutines that take too long are ended.

        Doing it twice is harmless.
        """
        while self._owed:
            self._owed[-1].finish(self._core)
            self._owed.pop()

    @property
    def calls(self) -> set[Call]:
        """Those of the hooks, which outlive the other calls of the stream."""
        return {call for stage in self._owed for call, _ in stage.calls}

    def __repr__(self) -> str:
        return f"<Cleanup {len(self._owed)} hook points left>"


class _Stage:
    """The hooks of one point, told the same."""

    def __init__(self, point: str, hooks: list[Hook], fields: dict[str, Any]) -> None:
        self.point = point
        self.reason = ""  # until they are due
        self.calls = [(Call(f"hook {hook.name}", Channel(1)), hook) for hook in hooks]  # not seen to end
        self._to_start = self.calls[:]
        self._fields = fields
        self._commands = CancelToken()

    def _starting(self, core: StreamCore) -> Iterator[Hook]:
        """Start them, each once, also when this is called again."""
        if not self._to_start:
            return
        given = core.hook_input(self.point, reason=self.reason or core.ending.reason, **self._fields)
        while self._to_start:
            call, hook = self._to_start[0]
            try:
                core.calls.launch(call, hook.bound(given, self._commands))
            except Exception as error:
                core.calls.withdraw(call)
                self.calls.remove((call, hook))
                self._log(hook, describe(error))
            # Not before: what an exception interrupts here is started again, and runs once.
            self._to_start.remove((call, hook))
            yield hook

    def run(self, core: StreamCore) -> None:
        """Start them, and wait for each as long as it may take. Raises `Cancelled`."""
        for hook in self._starting(core):
            tell_started(core, self.point, hook)
        while self.calls:
            call, hook = self.calls[0]
            failure = ""
            try:
                call.done.recv(timeout=hook.timeout, cancel=core.token)
            except ChannelClosed:
                failure = _failure(call, hook, self.point)
            except TimeoutError:
                call.cancel()
                failure = f"did not end within {hook.timeout:g} s"
            self.calls.pop(0)
            tell_finished(core, self.point, hook, failure)

    def finish(self, core: StreamCore) -> None:
        """Start those that have not been, and give them the grace time."""
        for _ in self._starting(core):
            pass
        deadline = CancelToken(timeout=core.shared.grace)
        while self.calls:
            call, hook = self.calls[0]
            failure = ""
            try:
                call.done.recv(cancel=deadline)
            except ChannelClosed:
                failure = _failure(call, hook, self.point)
            except Cancelled:
                call.cancel()  # a command is killed below
                failure = f"did not end within the {core.shared.grace:g} s that are left after the end"
            self.calls.pop(0)
            if failure:
                self._log(hook, failure)
        self._commands.cancel("the stream has ended")

    def _log(self, hook: Hook, failure: str) -> None:
        _logger.warning("hook %s at %s failed: %s", hook.name, self.point, failure)


def _failure(call: Call, hook: Hook, point: str) -> str:
    """How a call that is over failed, if it did."""
    _, failure = answer(hook, point, lambda: call.inbox.try_recv().result())
    return failure
