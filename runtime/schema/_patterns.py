"""Running foreign regular expressions so that none of them can block the process.

`re` backtracks, which may take time exponential in the length of the text, and holds the GIL meanwhile: every other
thread stops, and no cancel takes effect. So `re` runs a pattern only if the number of ways that it may try is known to
be small for this text. Other patterns are run by `google-re2` if it is installed, which is linear and releases the GIL,
or not at all.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, Final

_LONGEST: Final = 1000  # characters of a pattern
_STEPS: Final = 1_000_000  # that a search by `re` may take: some 30 ms
_DOUBTFUL: Final = ("[[", "--", "&&", "~~", "||")  # sets in sets: other languages have them, and `re` warns


@functools.lru_cache(maxsize=256)
def pattern(text: str) -> Pattern:
    """The `Pattern` of ``text``, compiled once."""
    return Pattern(text)


class Pattern:
    """A pattern of JSON Schema, which is one of JavaScript, as far as the engines here can read it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._re: re.Pattern[str] | None = None
        self._ways = 1, 0, False
        self._size = 0
        readable = len(text) <= _LONGEST
        if readable and not any(each in text for each in _DOUBTFUL):
            try:
                from re import _parser  # type: ignore[attr-defined]

                parsed = _parser.parse(text)
                self._size, factor, degree = _effort(parsed)
                self._ways = factor, degree, _is_anchored(parsed)
                self._re = re.compile(text)
            except (ValueError, ImportError, RecursionError, OverflowError, re.error):
                pass  # it may backtrack without bound, or is none of Python's
        self._linear = _linear(text) if readable else None

    def found_in(self, text: str) -> tuple[bool | None, int]:
        """Whether it matches somewhere in ``text``, None where no engine can tell within bounds; and how many steps
        that may have taken.
        """
        steps = self._steps(len(text))
        if self._re is not None and steps <= _STEPS:
            return self._re.search(text) is not None, steps
        if self._linear is not None:
            try:
                return self._linear.search(text) is not None, len(text)
            except ValueError:  # half a surrogate pair
                pass
        return None, 0

    def _steps(self, length: int) -> int:
        factor, degree, anchored = self._ways
        steps: int = self._size * factor * (length + 1) ** degree
        return length + steps if anchored else steps * (length + 1)

    def __repr__(self) -> str:
        return f"<Pattern {self.text!r}>"


def _effort(items: Iterable[Any]) -> tuple[int, int, int]:
    """How much a pattern, as `re` parses it, can be to try: its size, and a factor and a degree. On a text of n
    characters there are at most factor * (n + 1) ** degree ways through it. Raises `ValueError` where they are without
    bound, or unknown.
    """
    size, factor, degree = 0, 1, 0
    for op, argument in items:
        name = str(op)
        if name in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"):
            size += 1
            continue
        if name == "SUBPATTERN":
            _, add_flags, del_flags, body = argument
            if add_flags or del_flags:
                raise ValueError("flags")
            more = _effort(body)
        elif name == "BRANCH":
            each = [_effort(body) for body in argument[1]]
            more = 1 + sum(s for s, _, _ in each), sum(f for _, f, _ in each), max(d for _, _, d in each)
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            more = _repeated(*argument)
        else:  # looks around or back
            raise ValueError(name)
        size, factor, degree = size + more[0], factor * more[1], degree + more[2]
        if size > _STEPS or factor > _STEPS:
            raise ValueError("too much")
    return size, factor, degree


def _repeated(least: int, most: Any, body: Any) -> tuple[int, int, int]:
    size, factor, degree = _effort(body)
    one_way = factor == 1 and degree == 0
    if str(most) == "MAXREPEAT":
        if not one_way or body.getwidth()[0] == 0:  # such as (a+)+, which is exponential
            raise ValueError("repeats what repeats")
        return size * (int(least) + 1), 1, 1
    if one_way:
        return size * int(most) + 1, int(most) - int(least) + 1, 0
    if most > 20:
        raise ValueError("repeats what repeats")
    return size * int(most) + 1, int(factor ** int(most) * (most - least + 1)), degree * int(most)


def _is_anchored(parsed: Any) -> bool:
    return len(parsed) > 0 and str(parsed[0][0]) == "AT" and str(parsed[0][1]).startswith("AT_BEGINNING")


def _linear(text: str) -> Any:
    """The pattern for `google-re2`; None where that is not installed, or cannot read it."""
    try:
        import re2  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    options = re2.Options()
    options.log_errors = False  # on standard error
    try:
        return re2.compile(_wide(text), options)
    except (re2.error, ValueError):
        return None


def _wide(text: str) -> str:
    r"""The pattern with ``\w`` and ``\d`` as `re` has them, of all alphabets: whether a pattern takes an umlaut shall
    not depend on who runs it.
    """
    out, inside, i = [], False, 0
    while i < len(text):
        here = text[i]
        if here == "\\":
            escape = text[i : i + 2]
            wide = {"\\w": r"\pL\pM\pN_", "\\d": r"\p{Nd}"}.get(escape)
            out.append(escape if wide is None else wide if inside else f"[{wide}]")
            i += 2
            continue
        if here == "[" and not inside:
            inside = True
        elif here == "]":
            inside = False
        out.append(here)
        i += 1
    return "".join(out)
