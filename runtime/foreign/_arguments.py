"""Reading the arguments of tool calls, in one place, so that all code agrees on which arguments are broken."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from channels._lazy import lazy, made_later

from .._dataclasses import dataclass, field
from . import _json
from ._sound import sound, well_formed

if TYPE_CHECKING:
    import json
else:
    json = lazy("json")

_MAYBE_HALF: Final = made_later(lambda: re.compile(r"\\u[dD][89a-fA-F]"))
_MARK: Final = made_later(lambda: re.compile(r'\\(?:.|\Z)|["\[\]{}]', re.DOTALL))
_KINDS: Final = {str: "text", list: "a list", bool: "a truth value", type(None): "null"}


@dataclass(frozen=True, slots=True)
class ReadArguments:
    """The arguments of a call, as read. ``problem`` says what is wrong with them, for the model to read; or is empty.

    ``text`` is the JSON of an object that every parser takes: an empty one where they are broken.
    """

    text: str
    problem: str = ""
    _said: list[dict[str, Any]] = field(default_factory=list, repr=False, compare=False)  # for whoever asks first

    def value(self) -> dict[str, Any] | None:
        """The arguments as a dictionary, a new one each time; None where they are broken."""
        if self.problem:
            return None
        try:
            return self._said.pop()  # a single step: two threads do not get the same
        except IndexError:
            said: dict[str, Any] = _json.parse(self.text)
            return said


def read_arguments(written: str) -> ReadArguments:
    """Read the text that a model wrote as the arguments of a call. It is one complete JSON object, or it is broken."""
    if not written.strip():
        return ReadArguments("{}", "the arguments are missing")
    try:
        said = _json.parse(written)
    except json.JSONDecodeError as error:
        return ReadArguments("{}", f"the arguments are not JSON: {error}")
    except ValueError as error:
        return ReadArguments("{}", f"the arguments cannot be read: {error}")
    if not isinstance(said, dict):
        return ReadArguments("{}", f"the arguments must be a JSON object, not {_KINDS.get(type(said), 'a number')}")
    if ("\\u" in written and _MAYBE_HALF.search(written)) or well_formed(written) is not written:
        return ReadArguments(json.dumps(sound(said), ensure_ascii=False))
    return ReadArguments(written, _said=[said])


def to_text(arguments: str | Mapping[str, Any]) -> str:
    """Arguments as JSON text, also where a server sends the object itself."""
    return arguments if isinstance(arguments, str) else json.dumps(sound(arguments), ensure_ascii=False)


class WholeObject:
    """Tells when a growing text has become a complete JSON object, so that what follows is not part of it.

    It only follows brackets and strings, and reads each character once.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.whole = False

    def add(self, piece: str) -> None:
        """Look at the next piece of the text."""
        if self._escaped and piece:
            piece, self._escaped = piece[1:], False
        for mark in _MARK.findall(piece):
            if self.whole:
                return
            if mark[0] == "\\":
                self._escaped = len(mark) == 1
            elif mark == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if mark in "[{" else -1
                self.whole = self._depth <= 0
