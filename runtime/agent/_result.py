"""`RunResult`: the result of a run."""

from __future__ import annotations

from typing import Generic, TypeVar

from .._dataclasses import dataclass, shown
from .._errors import StreamStuck
from ..events import StopReason
from ..session._message import Message
from ..usage import Usage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunResult(Generic[T]):
    """The result of a run: the final text, the messages that the run added, its usage, the reason why it ended.

    ``usage`` includes nested streams; `Session.usage` is the usage of the session. ``output`` is the value that the
    text holds, if the run or its agent has an ``output_type``. ``stuck`` lists calls that have not ended yet, such as a
    tool that was given up.

    ``error`` is set only in results of `Runtime.map`, where a run that failed does not end the others: it is the
    `RunError` that `Runtime.run` would have raised, or the exception that kept the run from starting. The other fields
    then tell what there was until the failure.
    """

    text: str
    messages: tuple[Message, ...]
    usage: Usage
    reason: StopReason
    output: T = None  # type: ignore[assignment]
    stuck: StreamStuck | None = None
    error: Exception | None = None

    def __repr__(self) -> str:
        """Without the messages, of which there may be hundreds."""
        count = len(self.messages)
        said = [f"text={shown(self.text)}", f"messages=<{count} message{'s' if count != 1 else ''}>"]
        said += [f"usage={self.usage!r}", f"reason={self.reason!r}"]
        others = ((name, getattr(self, name)) for name in ("output", "stuck", "error"))
        said += [f"{name}={shown(value)}" for name, value in others if value is not None]
        return f"RunResult({', '.join(said)})"
