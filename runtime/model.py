"""The `Model` protocol, and the deltas that a model streams.

A model is any object with an ``id`` and a ``stream`` method; nothing needs to be inherited. ``stream`` returns an
asynchronous iterator (network models: it runs as a task on the event loop's thread) or a plain iterator (in-process
models: it runs on a thread of its stream, whose worker rests meanwhile).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from channels import CancelToken

from ._dataclasses import dataclass, short_repr
from .session._message import Message


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the reply."""

    text: str

    __repr__ = short_repr


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the model's reasoning."""

    text: str

    __repr__ = short_repr


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call. The pieces of one call have the same ``index``, or else the same ``id``; the name and the
    JSON text may come in fragments. ``index`` is None if the server does not number its calls; ``arguments`` may be the
    whole object.
    """

    index: int | None
    id: str = ""
    name: str = ""
    arguments: str | Mapping[str, Any] = ""

    __repr__ = short_repr


@dataclass(frozen=True, slots=True)
class UsageDelta:
    """The tokens that this model call has used so far. If there are several of these deltas, the highest count of each
    kind is used.

    ``cached_tokens`` and ``cache_write_tokens`` (read from and written to the provider's cache) are included in
    ``input_tokens``, and ``reasoning_tokens`` in ``output_tokens``. For a provider that reports them separately, add
    them up.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FinishDelta:
    """The end of the reply: the ``reason`` is ``stop``, ``tool_calls``, ``length``, or the provider's own word."""

    reason: str


@dataclass(frozen=True, slots=True)
class NativeDelta:
    """Data in the provider's own format that has to be sent back to it with the reply, such as signed thinking blocks:
    `Message.native`.

    ``content`` is JSON-ready. The delta is sent at the end of a complete reply. Other providers are not shown the data.
    """

    provider: str
    content: Any

    __repr__ = short_repr


@dataclass(frozen=True, slots=True)
class FallbackDelta:
    """Another model takes over before any of the reply was sent: the rest of the deltas are from ``to_model``."""

    from_model: str
    to_model: str
    reason: str


Delta: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | UsageDelta | FinishDelta | NativeDelta | FallbackDelta


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A tool as a model sees it: ``parameters`` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OutputSchema:
    """The structured output of a run: its last reply has to be JSON that fits ``schema``. ``name`` is the type's
    name."""

    name: str
    schema: Mapping[str, Any]


@runtime_checkable
class Model(Protocol):
    """A language model: any object with an ``id`` and a ``stream`` method. Streams may call it from several threads."""

    @property
    def id(self) -> str:
        """The name shown to people, such as ``local/smollm2-135m``."""

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> AsyncIterator[Delta] | Iterator[Delta]:
        """Reply to ``messages``, as an iterable or asynchronous iterable of deltas. The reply may call ``tools``.

        A synchronous model should check ``cancel`` between deltas and return early once it is cancelled; the stream
        does not wait for it. An exception becomes an `Error` event with code ``model_error``.

        Three things are optional. The attribute ``context_window`` is the number of tokens that the model takes, so
        that conversations are shortened in time. The attribute ``settings`` is a mapping of the parameters of each
        request (``temperature``, ``max_tokens`` ...) and its ``base_url``, some of which telemetry reports. If
        ``stream`` has a keyword argument ``output``, it is given the `OutputSchema` of a run with an ``output_type``,
        for providers that can make a model keep to a schema.
        """
