"""What models that are made of other models have in common.

A wrapper runs where its models do: as an asynchronous generator on the loop's thread where all of them are, so that a
reply over the network costs no thread; else as a plain generator on a helper thread, which waits for those on the loop.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import astuple
from typing import Any, Final, Protocol, TypeAlias, cast

from channels import CancelToken

from .._checks import check
from ..agent._output import output_for
from ..model import (
    Delta,
    FallbackDelta,
    Model,
    OutputSchema,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
    UsageDelta,
)
from ..session._message import Message

Messages: TypeAlias = Sequence[Message]
Tools: TypeAlias = Sequence[ToolDefinition]


class _Stream(Protocol):
    def __call__(
        self, messages: Messages, tools: Tools, *, cancel: CancelToken, output: OutputSchema | None = None
    ) -> AsyncIterator[Delta] | Iterator[Delta]: ...


class Wrapper:
    """A model made of others. It has both forms of a stream, and uses the one that fits them."""

    def __init__(self, *models: Model) -> None:
        for model in models:
            if isinstance(model, type):
                raise TypeError(f"a model is an object, not the class {model.__name__} itself")
            check("a model", model, Model, "an object with an id and a stream method")
        windows = [window for model in models if (window := getattr(model, "context_window", None)) is not None]
        #: As the protocol has it: what all of them take, as far as they know.
        self.context_window: int | None = min(windows, default=None)
        on_loop = all(inspect.isasyncgenfunction(model.stream) for model in models)
        #: As the protocol `Model` has it.
        self.stream: _Stream = self._on_loop if on_loop else self._on_thread

    def _on_loop(
        self, messages: Messages, tools: Tools, *, cancel: CancelToken, output: OutputSchema | None = None
    ) -> AsyncIterator[Delta]:
        raise NotImplementedError

    def _on_thread(
        self, messages: Messages, tools: Tools, *, cancel: CancelToken, output: OutputSchema | None = None
    ) -> Iterator[Delta]:
        raise NotImplementedError


def on_loop(
    model: Model, messages: Messages, tools: Tools, cancel: CancelToken, output: OutputSchema | None
) -> aclosing[AsyncGenerator[Delta, None]]:
    """The deltas of an asynchronous model. Leaving the ``with`` block ends it there and then."""
    source = model.stream(messages, tools, cancel=cancel, **output_for(model, output))
    return aclosing(cast("AsyncGenerator[Delta, None]", source))


@contextmanager
def on_thread(
    model: Model, messages: Messages, tools: Tools, cancel: CancelToken, output: OutputSchema | None
) -> Iterator[Iterator[Delta]]:
    """The deltas of any model, waited for in this thread."""
    source: Any = model.stream(messages, tools, cancel=cancel, **output_for(model, output))
    if hasattr(source, "__aiter__"):
        from channels.aio import default_loop

        source = default_loop().iterate(source, cancel=cancel)
    try:
        yield iter(source)
    finally:
        close: Callable[[], None] | None = getattr(source, "close", None)
        if close is not None:
            close()


class Used:
    """What several attempts of one model use. Each counts from nothing, and all of them are paid for."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._answering = model.id
        self._before = self._now = _NOTHING

    def add(self, delta: Delta) -> Delta:
        """``delta``; where it says what this attempt has used, with what those before have."""
        if isinstance(delta, FallbackDelta):  # what was used so far was another one's
            self._answering = delta.to_model
            self._before = self._now = _NOTHING
        if not isinstance(delta, UsageDelta):
            return delta
        counts = tuple(each if isinstance(each, int) else 0 for each in astuple(delta))
        self._now = tuple(map(max, self._now, counts))
        return UsageDelta(*_sums(self._before, counts))

    def again(self, reason: str) -> Iterator[FallbackDelta]:
        """The model is asked anew. What is made of several may have come to another one meanwhile, and is back."""
        self._before, self._now = _sums(self._before, self._now), _NOTHING
        if self._answering != self._model.id:
            before, self._answering = self._answering, self._model.id
            self._before = _NOTHING
            yield FallbackDelta(before, self._model.id, reason)


_NOTHING: Final[tuple[int, ...]] = (0,) * len(astuple(UsageDelta()))


def _sums(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(sum, zip(one, other, strict=True)))


def is_said(delta: Delta) -> bool:
    """Whether the consumer has seen it: then another attempt would say it twice."""
    return delta.__class__ in (TextDelta, ReasoningDelta, ToolCallDelta)
