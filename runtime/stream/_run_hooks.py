"""Running the hooks at a point of a stream: one after the other, each with its events.

A `HookRun` is the one way to start a hook and wait for it. The generator `firing` yields a `HookRun` for each hook at
the point. `fire` runs the generator where the worker has nothing else to do. The dispatcher of a turn resumes it among
the calls of the turn, so that the hook of one call does not hold up the others. The hooks at the end of a turn and of a
stream (`_end_hooks`) run all at once, whatever has ended it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from channels import Cancelled, CancelToken, ChannelClosed

from .._dataclasses import replace
from .._errors import HookFailed, NotInTime, describe
from ..agent._hook_points import HOOK_POINTS
from ..agent._hooks import Hook, HookInput, HookResult, Hooks, nothing
from ..events import Event, HookFinished, HookStarted, Warning
from ..execution._calls import Call, Calls, Inbox, Kept, Outcome
from ._end_reason import Tags


class HookRun:
    """One run of a hook, on a helper thread or as a task. Starting it twice is harmless. It is waited for up to its
    timeout. ``given`` may be set until it is started; ``cancel`` ends a command.
    """

    def __init__(self, hook: Hook, cancel: CancelToken, given: HookInput | None = None) -> None:
        self.hook = hook
        self.given = given
        self._cancel = cancel
        self._kept = Kept()
        self.call = Call(f"hook {hook.name}", self._kept)

    def start(self, calls: Calls, inbox: Inbox | None = None) -> None:
        """Start the hook. Its `Finished` goes to ``inbox``, unless `wait` waits for it."""
        assert self.given is not None
        self.call.inbox = inbox or self._kept
        calls.begin(self.call, self.hook.bound(self.given, self._cancel))

    def wait(self, timeout: float | None, cancel: CancelToken) -> Outcome:
        """Wait for the outcome, up to ``timeout`` seconds. Raises `Cancelled`, and may be called again then."""
        try:
            self.call.done.recv(timeout, cancel)
        except TimeoutError:
            return self.late(timeout)
        except ChannelClosed:
            pass
        return self._kept.outcome or Outcome(None, HookFailed(f"{self.call.what} did not say how it ended"))

    def late(self, seconds: float | None) -> Outcome:
        """Let go of the hook when its time is up, and return that as its outcome."""
        self.call.cancel()
        return Outcome(None, NotInTime(f"{self.call.what} did not end within {seconds:g} s"))

    def __repr__(self) -> str:
        return f"<HookRun {self.call!r}>"


class Hooked(Protocol):
    """The part of a stream that running its hooks needs."""

    hooks: Hooks
    tags: Tags
    token: CancelToken
    calls: Calls

    def emit(self, event: Event) -> None: ...
    def hook_input(self, point: str, **fields: Any) -> HookInput: ...


def firing(core: Hooked, point: str, **fields: Any) -> Generator[HookRun, Outcome, HookResult]:
    """Run the hooks at ``point``, one after the other; each gets the input as the one before it has changed it.

    The first hook that blocks or allows is the last one that runs; their contexts are joined. A hook that fails is
    reported as a `Warning` event and otherwise ignored, but a hook at a point of `GUARDS` that fails blocks.
    """
    hooks = core.hooks.at(point, fields.get("tool_name", ""))
    if not hooks:
        return nothing()
    given = core.hook_input(point, **fields)
    contexts = []
    changed: dict[str, Any] = {}
    for hook in hooks:
        tell_started(core, point, hook)
        outcome = yield HookRun(hook, core.token, given)
        result, failure = answer(hook, point, outcome.result)
        tell_finished(core, point, hook, failure)
        if failure and HOOK_POINTS[point].guards:
            result = HookResult(block=True, reason=f"hook {hook.name} failed: {failure}")
        if result.context:
            contexts.append(result.context)
        if result.updated_input is not None:
            changed["updated_input"] = result.updated_input
            given = replace(given, tool_input=result.updated_input)
        if result.updated_response is not None:
            changed["updated_response"] = result.updated_response
            given = replace(given, tool_response=result.updated_response)
        if result.block or result.allow:
            return replace(result, **changed)
    return HookResult(context="\n".join(contexts), **changed)


def fire(core: Hooked, point: str, **fields: Any) -> HookResult:
    """Run the hooks at ``point``, wait for them, and return their joint result. Raises `Cancelled`."""
    steps = firing(core, point, **fields)
    try:
        run = next(steps)
        while True:
            run.start(core.calls)
            outcome = run.wait(run.hook.timeout, core.token)
            if outcome.error is not None and core.token.cancelled:
                raise Cancelled(core.token.cause) from outcome.error
            run = steps.send(outcome)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def answer(hook: Hook, point: str, returned: Callable[[], Any]) -> tuple[HookResult, str]:
    """The result of the hook, or else how it failed. ``returned`` gives the hook's return value or raises its
    exception."""
    try:
        return hook.result(point, returned()), ""
    except BaseException as error:
        return nothing(), describe(error)


def tell_started(core: Hooked, point: str, hook: Hook) -> None:
    core.emit(HookStarted(point, hook.name, **core.tags))


def tell_finished(core: Hooked, point: str, hook: Hook, failure: str) -> None:
    core.emit(HookFinished(point, hook.name, failure, **core.tags))
    if failure:
        core.emit(Warning(f"hook {hook.name} at {point} failed: {failure}", **core.tags))
