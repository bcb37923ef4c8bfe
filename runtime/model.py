"""The `Model` protocol, and the deltas that a model streams.

A model is any object with an ``id`` and a ``stream`` method; nothing needs to be inherited. ``stream`` returns an
asynchronous iterator (network models: it runs as a task on the event loop's thread) or a plain iterator (in-process
models: it runs on a helper thread). Neither ever runs on the worker of a stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from channels import CancelToken

from ._dataclasses import dataclass
from .session._message import Message


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call. Pieces of one call share ``index``, or else ``id``; names and JSON text may come in
    fragments. ``index`` is None where the server does not number its calls; ``arguments`` may be the whole object.
    """

    index: int | None
    id: str = ""
    name: str = ""
    arguments: str | Mapping[str, Any] = ""


@dataclass(frozen=True, slots=True)
class UsageDelta:
    """Tokens this call has used so far: the highest count of each kind is what it came to.

    ``cached_tokens`` and ``cache_write_tokens`` (from and into the provider's cache) are parts of ``input_tokens``,
    ``reasoning_tokens`` is a part of ``output_tokens``: a provider that reports them apart is added up.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FinishDelta:
    """The end of the reply: the ``reason`` is ``stop``, ``tool_calls``, ``length``, or a word of the provider."""

    reason: str


@dataclass(frozen=True, slots=True)
class NativeDelta:
    """Data that the provider wants back with the reply, in its own form, such as signed thoughts: `Message.native`.

    ``content`` is ready for JSON. It comes with the end of a whole reply, and no other provider is shown it.
    """

    provider: str
    content: Any


@dataclass(frozen=True, slots=True)
class FallbackDelta:
    """Another model takes over, before anything of the reply was said: what follows is from ``to_model``."""

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
    """The structured output of a run: its last reply is JSON that fits ``schema``. ``name`` is that of the type."""

    name: str
    schema: Mapping[str, Any]


@runtime_checkable
class Model(Protocol):
    """A language model: any object with an ``id`` and a ``stream`` method. Streams may use it from several threads."""

    @property
    def id(self) -> str:
        """The name shown to people, such as ``local/smollm2-135m``."""

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> AsyncIterator[Delta] | Iterator[Delta]:
        """Answer ``messages`` in deltas, or ask for calls of ``tools``.

        A synchronous model should look at ``cancel`` between deltas and return early once it is cancelled; the stream
        has then already moved on and waits for nobody. Exceptions become an ``error`` event with code ``model_error``.

        An attribute ``context_window``, how many tokens the model takes, lets conversations be made shorter in time. An
        attribute ``settings``, a mapping, is what goes along with each request (``temperature``, ``max_tokens`` ...)
        and the ``base_url`` it goes to: telemetry tells some of it.

        A ``stream`` with a keyword ``output`` is given the `OutputSchema` of a run that has an ``output_type``, for
        providers that can make a model keep to it. The instructions say it too, so nobody needs to have it.
        """
