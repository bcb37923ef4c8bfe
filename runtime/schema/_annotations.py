"""Annotations as JSON schemas, and the conversion of JSON into the annotated types.

Everything here works without any extra. Models of pydantic, and constraints of its kind in an ``Annotated``, are left
to pydantic, which a program that has them has imported.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any, Final, Literal, NotRequired, Required, TypeAlias

from channels._lazy import lazy

from .._dataclasses import dataclass, is_dataclass
from .._dataclasses import fields as fields_of
from . import _checking

if TYPE_CHECKING:
    import inspect
    import json
    import uuid
else:
    json = lazy("json")
    inspect = lazy("inspect")
    uuid = lazy("uuid")

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
    """The parameters of a function, as a model sees them. ``nullable`` are those that may also be null, whatever their
    schema says; ``defaults`` make the values that the function does not know itself.
    """

    parameters: Schema
    kinds: Mapping[str, Kind]
    nullable: frozenset[str]
    defaults: Mapping[str, Callable[[], Any]]

    def convert(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, made into the annotated types. Raises what these raise for values that they do not take."""
        converted = {
            name: value if value is None and name in self.nullable else self.kinds[name](value)
            for name, value in arguments.items()
        }
        return {name: make() for name, make in self.defaults.items() if name not in converted} | converted


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
    defaults: dict[str, Callable[[], Any]] = {}
    definitions: dict[str, Schema] = {}
    for parameter in _parameters(function):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"a tool's parameters are passed by name, so {parameter} of {function!r} cannot be one")
        name, annotation, default = parameter.name, hints.get(parameter.name, str), parameter.default
        if is_context(annotation):
            continue
        optional = default is not parameter.empty
        if type(default).__name__ == "FieldInfo" and type(default).__module__.startswith("pydantic"):
            annotation = typing.Annotated[annotation, default]
            optional = not default.is_required()
            if optional:
                defaults[name] = functools.partial(default.get_default, call_default_factory=True)
                default = defaults[name]()
        inner = _without_none(annotation) if optional else None
        if inner is not None or default is None:
            # A model leaves out what it does not know, or writes null: the schema need not say both.
            nullable.add(name)
        kind = kinds[name] = kind_of(annotation if inner is None else inner, definitions)
        schema = dict(kind.schema)
        if name in notes:
            schema["description"] = notes[name]
        if not optional:
            required.append(name)
        elif default is not None:
            schema["default"] = to_jsonable(default)
        properties[name] = schema
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if definitions:
        parameters["$defs"] = definitions
    return Signature(parameters, kinds, frozenset(nullable), defaults)


def is_method(function: Callable[..., Any]) -> bool:
    """Whether it is a function in the body of a class, whose first parameter is the object."""
    if not inspect.isfunction(function):
        return False
    parameters = list(inspect.signature(function).parameters)
    scope = function.__qualname__.rpartition(".")[0]
    return bool(parameters) and parameters[0] == "self" and bool(scope) and not scope.endswith("<locals>")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters that a call may give, without those that a `functools.partial` has given."""
    parameters = list(inspect.signature(function).parameters.values())
    if isinstance(function, functools.partial):
        return [each for each in parameters if each.name not in function.keywords]
    return parameters[1:] if is_method(function) else parameters


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, a class, or an object that can be called. Raises `TypeError` for names that are
    unknown.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        function = function.__init__  # type: ignore[misc]
    elif not inspect.isroutine(function):
        function = type(function).__call__
    return _hints(function)


def _hints(annotated: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(annotated, include_extras=True)
    except NameError as error:
        try:  # what it returns is nobody's concern here, and often only imported for a type checker
            said = {name: each for name, each in _said(annotated).items() if name != "return"}
            names = getattr(inspect.unwrap(annotated), "__globals__", {})
            return typing.get_type_hints(types.SimpleNamespace(__annotations__=said), names, include_extras=True)
        except NameError:
            raise TypeError(f"the annotations of {annotated!r} cannot be resolved: {error}") from error


def _said(annotated: Any) -> Mapping[str, Any]:
    """The annotations as they are written, unresolved."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(annotated, format=annotationlib.Format.FORWARDREF)
    return inspect.get_annotations(annotated)


# -- annotations -------------------------------------------------------------------------------------------------------


@functools.cache
def _plain_kinds() -> dict[Any, Kind]:
    """The annotations of built-in and standard types, by type."""
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
        object: Kind({}),
        datetime: Kind({"type": "string", "format": "date-time"}, datetime.fromisoformat),
        date: Kind({"type": "string", "format": "date"}, date.fromisoformat),
        time: Kind({"type": "string", "format": "time"}, time.fromisoformat),
        uuid.UUID: Kind({"type": "string", "format": "uuid"}, uuid.UUID),
        Path: Kind({"type": "string"}, Path),
        Decimal: Kind({"type": ["number", "string"]}, lambda value: Decimal(str(value))),
    }


