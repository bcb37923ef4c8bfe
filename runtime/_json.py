"""JSON that others wrote, and JSON of what others made: read within bounds, written so that other threads go on.

The reader and the writer of `json` are in C and hold the GIL: for some 20 ms a megabyte of small values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

LONGEST: Final = 1_000_000  # characters that are read; no model writes as many in one call
DEEPEST: Final = 100  # levels; what goes through the values later on is recursive, here and in other programs

_encoder: Final = json.JSONEncoder(ensure_ascii=False)


def parse(text: str) -> Any:
    """The value that ``text`` is the JSON of. Raises `ValueError`, which says what is wrong with it."""
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text):,} characters, more than {LONGEST:,}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it goes more than {DEEPEST} levels deep") from None
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise ValueError(f"it goes more than {DEEPEST} levels deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inside: list[Any] = []
        for each in level:
            inside += each.values() if isinstance(each, Mapping) else each if isinstance(each, list) else ()
        if not inside:
            return False
        level = inside
    return any(isinstance(each, (Mapping, list)) for each in level)


def write(value: Any) -> str:
    """``value`` as JSON. In pieces, which are made in Python: the GIL is never held for long."""
    return "".join(_encoder.iterencode(value))
