"""Dataclasses whose methods are made when they are first used: `dataclass` and its companions of the standard library.

`dataclasses.dataclass` writes and compiles the methods of a class where it is defined. Two thirds of what importing
this package took went into that, for a hundred classes of which most programs use a few. Here a class gets its slots at
once, and a `_Later` in the place of each thing that is to be made. Whoever first makes an instance, asks for the fields
or matches against the class has the standard library make them all, in a class of the same definition, from which they
are taken over. It is the same class before and after, and afterwards there is no difference, but that a frozen class
with slots makes its instances faster (`_quick_init`).

To make them twice, in two threads or in a signal handler, is harmless: there is no lock.
"""

from __future__ import annotations

import builtins
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

__all__ = [
    "asdict",
    "astuple",
    "dataclass",
    "field",
    "fields",
    "is_dataclass",
    "replace",
    "resolve_annotations",
    "short_repr",
    "shown",
]

_SHOWN: Final = 500  # characters of a value in a repr

if TYPE_CHECKING:
    from dataclasses import asdict, astuple, dataclass, field, fields, is_dataclass, replace
else:

    def dataclass(**settings):
        """`dataclasses.dataclass`."""
        return lambda cls: _defined(cls, settings)

    def field(**settings):
        """`dataclasses.field`."""
        return _Field(settings)

    def fields(of):
        """`dataclasses.fields`."""
        return _standard().fields(of)

    def is_dataclass(value):
        """`dataclasses.is_dataclass`."""
        return _standard().is_dataclass(value)

    def replace(value, /, **changes):
        """`dataclasses.replace`."""
        return _standard().replace(value, **changes)

    def asdict(value):
        """`dataclasses.asdict`."""
        return _standard().asdict(value)

    def astuple(value):
        """`dataclasses.astuple`."""
        return _standard().astuple(value)


def _standard() -> Any:
    import dataclasses  # which imports `inspect`, and that takes as long as all of `channels`

    return dataclasses


class _Field:
    """What was said with `field`."""

    __slots__ = ("settings",)

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings


_ALWAYS: Final = ("__init__", "__repr__", "__match_args__", "__dataclass_fields__", "__dataclass_params__")
#: In some versions, or never: who asks shall find what a dataclass has, or nothing.
_PERHAPS: Final = ("__replace__", "__signature__")
_MADE: Final = (*_ALWAYS, *_PERHAPS)


class _Definition:
    """A class as it was written: what its methods are made of."""

    __slots__ = ("cls", "namespace", "settings")

    def __init__(self, namespace: dict[str, Any], settings: dict[str, Any]) -> None:
        self.namespace = namespace
        self.settings = settings
        self.cls: Any = None  # the class that gets them

    def complete(self) -> None:
        """Give the class all that was to be made later."""
        cls, standard = self.cls, _standard()
        given = {
            name: standard.field(**value.settings) if isinstance(value, _Field) else value
            for name, value in self.namespace.items()
        }
        quick = self.settings.get("frozen") and self.settings.get("slots")
        settings = {**self.settings, "init": False} if quick else self.settings
        made = standard.dataclass(**settings)(type(cls)(cls.__name__, cls.__bases__, given))
        model = dict(vars(made))
        if quick:
            model["__init__"] = _quick_init(cls, standard.fields(made))
            made.__dataclass_params__.init = True
        for name, value in list(vars(cls).items()):
            if isinstance(value, _Later) and name in model:
                setattr(cls, name, model[name])
        for name in _PERHAPS:
            if isinstance(vars(cls).get(name), _Later):
                with suppress(AttributeError):  # another thread was faster
                    delattr(cls, name)


