"""What a function that answers the questions of a run is given, and may return."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from .._errors import NotPending
from ..agent._tool import Action, Answer
from ..events import ElicitationRequest, MaxIterationsReached, ToolCallConfirmation
from ..permissions import Decision, Scope

RequestEvent: TypeAlias = ElicitationRequest | ToolCallConfirmation | MaxIterationsReached
OnRequest: TypeAlias = "Callable[[Any], Answer | Mapping[str, Any] | Decision | bool | int | None]"


class Answering(Protocol):
    """The methods of a stream that take answers."""

    def respond(
        self, request: ElicitationRequest | str, action: Action, content: Mapping[str, Any] | None = None
    ) -> None:
        """Answer a question."""

    def extend(self, request: MaxIterationsReached | str, iterations: int) -> None:
        """Allow more turns."""

    def approve(self, call: ToolCallConfirmation | str, scope: Scope = "once") -> None:
        """Approve a tool call."""

    def reject(self, call: ToolCallConfirmation | str, reason: str = "") -> None:
        """Reject a tool call."""


def check_on_request(on_request: object) -> None:
    """Raise `TypeError` for what is neither a function nor None."""
    if on_request is not None and not callable(on_request):
        raise TypeError(f"on_request must be a function that is given the event of a request, not {on_request!r:.200}")


def ask(stream: Answering, request: RequestEvent, on_request: OnRequest) -> None:
    """Answer ``request`` of ``stream`` with what ``on_request`` returns for it."""
    answer = on_request(request)
    with contextlib.suppress(NotPending):  # it took longer than ``answer_timeout``
        _settle(stream, request, answer)


def _settle(stream: Answering, request: RequestEvent, answer: Any) -> None:
    if isinstance(request, MaxIterationsReached):
        stream.extend(request, 0 if answer is None else answer)
        return
    if isinstance(request, ElicitationRequest):
        if answer is None:
            answer = Answer("decline")
        elif isinstance(answer, int):
            raise TypeError(f"the answer to a question must be its content or an Answer, not {answer!r:.200}")
        elif not isinstance(answer, Answer):
            answer = Answer("accept", answer)
        stream.respond(request, answer.action, answer.content)
        return
    decision = Decision(bool(answer)) if answer is None or isinstance(answer, bool) else answer
    if not isinstance(decision, Decision):  # the content of a form, which must not pass for an approval
        raise TypeError(
            f"on_request must answer a ToolCallConfirmation with True, False or a Decision, not {answer!r:.200}"
        )
    if decision.approved:
        stream.approve(request, decision.scope)
    else:
        stream.reject(request, decision.reason)
