"""One spelling for each value. Permissions are matched against the values that a tool gets, and the user is shown them.

A model may write the same date, number or path in many ways. Here the value that the tool gets is written in one way
only.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Set
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any, Final

from channels._lazy import lazy

from .._dataclasses import fields, is_dataclass

if TYPE_CHECKING:
    import json
else:
    json = lazy("json")

_DEPTH: Final = 100
_DIGITS: Final = 100  # that a decimal may be written out with


def spelled(value: Any, depth: int = _DEPTH) -> Any:
    """A JSON-ready copy of ``value`` in its one spelling: 5.0 and Decimal("5e0") are 5, a set is a sorted list, a time
    with a zone is in UTC. A value of an unknown type is spelt by its ``str``. This runs foreign code, so it is not
    for the worker of a stream. Raises nothing.
    """
    kind = type(value)  # not what it says of itself
    if kind is str or kind is int or value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return spelled(value.value, depth)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(value) if math.isfinite(value) else str(value)
    if not depth:
        return "..."
    if kind is dict or isinstance(value, Mapping):
        return {key if type(key) is str else _key(key): spelled(each, depth - 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [spelled(each, depth - 1) for each in value]
    if isinstance(value, Set):
        return sorted((spelled(each, depth - 1) for each in value), key=as_text)
    try:
        return _object(value, depth)
    except Exception:  # it is the user's, and may do anything
        return f"<{type(value).__name__}>"


def _key(key: Any) -> str:
    said = spelled(key, 1)
    return said if isinstance(said, str) else as_text(said)


def _object(value: Any, depth: int) -> Any:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            return value.isoformat()
        return value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    if isinstance(value, (date, time)):
        return value.isoformat()
    if type(value).__name__ == "Decimal" and type(value).__module__ in ("decimal", "_decimal", "_pydecimal"):
        return _decimal(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: spelled(getattr(value, each.name), depth - 1) for each in fields(value)}
    dump = getattr(value, "model_dump", None)  # of pydantic
    return spelled(dump(), depth - 1) if callable(dump) else str(value)


def _decimal(value: Any) -> Any:
    if not value.is_finite() or abs(value.adjusted()) > _DIGITS:
        return str(value)
    whole = int(value)
    return whole if whole == value else format(value.normalize(), "f")


def as_text(value: Any) -> str:
    """A `spelled` value as a pattern sees it: text as it is, everything else as JSON, in one way only."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
