"""Parsing JSON from outside within limits, and writing foreign values as JSON without blocking other threads.

The parser and the encoder of `json` are written in C and hold the GIL, for about 20 ms for a megabyte of small values.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from channels._lazy import lazy, made_later

if TYPE_CHECKING:
    import json
else:
    json = lazy("json")

LONGEST: Final = 1_000_000  # characters that are read; no model writes as many in one call
DEEPEST: Final = 100  # levels; what goes through the values later on is recursive, here and in other programs

#: To the end too, or a text of quotes would take time that is quadratic.
_STRING: Final = made_later(lambda: re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL))
_NO_BRACKET: Final = made_later(lambda: re.compile(r"[^\[\]{}]+"))
_STEP: Final = {"[": 1, "{": 1, "]": -1, "}": -1}
_MAYBE_ENDLESS: Final = made_later(lambda: re.compile(r"[eE]\+?0*[1-9]\d\d|\d{100}"))

_OPENING: Final = made_later(lambda: re.compile(r"[\[{]"))
_TRIES: Final = 200  # brackets in a text at which JSON may begin

_decoder: Final = made_later(lambda: json.JSONDecoder())
_MANY: Final = 200_000  # values, about, from which on they are read in Python

_encoder: Final = made_later(lambda: json.JSONEncoder(ensure_ascii=False))


def parse(text: str) -> Any:
    """The value of the JSON ``text``. Raises `ValueError`, which says what is wrong with the text.

    NaN and numbers that other parsers read as infinite are refused, although `json` accepts them.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters, more than {LONGEST:,}")
    if len(text) > DEEPEST and _is_deep(text):
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    try:
        decoder: Any = _strict
        if _MAYBE_ENDLESS.search(text):  # a look at each number takes several times as long
            decoder = json.JSONDecoder(parse_constant=_refuse, parse_float=_float, parse_int=_int)
        if 5 * len(text) > _MANY and text.count(",") + 5 * (text.count("[") + text.count("{")) > _MANY:
            from json import scanner

            if decoder is _strict:
                decoder = json.JSONDecoder(parse_constant=_refuse)  # others may be at that one
            decoder.scan_once = vars(scanner)["py_make_scanner"](decoder)  # the one in Python
        if text and text[0] in "[{" and text[-1] in "]}":  # no white space to look for, which takes as long as the rest
            value, end = decoder.raw_decode(text)
            if end == len(text):
                return value
        return decoder.decode(text)
    except RecursionError:  # this is called near the end of the stack
        raise ValueError("nested too many levels deep") from None


def _is_deep(text: str) -> bool:
    """Whether lists and objects go deeper than `DEEPEST`, also in what is no JSON: `json` recurses, and where the limit
    of that was raised, it may end the process.
    """
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    brackets = _NO_BRACKET.sub("", _STRING.sub("", text))
    return max(itertools.accumulate(map(_STEP.__getitem__, brackets)), default=0) > DEEPEST


def _refuse(constant: str) -> Any:
    raise ValueError(f"JSON has no number {constant}")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.40} is too large a number")
    return value


def _int(text: str) -> int:
    _float(text)  # as others read it
    return int(text)


#: To make one takes as long as to read the arguments of a call with it.
_strict: Final = made_later(lambda: json.JSONDecoder(parse_constant=_refuse))


def write(value: Any) -> str:
    """``value`` as JSON. In pieces, which are made in Python: the GIL is never held for long."""
    return "".join(_encoder.iterencode(value))


def found_in(text: str) -> Iterator[str]:
    """The outermost lists and objects that are found in a text, from the last to the first."""
    if len(text) > LONGEST or _is_deep(text):
        return
    found: list[str] = []
    at = 0
    for _ in range(_TRIES):
        begin = _OPENING.search(text, at)
        if begin is None:
            break
        try:
            _, at = _decoder.raw_decode(text, begin.start())
            found.append(text[begin.start() : at])
        except (ValueError, RecursionError):
            at = begin.end()
    yield from reversed(found)