_COLLECTIONS: Final[dict[Any, Callable[[Iterable[Any]], Any]]] = {
    list: list, abc.Sequence: list, abc.MutableSequence: list, abc.Collection: list, abc.Iterable: list, tuple: tuple,
    set: set, abc.Set: set, abc.MutableSet: set, frozenset: frozenset,
}  # fmt: skip
_MAPPINGS: Final = (dict, abc.Mapping, abc.MutableMapping)


def kind_of(annotation: Any, definitions: dict[str, Schema], inside: tuple[Any, ...] = ()) -> Kind:
    """The `Kind` of ``annotation``. ``inside`` are the classes that it is a part of."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _annotated(args, definitions, inside)
    if annotation in inside:
        raise TypeError(f"a tool's parameter cannot contain itself, as {annotation!r} does")
    if annotation in _plain_kinds():
        return _plain_kinds()[annotation]
    kind: Kind | None = None
    within = (*inside, annotation)
    whole = origin or annotation  # List, which is list without a word on what is in it, is bare as well
    if isinstance(annotation, typing.NewType):
        kind = kind_of(annotation.__supertype__, definitions, inside)
    elif isinstance(annotation, typing.TypeVar):
        options = annotation.__constraints__ or (annotation.__bound__ or Any,)
        kind = _union([kind_of(each, definitions, within) for each in options], definitions)
    elif type(whole).__name__ == "TypeAliasType":
        value = whole.__value__
        kind = kind_of(value[args] if args else value, definitions, within)
    elif origin in (Required, NotRequired):
        kind = kind_of(args[0], definitions, inside)
    elif origin is Literal:
        kind = _literal(args)
    elif origin in (typing.Union, types.UnionType):
        kind = _union([kind_of(each, definitions, inside) for each in args], definitions)
    elif whole is tuple and annotation not in (tuple, typing.Tuple) and args[1:] != (...,):  # noqa: UP006
        kind = _tuple([kind_of(each, definitions, inside) for each in args])
    elif whole in _COLLECTIONS:
        item = kind_of(args[0] if args and not isinstance(args[0], typing.TypeVar) else Any, definitions, inside)
        make = _COLLECTIONS[whole]
        kind = Kind({"type": "array", "items": item.schema}, lambda value: make(map(item, value)))
    elif whole in _MAPPINGS:
        kind = _mapping(args if len(args) == 2 else (str, Any), definitions, inside)
    elif isinstance(annotation, type):
        kind = _class(annotation, {}, definitions, within)
    elif isinstance(origin, type):
        # Of a generic class: what its fields say of its parameters is said here.
        kind = _class(origin, dict(zip(getattr(origin, "__parameters__", ()), args, strict=False)), definitions, within)
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


def _annotated(args: tuple[Any, ...], definitions: dict[str, Schema], inside: tuple[Any, ...]) -> Kind:
    """The `Kind` of an ``Annotated``: a text in it is the description, also as a `Doc`; the rest may be pydantic's."""
    if any(type(each).__module__.split(".")[0] in ("pydantic", "annotated_types") for each in args[1:]):
        return _by_pydantic(typing.Annotated[args], definitions)
    kind = kind_of(args[0], definitions, inside)
    notes = [
        each.get("description") if isinstance(each, Mapping) else getattr(each, "documentation", each)
        for each in args[1:]
    ]
    note = next((each for each in notes if isinstance(each, str)), None)
    return Kind({**kind.schema, "description": note}, kind.convert) if note else kind


def _literal(values: tuple[Any, ...]) -> Kind:
    members = {_written(each): each for each in values if isinstance(each, enum.Enum)}
    if not members:
        return Kind({"enum": list(values)})
    schema = {"enum": [_written(each) if isinstance(each, enum.Enum) else each for each in values]}
    return Kind(schema, lambda value: members.get(value, value))


def _union(options: list[Kind], definitions: dict[str, Schema]) -> Kind:
    """The `Kind` of a union. The first member that takes a value counts: some refuse what their schemas allow."""
    if len(options) == 1:
        return options[0]

    @functools.cache  # not before it is used: `definitions` may not be complete yet
    def schemas() -> list[_checking.Schema]:
        return [_checking.Schema({**each.schema, "$defs": definitions}) for each in options]

    def convert(value: Any) -> Any:
        failure: Exception | None = None
        for option, schema in zip(options, schemas(), strict=True):
            if not schema.problems(value):
                try:
                    return option(value)
                except Exception as error:
                    failure = failure or error
        if failure is not None:
            raise failure
        return value  # it has been checked, and fits none: whoever gave the schema knows more

    return Kind({"anyOf": [each.schema for each in options]}, convert)


def _tuple(items: list[Kind]) -> Kind:
    schema: Schema = {"type": "array", "minItems": len(items), "maxItems": len(items)}
    if items:
        schema["prefixItems"] = [each.schema for each in items]
    return Kind(schema, lambda value: tuple(item(each) for item, each in zip(items, value, strict=True)))


