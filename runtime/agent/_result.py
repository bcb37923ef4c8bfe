"""`RunResult`: the result of a run."""

from __future__ import annotations

from typing import Generic, TypeVar

from .._dataclasses import dataclass
from .._errors import StreamStuck
from ..events import StopReason
from ..session._message import Message
from ..usage import Usage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunResult(Generic[T]):
    """The result of a run: the final text, the messages it added, what it used, the reason of its end.

    ``usage`` counts the streams nested in it too; that of the session is `Session.usage`. ``output`` is what the text
    says, where the run or its agent has an ``output_type``. ``stuck`` names what of the run has not ended yet, such as
    a tool that was given up, if something has not.
    """

    text: str
    messages: tuple[Message, ...]
    usage: Usage
    reason: StopReason
    output: T = None  # type: ignore[assignment]
    stuck: StreamStuck | None = None
