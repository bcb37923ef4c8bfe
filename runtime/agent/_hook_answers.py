"""Reads the answer of a hook's command on its standard output: in our words, in docker-agent's or in Claude Code's.

A guard is written to stop something: an answer that is there, and cannot be read, is an error and never a yes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from .._errors import HookFailed
from ..foreign import _json

_TRIES: Final = 100  # lines at which a JSON object may begin
_YES: Final = frozenset(("allow", "approve"))
_NO: Final = frozenset(("block", "deny"))
_OURS: Final = frozenset(("block", "reason", "context", "updated_input", "updated_response", "allow"))
#: What they have besides; the last three are for their own screens.
_THEIRS: Final = frozenset(
    ("continue", "decision", "stop_reason", "hook_specific_output", "system_message", "suppress_output", "metadata")
)


def read_answer(said: str, taken: Collection[str]) -> dict[str, Any]:
    """The fields of the `HookResult` that ``said`` stands for; ``taken`` are those that mean something at this point.

    Text around the JSON is taken for a log. Raises `HookFailed` where there is an answer that cannot be read.
    """
    found = _object_in(said)
    if found is None:
        return {}
    theirs = {_snake(key): value for key, value in found.items() if key not in _OURS}
    unknown = [key for key in theirs if key not in _THEIRS]
    if unknown:
        raise HookFailed(f"its output is not a hook result: there is no field {unknown[0]!r:.100}")
    answer = {key: value for key, value in found.items() if key in _OURS}
    answer |= _translated(theirs, str(answer.get("reason") or ""), taken)
    return answer


def _translated(theirs: Mapping[str, Any], reason: str, taken: Collection[str]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    more = theirs.get("hook_specific_output") or {}
    if not isinstance(more, Mapping):
        raise HookFailed("its output is not a hook result: hook_specific_output is no object")
    more = {_snake(key): value for key, value in more.items()}
    decided = more.get("decision")
    if isinstance(decided, Mapping):  # of a request for permission
        decided = {_snake(key): value for key, value in decided.items()}
        more = {**more, **decided, "permission_decision": decided.get("behavior")}
        reason = str(decided.get("message") or reason)
    reason = str(more.get("permission_decision_reason") or reason)
    for verdict in (theirs.get("decision"), more.get("permission_decision")):
        if verdict in _NO:
            answer["block"] = True
        elif verdict in _YES:
            answer["allow"] = True
        elif verdict is not None:
            raise HookFailed(f"its output is not a hook result: there is no decision {verdict!r:.100}")
    if theirs.get("continue", True) is not True:
        answer["block"] = True
        reason = str(theirs.get("stop_reason") or reason)
    if reason:
        answer["reason"] = reason
    if "additional_context" in more:
        answer["context"] = more["additional_context"]
    if more.get("updated_input") is not None:
        answer["updated_input"] = more["updated_input"]
    # Where they say yes to something that nobody asked here, or more than is taken, there is nothing to be done.
    return {key: value for key, value in answer.items() if key in ("block", "reason") or key in taken}


def _object_in(said: str) -> Mapping[str, Any] | None:
    """The JSON object that stands in a text; None where there is none."""
    text = said.lstrip("\ufeff").strip()
    if not text:
        return None
    if text.startswith("[") and isinstance(_parsed(text), list):
        raise HookFailed("its output is not a hook result: it is a list")
    starts, at = [], 0
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("{"):
            starts.append((at, line))
        at += len(line)
    if not starts:
        return None
    if len(starts) > _TRIES:
        raise HookFailed("its output is not a hook result: there are too many objects in it")
    whole = (_parsed(text[at:]) for at, _ in starts)
    alone = (_parsed(line) for _, line in reversed(starts))  # where a log goes on behind it
    found = next((each for parsed in (whole, alone) for each in parsed if isinstance(each, dict)), None)
    if found is None:
        raise HookFailed("its output is not a hook result: it is not JSON")
    return found


def _parsed(text: str) -> Any:
    try:
        return _json.parse(text)
    except ValueError:
        return None


def _snake(key: str) -> str:
    """``hookSpecificOutput`` as ``hook_specific_output``."""
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in key)