def _mapping(args: tuple[Any, ...], definitions: dict[str, Schema], inside: tuple[Any, ...]) -> Kind:
    """The `Kind` of a mapping, whose keys are texts in JSON."""
    key, item = kind_of(args[0], definitions, inside), kind_of(args[1], definitions, inside)
    if args[0] in (int, float):
        key = Kind({}, args[0])
    elif key.schema.get("type", "string") != "string" or not isinstance(key.schema.get("enum", [""])[0], str):
        raise TypeError(f"the keys of a JSON object are strings, from which {args[0]!r} cannot be made")
    return Kind(
        {"type": "object", "additionalProperties": item.schema},
        lambda value: {key(name): item(each) for name, each in value.items()},
    )


def _class(
    annotation: type, given: Mapping[Any, Any], definitions: dict[str, Schema], inside: tuple[Any, ...]
) -> Kind | None:
    """The `Kind` of a class. ``given`` are the types in place of the parameters of a generic one."""

    def kinds_of(names: Iterable[str]) -> dict[str, Kind]:
        return {name: kind_of(_given(hints[name], given), definitions, inside) for name in names}

    if issubclass(annotation, enum.Enum):
        members = {_written(member): member for member in annotation}
        return Kind({"enum": list(members)}, lambda value: members[value])
    if typing.is_typeddict(annotation):
        hints = _hints(annotation)
        needed: frozenset[str] = annotation.__required_keys__  # type: ignore[attr-defined]
        # That one does not see what annotations in text say.
        required = [
            name
            for name, each in hints.items()
            if typing.get_origin(each) is not NotRequired and (name in needed or typing.get_origin(each) is Required)
        ]
        return _object(kinds_of(hints), required, lambda **values: values)
    if is_dataclass(annotation):
        fields = [each for each in fields_of(annotation) if each.init]
        hints = _hints(annotation)
        from dataclasses import MISSING as missing

        required = [each.name for each in fields if each.default is missing and each.default_factory is missing]
        return _object(kinds_of(each.name for each in fields), required, annotation)
    if issubclass(annotation, tuple) and hasattr(annotation, "_field_defaults"):  # a NamedTuple
        hints = dict.fromkeys(annotation._fields, Any) | _hints(annotation)  # type: ignore[attr-defined]
        names = annotation._fields  # type: ignore[attr-defined]
        return _object(kinds_of(names), [each for each in names if each not in annotation._field_defaults], annotation)
    pydantic = sys.modules.get("pydantic")  # never imported here: whoever has a model has imported it
    if pydantic is not None and issubclass(annotation, pydantic.BaseModel):
        return _by_pydantic(annotation, definitions)
    return None


def _written(member: enum.Enum) -> Any:
    """A member of an enum in JSON: its value, or its name where some member's value is none that JSON has."""
    plain_values = all(isinstance(each.value, (str, int, float, bool)) for each in type(member))
    return member.value if plain_values else member.name


def _given(annotation: Any, given: Mapping[Any, Any]) -> Any:
    """``annotation``, with what is ``given`` in place of its type variables."""
    if isinstance(annotation, typing.TypeVar):
        return given.get(annotation, annotation)
    free = getattr(annotation, "__parameters__", ())
    if not given or not isinstance(free, tuple) or not free or isinstance(annotation, type):
        return annotation
    return annotation[tuple(given.get(each, each) for each in free)]


def _object(kinds: Mapping[str, Kind], required: list[str], make: Callable[..., Any]) -> Kind:
    schema = {
        "type": "object",
        "properties": {name: kind.schema for name, kind in kinds.items()},
        "required": required,
        "additionalProperties": False,
    }
    return Kind(schema, lambda value: make(**{name: kinds[name](each) for name, each in value.items()}))


def _by_pydantic(annotation: Any, definitions: dict[str, Schema]) -> Kind:
    """The `Kind` of an annotation that pydantic reads."""
    pydantic = sys.modules["pydantic"]
    adapter = pydantic.TypeAdapter(annotation)
    schema: Schema = adapter.json_schema()
    for name, definition in schema.pop("$defs", {}).items():
        if definitions.setdefault(name, definition) != definition:
            raise TypeError(f"two different models of one tool are both named {name!r}")

    def convert(value: Any) -> Any:
        try:
            return adapter.validate_json(json.dumps(value))  # as JSON: a strict model takes a date only from that
        except pydantic.ValidationError as error:
            said = [f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors()]
            raise ValueError("; ".join(said)) from error

    return Kind(schema, convert)


# -- and back ----------------------------------------------------------------------------------------------------------


def to_jsonable(value: Any) -> Any:
    """``value`` as JSON can write it: dataclasses, enums, dates, sets, pydantic models; what is unknown as text."""
    if isinstance(value, enum.Enum):
        return to_jsonable(value.value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: to_jsonable(getattr(value, each.name)) for each in fields_of(value)}
    if isinstance(value, Mapping):
        keys = (key if isinstance(key, str) else str(to_jsonable(key)) for key in value)
        return dict(zip(keys, map(to_jsonable, value.values()), strict=True))
    if isinstance(value, (list, tuple, abc.Set)):
        return [to_jsonable(each) for each in value]
    if isinstance(value, (date, time)):
        return value.isoformat()
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else str(value)
