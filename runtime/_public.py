"""What public objects have in common: they say the module that users import them from, in repr, tracebacks, help and
pickles, and those that hold threads, locks or connections refuse to be copied.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, MutableMapping
from types import FunctionType
from typing import Any, NoReturn, SupportsIndex

from ._dataclasses import fields, resolve_annotations


def publish(module: str, namespace: MutableMapping[str, Any], names: Iterable[str]) -> None:
    """Let the classes and functions of these ``names`` say that they are of ``module``."""
    for name in names:
        value = namespace[name]
        if not isinstance(value, (type, FunctionType)):
            continue
        if isinstance(value, type) and not resolve_annotations(value) and "__dataclass_fields__" in vars(value):
            # Who reads its annotations (pydantic does) looks their names up in the module that it says: they are looked
            # up here, where they can be found, once and for all.
            hints = typing.get_type_hints(value, include_extras=True)
            own = value.__annotations__
            value.__annotations__ = {each: hints[each] for each in own}
            for field in fields(value):
                if field.name in own:  # the others are those of a base class, and shared with it
                    field.type = hints[field.name]
        value.__module__ = module


def not_copied(instead: str) -> Callable[[Any, SupportsIndex], NoReturn]:
    """The ``__reduce_ex__`` of a class whose objects cannot be copied or pickled: a copy would share their threads and
    locks, or fail at the first of these with an error that names neither. ``instead`` says what to do.
    """

    def __reduce_ex__(self: Any, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"{self!r} cannot be copied or pickled: {instead}")

    return __reduce_ex__
