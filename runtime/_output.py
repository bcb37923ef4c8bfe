"""What the last word of a run is to be: JSON that fits a type."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, Final

from . import _json
from ._annotations import Schema, kind_of
from ._schema import problems
from .model import Model, OutputSchema

_FENCED: Final = re.compile(r"\s*```\w*\n(.*?)\n?```\s*", re.DOTALL)


class InvalidOutput(ValueError):
    """The text is not what was asked for. It is written for the model, which may mend it."""


class Output:
    """What ``output_type`` stands for. Raises `TypeError` for a type that JSON cannot be made into."""

    def __init__(self, wanted: Any) -> None:
        definitions: dict[str, Schema] = {}
        try:
            self._kind = kind_of(wanted, definitions)
        except TypeError as error:
            raise TypeError(f"there is no output_type {wanted!r}: {error}") from error
        schema = {**self._kind.schema, "$defs": definitions} if definitions else self._kind.schema
        self.schema = OutputSchema(getattr(wanted, "__name__", "output"), schema)
        #: What the model is told.
        self.instructions = (
            "When you have what it takes to answer, answer with JSON that fits this schema, and nothing else:\n"
            + json.dumps(schema, ensure_ascii=False)
        )

    def read(self, text: str) -> Any:
        """The value that ``text`` says. Raises `InvalidOutput`. Calls code of the type: not for the worker."""
        fenced = _FENCED.fullmatch(text)  # as many models write JSON, whatever they are told
        try:
            said = _json.parse(fenced[1] if fenced else text)
        except ValueError as error:
            raise InvalidOutput(f"the answer is not JSON: {error}") from error
        wrong = problems(said, self.schema.schema)
        if wrong:
            raise InvalidOutput("; ".join(wrong))
        try:
            return self._kind(said)
        except Exception as error:  # what the type itself says
            raise InvalidOutput(f"the answer cannot be used: {error}") from error

    def __repr__(self) -> str:
        return f"<Output {self.schema.name}>"


def output_for(model: Model, wanted: OutputSchema | None) -> dict[str, OutputSchema]:
    """What `Model.stream` is given beside the rest: ``output``, where something is wanted and ``model`` takes it."""
    if wanted is None:
        return {}
    try:
        takes = "output" in inspect.signature(model.stream).parameters
    except (TypeError, ValueError):  # it is written in C
        takes = False
    return {"output": wanted} if takes else {}