class _Factory:
    """The default of a parameter where a function makes the value."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY: Final = _Factory()


def _quick_init(cls: Any, fields: tuple[Any, ...]) -> Any:
    """The ``__init__`` of a frozen class with slots. That of the standard library calls ``object.__setattr__`` for each
    field, which looks up the slot by its name and checks who calls it. Here the slots are set, in three fifths of the
    time.
    """
    missing = _standard().MISSING
    known: dict[str, Any] = {"_FACTORY": _FACTORY}
    by_place: list[str] = []
    by_name: list[str] = []
    lines: list[str] = []
    for each in fields:
        name = each.name
        parameter = value = name
        if each.default_factory is not missing:
            known[f"_make_{name}"] = each.default_factory
            parameter = f"{name}=_FACTORY"
            value = f"_make_{name}() if {name} is _FACTORY else {name}" if each.init else f"_make_{name}()"
        elif each.default is not missing:
            known[f"_default_{name}"] = each.default
            parameter = f"{name}=_default_{name}"
            value = name if each.init else f"_default_{name}"
        elif not each.init:
            continue  # whoever makes it sets that one
        if each.init:
            (by_name if each.kw_only else by_place).append(parameter)
        known[f"_set_{name}"] = getattr(cls, name).__set__
        lines.append(f"  _set_{name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append("  self.__post_init__()")
    parameters = ", ".join(["self", *by_place, *(["*", *by_name] if by_name else ())])
    text = f"def outer({', '.join(known)}):\n def __init__({parameters}):\n" + "\n".join(lines or ["  pass"])
    outer: dict[str, Any] = {}
    exec(f"{text}\n return __init__", vars(sys.modules[cls.__module__]), outer)
    made = outer["outer"](**known)
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__annotations__ = {each.name: each.type for each in fields if each.init} | {"return": None}
    return made


class _Later:
    """Stands in a class for something that is made when somebody first asks for it."""

    __slots__ = ("definition", "name")

    def __init__(self, definition: _Definition, name: str) -> None:
        self.definition = definition
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        self.definition.complete()
        return getattr(owner if instance is None else instance, self.name)


def _defined(cls: Any, settings: dict[str, Any]) -> Any:
    """``cls`` as a dataclass; with ``slots=True`` another class in its place, as in the standard library."""
    written = dict(vars(cls))
    if "__annotations__" not in written and cls.__dict__.get("__annotate_func__") is not None:
        return _standard().dataclass(**settings)(cls)  # its annotations are no texts
    written.pop("__dict__", None)
    written.pop("__weakref__", None)
    written["__qualname__"] = cls.__qualname__
    slots, frozen = settings.get("slots"), settings.get("frozen")
    definition = _Definition(written, settings)
    annotations = written.get("__annotations__", {})
    own = [name for name, kind in annotations.items() if not str(kind).startswith(("ClassVar", "typing.ClassVar"))]

    added: dict[str, Any] = {name: _Later(definition, name) for name in _MADE}
    if settings.get("eq", True):
        added["__eq__"] = _Later(definition, "__eq__")
        added["__hash__"] = _Later(definition, "__hash__") if frozen else None
    if frozen:
        added["__setattr__"], added["__delattr__"] = _frozen(definition)
    if frozen and slots:
        added["__getstate__"], added["__setstate__"] = _getstate, _setstate

    if slots:
        kept = {**added, **written}
        for name in own:
            kept.pop(name, None)
        bases = cls.__mro__[1:-1]
        inherited = {slot for base in bases for slot in vars(base).get("__slots__", ())}
        kept["__slots__"] = tuple(name for name in own if name not in inherited) if bases else tuple(own)
        definition.cls = type(cls)(cls.__name__, cls.__bases__, kept)
        return definition.cls
    definition.cls = cls
    for name in own:  # a default is the value of the class, too
        value = written.get(name)
        if isinstance(value, _Field):
            if "default" in value.settings:
                setattr(cls, name, value.settings["default"])
            else:
                delattr(cls, name)
    for name, value in added.items():
        if name not in written:
            setattr(cls, name, value)
    return cls


def _frozen(definition: _Definition) -> tuple[Any, Any]:
    """The methods that refuse to change an instance; what a subclass adds of its own may change."""

    def refuses(self: Any, name: str) -> bool:
        return type(self) is definition.cls or name in definition.cls.__dataclass_fields__

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if refuses(self, name):
            raise _standard().FrozenInstanceError(f"cannot assign to field {name!r}")
        super(definition.cls, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if refuses(self, name):
            raise _standard().FrozenInstanceError(f"cannot delete field {name!r}")
        super(definition.cls, self).__delattr__(name)

    return __setattr__, __delattr__


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in fields(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for each, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, each.name, value)


def resolve_annotations(cls: type) -> bool:
    """Where ``cls`` is a dataclass that is not made yet: let the annotations of its fields be what their texts mean in
    the module where they stand. Whether it is one.
    """
    later = vars(cls).get("__dataclass_fields__")
    if not isinstance(later, _Later):
        return False
    annotations, known = later.definition.namespace.get("__annotations__", {}), vars(sys.modules[cls.__module__])
    for name, kind in annotations.items():
        if isinstance(kind, str):
            # Most of them are a name, or one or None, and to look it up takes a tenth of what `eval` takes.
            one = kind.removesuffix(" | None")
            meant = known.get(one) or getattr(builtins, one, None) or eval(one, known)
            annotations[name] = meant if one == kind else meant | None
    return True


def shown(value: object) -> str:
    """The `repr` of a value, or its beginning: a debugger would show a whole conversation on one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def short_repr(self: Any) -> str:
    """The ``__repr__`` of a dataclass whose fields may be long, or are mostly those that it has by default."""
    said = [
        f"{each.name}={shown(value)}"
        for each in fields(self)
        if each.repr and (value := getattr(self, each.name)) is not each.default
    ]
    return f"{type(self).__name__}({', '.join(said)})"
