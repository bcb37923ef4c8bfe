"""The hooks at the end of a turn and of the stream. They run whatever ended the turn or the stream, within a bounded
time.

These hooks are registered when the turn or the stream begins, so that no way out misses them, not even an exception
from another thread that skips a `finally`. While the stream is open, the worker waits for them before it goes on. A
cancel ends this wait, and the stream closes; hooks that have not run by then run afterwards, in the same order, and the
hooks of each point get the grace time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from channels import Cancelled, CancelToken
from channels._lazy import lazy_logger

from ..agent._hooks import Hook
from ..execution._calls import Call
from ._core import StreamCore
from ._run_hooks import HookRun, answer, tell_finished, tell_started

_logger = lazy_logger("runtime")


class Cleanup:
    """The hooks of ``turn_end`` and ``session_end`` that a stream still has to run, the last registered first.

    The hooks of one point run all at once.
    """

    def __init__(self, core: StreamCore) -> None:
        self._core = core
        self._owed = [_Stage("session_end", core.hooks.at("session_end"), {})]

    def owe(self, point: str, **fields: Any) -> None:
        """Register the hooks at ``point``: from here on they will run, in `due` or else in `finish`."""
        if hooks := self._core.hooks.at(point):  # which most turns have none of
            self._owed.append(_Stage(point, hooks, fields))

    def due(self, point: str, reason: str) -> None:
        """The turn or the stream of the hooks at ``point`` has ended: run them, after hooks that are left from before.
        If a cancel prevents this, they run later.
        """
        if point in [stage.point for stage in self._owed]:
            for stage in reversed(self._owed):
                stage.reason = stage.reason or reason
                if stage.point == point:
                    break
        self.resume()

    def resume(self) -> None:
        """Run the hooks that are due, until a cancel."""
        while self._owed and self._owed[-1].reason and not self._core.token.cancelled:
            try:
                self._owed[-1].run(self._core)
            except Cancelled:
                return
            self._owed.pop()

    def finish(self) -> None:
        """Run the hooks that are left, now that the stream is closed. Commands and coroutines that take too long are
        ended.

        Doing it twice is harmless.
        """
        while self._owed:
            self._owed[-1].finish(self._core)
            self._owed.pop()

    @property
    def calls(self) -> set[Call]:
        """The calls of these hooks, which go on when the other calls of the stream are let go."""
        return {run.call for stage in self._owed for run in stage.runs}

    def __repr__(self) -> str:
        return f"<Cleanup {len(self._owed)} hook points left>"


class _Stage:
    """The hooks of one point, which all get the same input."""

    def __init__(self, point: str, hooks: list[Hook], fields: dict[str, Any]) -> None:
        self.point = point
        self.reason = ""  # until they are due
        self._fields = fields
        self._commands = commands = CancelToken() if hooks else None
        self.runs = [] if commands is None else [HookRun(hook, commands) for hook in hooks]  # not seen to end
        self._to_start = self.runs[:]

    def _starting(self, core: StreamCore) -> Iterator[Hook]:
        """Start the hooks, each of them once, even if this is called again."""
        if not self._to_start:
            return
        given = core.hook_input(self.point, reason=self.reason or core.ending.reason, **self._fields)
        while self._to_start:
            run = self._to_start[0]
            run.given = given
            run.start(core.calls)
            # Not before: what an exception interrupts here is started again, and runs once.
            self._to_start.remove(run)
            yield run.hook

    def run(self, core: StreamCore) -> None:
        """Start the hooks, and wait for each of them up to its timeout. Raises `Cancelled`."""
        if self._commands is None:
            return
        for hook in self._starting(core):
            tell_started(core, self.point, hook)
        while self.runs:
            run = self.runs[0]
            outcome = run.wait(run.hook.timeout, core.token)
            _, failure = answer(run.hook, self.point, outcome.result)
            self.runs.pop(0)
            tell_finished(core, self.point, run.hook, failure)

    def finish(self, core: StreamCore) -> None:
        """Start the hooks that were not started, and give all of them the grace time."""
        if self._commands is None:
            return
        for _ in self._starting(core):
            pass
        deadline = CancelToken(timeout=core.shared.grace)
        while self.runs:
            run = self.runs[0]
            try:
                outcome = run.wait(None, deadline)
            except Cancelled:
                outcome = run.late(core.shared.grace)  # a command is killed below
            _, failure = answer(run.hook, self.point, outcome.result)
            self.runs.pop(0)
            if failure:
                _logger.warning("hook %s at %s failed: %s", run.hook.name, self.point, failure)
        self._commands.cancel("the stream has ended")
