"""Questions that outlive their process: the store has one before the user is asked, and its answer before it counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from .. import events
from .._dataclasses import replace
from ..agent._tool import Answer
from ..human._asks import Ask
from ..human._listener import answer_from, decision_from
from ..permissions import Decision
from ..session._journal import Request, Requested, RequestKind
from ._core import StreamCore
from ._private_events import UserAnswered

_IN_TIME: Final = "nobody answered in time"


def keep(core: StreamCore, ask: Ask[Any, Any], kind: RequestKind, timeout: float | None, **fields: Any) -> None:
    """Let the store have the question, where there is one; ``timeout`` is in seconds. Called by the worker, before
    anyone can answer. Raises `StopRun` and `Cancelled`.
    """
    if not core.log.outbox.is_open or ask.event is None:
        return
    expires = None if timeout is None else datetime.now(UTC) + timedelta(seconds=timeout)
    ids = ask.id, core.session.id, core.root.session.id
    request = Request(*ids, kind, ask.event.to_dict(), expires_at=expires, **fields)
    ask.patient = core.shared.patient and getattr(ask.question, "timeout", None) is None
    core.log.outbox.note(Requested(request))
    keep_answer(core, ask, request)
    core.commit()


def keep_answer(core: StreamCore, ask: Ask[Any, Any], request: Request) -> None:
    """Let the store have the answer of a question that it has already, and hear of one that another process gives. Who
    is not the first there is refused.
    """
    store, listener = core.shared.store, core.shared.listener
    if core.log.outbox.is_open and store is not None and listener is not None:
        if not listener.listening:
            core.calls.run("listening to the store", listener.listen)
        core.requested[ask.id] = request
        ask.keep = lambda answer: store.answer(ask.id, form(answer))


def park(core: StreamCore) -> tuple[Request, ...]:
    """Leave the open questions of the stream to its store, where they wait without end unless somebody has said how
    long they may. Returns their requests. Does not wait for the store.
    """
    left: list[Ask[Any, Any]] = [*core.shared.asks.park(core), *core.shared.confirmations.park(core)]
    for ask in left:
        if ask.patient:
            core.requested[ask.id] = replace(core.requested[ask.id], expires_at=None)
            core.log.outbox.note(Requested(core.requested[ask.id]))
    return tuple(core.requested[ask.id] for ask in left)


def tell(core: StreamCore, request_id: str, answer: Answer | Decision) -> None:
    """Tell the record, and the consumers where there may be several, that the stream goes on with this answer."""
    if core.recorded:
        core.emit(UserAnswered(request_id, **core.tags))
    tell_consumers(core, request_id, answer)


def tell_consumers(core: StreamCore, request_id: str, answer: Answer | Decision) -> None:
    """Tell the consumers, where there may be several, that a request is not open any more."""
    if core.shared.tells_settled:
        core.emit(settled_event(request_id, answer, **core.tags))


def settled_event(request_id: str, answer: Answer | Decision, **tags: Any) -> events.RequestSettled:
    """The event that tells of the answer to a request."""
    if isinstance(answer, Decision):
        outcome, reason = "approved" if answer.approved else "rejected", answer.reason
    else:
        outcome, reason = answer.action, answer.note
    return events.RequestSettled(request_id, outcome, reason, **tags)


def form(answer: Answer | Decision) -> dict[str, Any]:
    """The answer as a store takes it."""
    if isinstance(answer, Decision):
        return {"approved": answer.approved, "scope": answer.scope, "reason": answer.reason}
    return {"action": answer.action, "content": dict(answer.content)}


def seconds_left(request: Request) -> float | None:
    """How long the request may still be answered."""
    if request.expires_at is None:
        return None
    return max(0.0, (request.expires_at - datetime.now(UTC)).total_seconds())


def decision_of(request: Request) -> Decision | None:
    """What the user has decided, or that nobody did in time; None as long as the request waits."""
    if request.expired:
        return Decision(False, reason=_IN_TIME)
    if request.answer is None:
        return None
    return decision_from(request.answer)


def answer_of(request: Request) -> Answer | None:
    """What the user has answered, or that nobody did in time; None as long as the request waits."""
    if request.expired:
        return Answer("decline", note=_IN_TIME)
    if request.answer is None:
        return None
    return answer_from(request.answer)
