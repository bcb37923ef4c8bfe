"""What the annotations of a function say: a JSON schema for the model, and how its JSON becomes what they promise.

Everything here works without any extra. Models of pydantic, and constraints of its kind in an ``Annotated``, are left
to pydantic, which a program that has them has imported.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any, Final, Literal, NotRequired, Required, TypeAlias

from ._schema import problems

Convert: TypeAlias = Callable[[Any], Any]
Schema: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """One annotation: its schema, and what makes the value of the JSON that fits it (None: the JSON is the value)."""

    schema: Schema
    convert: Convert | None = None

    def __call__(self, value: Any) -> Any:
        return value if self.convert is None else self.convert(value)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function takes. ``nullable`` are the parameters that may be null beside what their schema says."""

    parameters: Schema
    kinds: Mapping[str, Kind]
    nullable: frozenset[str]

    def convert(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as they are annotated. Raises what the annotated types raise for values they do not take."""
        return {
            name: value if value is None and name in self.nullable else self.kinds[name](value)
            for name, value in arguments.items()
        }


def signature_of(
    function: Callable[..., Any], notes: Mapping[str, str], is_context: Callable[[Any], bool]
) -> Signature:
    """The signature of ``function``, without the parameter for the context; ``notes`` describe the others.

    Raises `TypeError` for what a model cannot pass.
    """
    hints = hints_of(function)
    properties: dict[str, Schema] = {}
    required: list[str] = []
    kinds: dict[str, Kind] = {}
    nullable: set[str] = set()
    definitions: dict[str, Schema] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"a tool's parameters are passed by name, so {parameter} of {function!r} cannot be one")
        name, annotation = parameter.name, hints.get(parameter.name, str)
        if is_context(annotation):
            continue
        optional = parameter.default is not parameter.empty
        inner = _without_none(annotation) if optional else None
        if inner is not None:  # a model leaves out what it does not know, or writes null: the schema need not say both
            nullable.add(name)
        kind = kinds[name] = kind_of(annotation if inner is None else inner, definitions)
        schema = dict(kind.schema)
        if name in notes:
            schema["description"] = notes[name]
        if not optional:
            required.append(name)
        elif parameter.default is not None:
            schema["default"] = plain(parameter.default)
        properties[name] = schema
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if definitions:
        parameters["$defs"] = definitions
    return Signature(parameters, kinds, frozenset(nullable))


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, or of an object that can be called. Raises `TypeError` for names that are
    unknown.
    """
    return _hints(function if inspect.isroutine(function) else type(function).__call__)


def _hints(annotated: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(annotated, include_extras=True)
    except NameError as error:
        raise TypeError(f"the annotations of {annotated!r} cannot be resolved: {error}") from error


# -- annotations -------------------------------------------------------------------------------------------------------


@functools.cache
def _plain_kinds() -> dict[Any, Kind]:
    """The annotations that are known by themselves."""
    from decimal import Decimal  # these two are slow to import, and the program has to have defined a tool to need them
    from pathlib import Path

    return {
        str: Kind({"type": "string"}),
        int: Kind({"type": "integer"}, int),  # 5.0 is a whole number in JSON
        float: Kind({"type": "number"}, float),
        bool: Kind({"type": "boolean"}),
        type(None): Kind({"type": "null"}),
        dict: Kind({"type": "object"}),
        list: Kind({"type": "array"}),
        Any: Kind({}),
        datetime: Kind({"type": "string", "format": "date-time"}, datetime.fromisoformat),
        date: Kind({"type": "string", "format": "date"}, date.fromisoformat),
        time: Kind({"type": "string", "format": "time"}, time.fromisoformat),
        uuid.UUID: Kind({"type": "string", "format": "uuid"}, uuid.UUID),
        Path: Kind({"type": "string"}, Path),
        Decimal: Kind({"type": ["number", "string"]}, lambda value: Decimal(str(value))),
    }


_COLLECTIONS: Final[dict[Any, Callable[[Iterable[Any]], Any]]] = {
    list: list, Sequence: list, set: set, AbstractSet: set, frozenset: frozenset, tuple: tuple,
}  # fmt: skip


def kind_of(annotation: Any, definitions: dict[str, Schema], inside: tuple[Any, ...] = ()) -> Kind:
    """What ``annotation`` stands for. ``inside`` are the classes that it is a part of."""
    if annotation in inside:
        raise TypeError(f"a tool's parameter cannot contain itself, as {annotation!r} does")
    if annotation in _plain_kinds():
        return _plain_kinds()[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    kind: Kind | None = None
    if origin is typing.Annotated:
        kind = _annotated(args, definitions, inside)
    elif origin in (Required, NotRequired):
        kind = kind_of(args[0], definitions, inside)
    elif origin is Literal:
        kind = Kind({"enum": list(args)})
    elif origin in (typing.Union, types.UnionType):
        kind = _union([kind_of(each, definitions, inside) for each in args])
    elif origin in _COLLECTIONS and (origin is not tuple or args[1:] == (...,)):
        item = kind_of(args[0], definitions, inside)
        make = _COLLECTIONS[origin]
        kind = Kind({"type": "array", "items": item.schema}, lambda value: make(map(item, value)))
    elif origin in (dict, Mapping):
        item = kind_of(args[1], definitions, inside)
        kind = Kind(
            {"type": "object", "additionalProperties": item.schema},
            lambda value: {key: item(each) for key, each in value.items()},
        )
    elif isinstance(annotation, type):
        kind = _class(annotation, definitions, inside)
    if kind is None:
        raise TypeError(
            f"a tool's parameter cannot be annotated {annotation!r}; use str, int, float, bool, list, dict, Literal, an"
            " Enum, a date, a dataclass, a TypedDict, or a pydantic model"
        )
    return kind


def _without_none(annotation: Any) -> Any:
    """``X`` of ``X | None``; None for anything else."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return None
    options = tuple(each for each in typing.get_args(annotation) if each is not type(None))
    return typing.Union[options] if len(options) < len(typing.get_args(annotation)) else None  # noqa: UP007


def _annotated(args: tuple[Any, ...], definitions: dict[str, Schema], inside: tuple[Any, ...]) -> Kind | None:
    """A text describes; what else stands there may be pydantic's."""
    if any(type(each).__module__.split(".")[0] in ("pydantic", "annotated_types") for each in args[1:]):
        return _by_pydantic(typing.Annotated[args], definitions)
    kind = kind_of(args[0], definitions, inside)
    note = next((each for each in args[1:] if isinstance(each, str)), None)
    return Kind({**kind.schema, "description": note}, kind.convert) if note else kind


def _union(options: list[Kind]) -> Kind:
    def convert(value: Any) -> Any:
        fitting = next((each for each in options if not problems(value, each.schema)), options[0])
        return fitting(value)

    return Kind({"anyOf": [each.schema for each in options]}, convert)


def _class(annotation: type, definitions: dict[str, Schema], inside: tuple[Any, ...]) -> Kind | None:
    inside = (*inside, annotation)
    if issubclass(annotation, enum.Enum):
        values = [member.value for member in annotation]
        if all(isinstance(value, (str, int, float, bool)) for value in values):
            return Kind({"enum": values}, annotation)
        return Kind({"enum": [member.name for member in annotation]}, lambda value: annotation[value])
    if typing.is_typeddict(annotation):
        hints = _hints(annotation)
        kinds = {name: kind_of(each, definitions, inside) for name, each in hints.items()}
        needed: frozenset[str] = annotation.__required_keys__  # type: ignore[attr-defined]
        # That one does not see what annotations in text say.
        required = [
            name
            for name, each in hints.items()
            if typing.get_origin(each) is not NotRequired and (name in needed or typing.get_origin(each) is Required)
        ]
        return _object(kinds, required, lambda **values: values)
    if dataclasses.is_dataclass(annotation):
        fields = [each for each in dataclasses.fields(annotation) if each.init]
        hints = _hints(annotation)
        kinds = {each.name: kind_of(hints[each.name], definitions, inside) for each in fields}
        missing = dataclasses.MISSING
        required = [each.name for each in fields if each.default is missing and each.default_factory is missing]
        return _object(kinds, required, annotation)
    pydantic = sys.modules.get("pydantic")  # never imported here: whoever has a model has imported it
    if pydantic is not None and issubclass(annotation, pydantic.BaseModel):
        return _by_pydantic(annotation, definitions)
    return None


def _object(kinds: Mapping[str, Kind], required: list[str], make: Callable[..., Any]) -> Kind:
    schema = {
        "type": "object",
        "properties": {name: kind.schema for name, kind in kinds.items()},
        "required": required,
        "additionalProperties": False,
    }
    return Kind(schema, lambda value: make(**{name: kinds[name](each) for name, each in value.items()}))


def _by_pydantic(annotation: Any, definitions: dict[str, Schema]) -> Kind:
    """As pydantic sees it."""
    adapter = sys.modules["pydantic"].TypeAdapter(annotation)
    schema: Schema = adapter.json_schema()
    for name, definition in schema.pop("$defs", {}).items():
        if definitions.setdefault(name, definition) != definition:
            raise TypeError(f"two different models of one tool are both named {name!r}")
    return Kind(schema, adapter.validate_python)


# -- and back ----------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """``value`` as JSON can write it: dataclasses, enums, dates, sets, pydantic models; what is unknown as text."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(plain(key)): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, AbstractSet)):
        return [plain(each) for each in value]
    if isinstance(value, (date, time)):
        return value.isoformat()
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else str(value)
