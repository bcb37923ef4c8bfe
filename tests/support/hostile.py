"""What may stand in each place of a file that anybody may have written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

HOSTILE: list[Any] = [
    None, True, -1, 1.5, 1e999, 10**400, "", "x", "\ud800", "\x00", "../../x", [], {}, [None], [[]], {"a": 1}, [1] * 5,
]  # fmt: skip


def places(data: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in ``data``, which is JSON."""
    yield before
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        yield from places(value, (*before, key))


def changed(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """``data`` with ``value`` in one place."""
    if not place:
        return value
    changed = at = copy.deepcopy(data)
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed
