"""The hooks at a point of a stream: run one after the other, and told in its events.

There is one way to do so, the generator `firing`, which yields each hook that it waits for. `fire` steps it where the
worker has nothing else to do; the calls of a turn step it beside others, so that a hook of one keeps no other waiting.
The hooks at the end of a turn and of a stream (`_end_hooks`) run all at once, whatever ends it; they are told the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from channels import Cancelled, CancelToken

from .._errors import describe
from ..agent._hooks import GUARDS, NOTHING, Hook, HookInput, HookResult, Hooks
from ..events import Event, HookFinished, HookStarted, Warning
from ..execution._calls import Calls, Outcome
from ._reason import Tags


class HookCall(NamedTuple):
    """A hook to be run by ``function``, on a helper or as a task. What waits for it is sent its `Outcome`."""

    hook: Hook
    function: Callable[[], Any]


class Hooked(Protocol):
    """A stream, as its hooks know it."""

    hooks: Hooks
    tags: Tags
    token: CancelToken
    calls: Calls

    def emit(self, event: Event) -> None: ...
    def hook_input(self, point: str, **fields: Any) -> HookInput: ...


def firing(core: Hooked, point: str, **fields: Any) -> Generator[HookCall, Outcome, HookResult]:
    """The hooks at ``point``, one after the other, each told what the one before has changed.

    The first hook that blocks or allows is the last; context adds up. One that fails is a `Warning` event and nothing
    more, but a guard that fails lets nothing pass.
    """
    hooks = core.hooks.at(point, fields.get("tool_name", ""))
    if not hooks:
        return NOTHING
    given = core.hook_input(point, **fields)
    contexts = []
    changed: dict[str, Any] = {}
    for hook in hooks:
        tell_started(core, point, hook)
        outcome = yield HookCall(hook, hook.bound(given, core.token))
        result, failure = answer(hook, point, outcome.result)
        tell_finished(core, point, hook, failure)
        if failure and point in GUARDS:
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
    """Run the hooks at ``point``, and wait for them: what they come to. Raises `Cancelled`."""
    steps = firing(core, point, **fields)
    try:
        hook, function = next(steps)
        while True:
            try:
                outcome = Outcome(core.calls.run(f"hook {hook.name}", function, timeout=hook.timeout), None)
            except BaseException as error:
                if core.token.cancelled:
                    raise Cancelled(core.token.cause) from error
                outcome = Outcome(None, error)
            hook, function = steps.send(outcome)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def answer(hook: Hook, point: str, returned: Callable[[], Any]) -> tuple[HookResult, str]:
    """What the hook has answered, or how it failed: ``returned`` says what it returned, or raises what it raised."""
    try:
        return hook.result(point, returned()), ""
    except BaseException as error:
        return NOTHING, describe(error)


def tell_started(core: Hooked, point: str, hook: Hook) -> None:
    core.emit(HookStarted(point, hook.name, **core.tags))


def tell_finished(core: Hooked, point: str, hook: Hook, failure: str) -> None:
    core.emit(HookFinished(point, hook.name, failure, **core.tags))
    if failure:
        core.emit(Warning(f"hook {hook.name} at {point} failed: {failure}", **core.tags))
