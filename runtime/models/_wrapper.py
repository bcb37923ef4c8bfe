"""The base of models that are made of other models.

A wrapper runs where its models do: as an asynchronous generator on the loop's thread where all of them are, so that a
reply over the network costs no thread; else as a plain generator on a thread, which waits for those on the loop.
What it does is written once, as `Wrapper._steps`, and both forms step it: they cannot differ.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

from channels import CancelToken, ChannelClosed

from .._checks import check
from .._dataclasses import astuple, dataclass
from ..agent._output import output_for
from ..execution._pump import reading
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

if TYPE_CHECKING:
    from channels.aio import LoopThread

Messages: TypeAlias = Sequence[Message]
Tools: TypeAlias = Sequence[ToolDefinition]


class _Stream(Protocol):
    def __call__(
        self, messages: Messages, tools: Tools, *, cancel: CancelToken, output: OutputSchema | None = None
    ) -> AsyncIterator[Delta] | Iterator[Delta]: ...


@dataclass(slots=True)
class Attempt:
    """A step: ask ``model``, and pass on its deltas. What the model raises is raised where the step was yielded."""

    model: Model
    used: Used | None = None  # where what the attempts use is added up
    said: bool = False  # whether the consumer has seen a piece of the reply

    def passed(self, delta: Delta) -> Delta:
        self.said = self.said or is_said(delta)
        return delta if self.used is None else self.used.add(delta)


@dataclass(frozen=True, slots=True)
class Pause:
    """A step: wait for so many ``seconds``. A cancel meanwhile ends the reply."""

    seconds: float


Steps: TypeAlias = Generator[Attempt | Pause | FallbackDelta, None, None]


class Wrapper:
    """A model made of others. It has both forms of a stream, and uses the one that fits them."""

    def __init__(self, *models: Model) -> None:
        for model in models:
            if isinstance(model, type):
                raise TypeError(f"a model must be an object, not the class {model.__name__} itself")
            check("a model", model, Model, "an object with an id and a stream method")
        windows = [window for model in models if (window := getattr(model, "context_window", None)) is not None]
        #: As the protocol has it: what all of them take, as far as they know.
        self.context_window: int | None = min(windows, default=None)
        self._first = models[0]
        on_loop = all(inspect.isasyncgenfunction(model.stream) for model in models)
        #: As the protocol `Model` has it.
        self.stream: _Stream = self._on_loop if on_loop else self._on_thread

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of the first model, as the protocol `Model` has them."""
        settings: Mapping[str, Any] = getattr(self._first, "settings", {})
        return settings

    def _steps(self, cancel: CancelToken) -> Steps:
        """What one reply takes: which models are asked, what is waited for, and what the consumer is told between."""
        raise NotImplementedError

    async def _on_loop(
        self, messages: Messages, tools: Tools, *, cancel: CancelToken, output: OutputSchema | None = None
    ) -> AsyncIterator[Delta]:
        with closing(self._steps(cancel)) as steps:
            step = next(steps, None)
            while step is not None:
                if isinstance(step, Attempt):
                    try:
                        async with on_loop(step.model, messages, tools, cancel, output) as deltas:
                            async for delta in deltas:
                                yield step.passed(delta)
                    except Exception as error:
                        step = steps.throw(error)
                        continue
                elif isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    yield step
                step = next(steps, None)

    def _on_thread(
        self, messages: Messages, tools: Tools, *, cancel: CancelToken, output: OutputSchema | None = None
    ) -> Iterator[Delta]:
        with closing(self._steps(cancel)) as steps:
            step = next(steps, None)
            while step is not None:
                if isinstance(step, Attempt):
                    try:
                        with on_thread(step.model, messages, tools, cancel, output) as deltas:
                            for delta in deltas:
                                yield step.passed(delta)
                    except Exception as error:
                        step = steps.throw(error)
                        continue
                elif isinstance(step, Pause):
                    try:
                        cancel.done.recv(timeout=step.seconds)
                    except TimeoutError:
                        pass
                    except ChannelClosed:
                        return
                else:
                    yield step
                step = next(steps, None)


def on_loop(
    model: Model, messages: Messages, tools: Tools, cancel: CancelToken, output: OutputSchema | None
) -> aclosing[AsyncGenerator[Delta, None]]:
    """The deltas of an asynchronous model. Leaving the ``with`` block ends it there and then."""
    source = model.stream(messages, tools, cancel=cancel, **output_for(model, output))
    return aclosing(cast("AsyncGenerator[Delta, None]", source))


def on_thread(
    model: Model, messages: Messages, tools: Tools, cancel: CancelToken, output: OutputSchema | None
) -> AbstractContextManager[Iterator[Delta]]:
    """The deltas of any model, waited for in the thread that enters the ``with`` block."""
    asked = partial(model.stream, messages, tools, cancel=cancel, **output_for(model, output))
    return reading(asked, _loop, cancel)


def _loop() -> LoopThread:
    from channels.aio import default_loop  # slow, and only needed for models on the loop

    return default_loop()


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
    """Whether the consumer sees ``delta``: then another attempt would say it twice."""
    return delta.__class__ in (TextDelta, ReasoningDelta, ToolCallDelta)
