"""Answers to requests that a store keeps, checked before they count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args

from .._errors import InvalidAnswer
from ..permissions import Scope
from ..schema._checking import problems
from ..session._journal import Request

_ACTIONS: Final = ("accept", "decline", "cancel")


def checked(request: Request, answer: Mapping[str, Any]) -> dict[str, Any]:
    """``answer`` in the one form that is stored, as `Store.answer` describes it. Raises `InvalidAnswer`."""
    if not isinstance(answer, Mapping):
        raise InvalidAnswer(f"an answer is a mapping, not {type(answer).__name__}")
    return _decision(answer) if request.kind == "approval" else _reply(request, answer)


def _decision(answer: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_others(answer, ("approved", "scope", "reason"), '{"approved": true} or {"approved": false}')
    approved, scope, reason = answer.get("approved"), answer.get("scope", "once"), answer.get("reason", "")
    if not isinstance(approved, bool):  # "no" would approve
        raise InvalidAnswer(f"a call is approved with true or false, not {approved!r}")
    if scope not in get_args(Scope):
        raise InvalidAnswer(f"an approval is for once, tool or session, not {scope!r}")
    if not isinstance(reason, str):
        raise InvalidAnswer(f"the reason of a decision is text, not {reason!r}")
    return {"approved": approved, "scope": scope, "reason": reason}


def _reply(request: Request, answer: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_others(answer, ("action", "content"), '{"action": "accept", "content": {...}}')
    action, content = answer.get("action"), answer.get("content")
    if action not in _ACTIONS:
        raise InvalidAnswer(f"an answer is one of {', '.join(_ACTIONS)}, not {action!r}")
    if action != "accept":
        return {"action": action}
    content = {} if content is None else content
    if not isinstance(content, Mapping):
        raise InvalidAnswer(f"the content of an answer is an object, not {content!r}")
    if request.schema is not None:
        found = problems(dict(content), request.schema)
        if found:
            raise InvalidAnswer("; ".join(found))
    return {"action": action, "content": dict(content)}


def _refuse_others(answer: Mapping[str, Any], known: tuple[str, ...], form: str) -> None:
    others = [name for name in answer if name not in known]
    if others:
        raise InvalidAnswer(f"the answer must be {form}, without {', '.join(map(repr, others))}")
