"""What a model says, delta by delta: which objects are deltas, and what they say of its usage."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from channels import Cancelled

from .. import events
from .._errors import describe
from ..human._mailbox import Mail
from ..model import FallbackDelta, FinishDelta, Model, NativeDelta, ReasoningDelta, TextDelta, ToolCallDelta, UsageDelta
from ..stream._core import StreamCore
from ..stream._end_reason import StopRun
from ..stream._private_events import ModelDone
from ..usage import Usage


def is_delta(core: StreamCore, model: Model, delta: Any) -> bool:
    """Whether an object is a delta, and not what the user said meanwhile in the run that this one replays, which goes
    into the mailbox. Raises `StopRun` for an object that is neither."""
    if is_sound(delta):
        return True
    if delta.__class__ is Mail:
        core.mailbox.take(delta)
        return False
    error = TypeError(f"a model yields deltas, such as TextDelta('hello'), not {delta!r:.200}")
    raise failed(core, model, error) from error


def failed(core: StreamCore, model: Model, error: BaseException) -> BaseException:
    """What the worker raises where the model has raised ``error``."""
    if core.token.cancelled:
        return Cancelled(core.token.cause)
    if core.recorded:
        core.emit(ModelDone(error, **core.tags))
    return StopRun("error", "model_error", f"{model.id}: {describe(error)}")


def is_sound(delta: Any) -> bool:
    """Whether an object is a delta, with text where the rest of the turn relies on it."""
    kind = delta.__class__
    if kind is TextDelta or kind is ReasoningDelta:
        return isinstance(delta.text, str)
    if kind is ToolCallDelta:
        texts = isinstance(delta.id, str) and isinstance(delta.name, str)
        return texts and isinstance(delta.arguments, (str, Mapping)) and isinstance(delta.index, (int, NoneType))
    if kind is UsageDelta:
        read, written, *parts = _counts(delta)
        whole = isinstance(read, int) and isinstance(written, int)
        return whole and all(each is None or isinstance(each, int) for each in parts)
    if kind is FinishDelta:
        return isinstance(delta.reason, str)
    return kind is NativeDelta or kind is FallbackDelta


def settle_usage(core: StreamCore, model: str, usage: Usage | None) -> None:
    """Count the usage of a call of ``model`` that left no message, because it failed or was not for the session."""
    if usage is not None:
        usage = core.shared.prices.priced(model, usage)
        core.spending.add(usage)
        core.log.count(usage)
        if not core.token.cancelled:
            report(core, model, usage)


def highest(usage: Usage, delta: UsageDelta) -> Usage:
    """The highest counts of two usage reports: a model may report several times, None for what it does not count."""
    before = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
    )
    return Usage(*(max(known, said or 0) for known, said in zip(before, _counts(delta), strict=True)))


def _counts(delta: UsageDelta) -> tuple[int | None, ...]:
    return (
        delta.input_tokens,
        delta.output_tokens,
        delta.cached_tokens,
        delta.cache_write_tokens,
        delta.reasoning_tokens,
    )


def report(core: StreamCore, model: str, usage: Usage) -> None:
    total = core.spending.usage or usage
    core.emit(
        events.TokenUsage(
            model,
            usage.input_tokens,
            usage.output_tokens,
            total.input_tokens,
            total.output_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
            usage.cost,
            total.cost,
            **core.tags,
        )
    )
