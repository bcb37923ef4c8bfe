"""Structured output: the last reply of a run is JSON that fits a type."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from channels._lazy import lazy, made_later

from ..foreign import _json
from ..model import Model, OutputSchema
from ..schema._annotations import Schema as Definition
from ..schema._annotations import kind_of
from ..schema._checking import Schema

if TYPE_CHECKING:
    import inspect
    import json
else:
    json = lazy("json")
    inspect = lazy("inspect")

_FENCED: Final = made_later(lambda: re.compile(r"```[\w+-]*+[ \t]*+\n?+(.*?)```", re.DOTALL))
_THOUGHT: Final = made_later(lambda: re.compile(r"\s*<(think|thinking|reasoning)>.*?</\1>", re.DOTALL))
_CLOSING: Final = made_later(lambda: re.compile(r"</(?:think|thinking|reasoning)>"))


class InvalidOutput(ValueError):
    """A reply does not fit the output type. The error's text is written for the model, which may mend its reply."""


class Output:
    """An ``output_type``: its schema, and how replies are read. Raises `TypeError` for a type that JSON cannot say."""

    def __init__(self, wanted: Any) -> None:
        definitions: dict[str, Definition] = {}
        try:
            self._kind = kind_of(wanted, definitions)
        except TypeError as error:
            raise TypeError(f"there is no output_type {wanted!r}: {error}") from error
        schema = {**self._kind.schema, "$defs": definitions} if definitions else self._kind.schema
        self._name = getattr(wanted, "__name__", "output")
        self._checked = Schema(schema)
        #: What the model is asked for; None for a text, which it says anyhow.
        self.schema = None if wanted is str else OutputSchema(self._name, schema)
        #: What the model is told.
        self.instructions = "" if wanted is str else (
            "When you have what it takes to answer, answer with JSON that fits this schema, and nothing else:\n"
            + json.dumps(schema, ensure_ascii=False)
        )  # fmt: skip

    def read(self, text: str) -> Any:
        """The value in the reply ``text``. Raises `InvalidOutput`. Calls code of the type, so it is not for the worker.

        Many models say more than the JSON that they are asked for: thoughts before it, a sentence on either side, a
        fence around it, an object around a list. What fits the type counts, and of several the last.
        """
        if self.schema is None:
            return text
        failure: InvalidOutput | None = None
        for said in _said(text):
            try:
                return self._value(said)
            except InvalidOutput as error:
                failure = failure or error
        if failure is not None:
            raise failure
        plain = _without_thoughts(text).strip().strip("\"'`")
        try:
            return self._value(plain)  # a word, say, of which the type is a choice
        except InvalidOutput:
            raise InvalidOutput(f"the answer is not JSON: {_why(text)}") from None

    def _value(self, said: Any) -> Any:
        wrong = self._checked.problems(said)
        if wrong and isinstance(said, dict) and len(said) == 1:
            (inner,) = said.values()  # of servers whose schemas are objects, in which a list has a name
            if not self._checked.problems(inner):
                said, wrong = inner, []
        if wrong:
            raise InvalidOutput("; ".join(wrong))
        try:
            return self._kind(said)
        except Exception as error:  # what the type itself says
            raise InvalidOutput(f"the answer cannot be used: {error}") from error

    def __repr__(self) -> str:
        return f"<Output {self._name}>"


def _said(text: str) -> Iterator[Any]:
    """The JSON that stands in ``text``, the most likely first."""
    text = _without_thoughts(text)
    parts = [text, *reversed(_FENCED.findall(text))]
    for part in chain(parts, _json.found_in(text)):
        with contextlib.suppress(ValueError):
            yield _json.parse(part)
            if part is text:
                return  # what is inside it is not what it says


def _without_thoughts(text: str) -> str:
    """The text after the thoughts, which some servers leave in it; the tag that begins them is often missing."""
    if thought := _THOUGHT.match(text):
        return text[thought.end() :]
    *_, after = _CLOSING.split(text)
    return after


def _why(text: str) -> str:
    try:
        _json.parse(_without_thoughts(text))
    except ValueError as error:
        return str(error)
    return "it is text"


def output_for(model: Model, wanted: OutputSchema | None) -> dict[str, OutputSchema]:
    """The keyword arguments for `Model.stream`: ``output``, where an output type is wanted and ``model`` takes it."""
    if wanted is None:
        return {}
    try:
        takes = "output" in inspect.signature(model.stream).parameters
    except (TypeError, ValueError):  # it is written in C
        takes = False
    return {"output": wanted} if takes else {}
