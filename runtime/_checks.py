"""Checks of the settings that users give: a wrong value is an error where it is given, not where it is used."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

_LARGEST: Final = 2**63  # behind it, a whole number of seconds is more than any clock can say


def is_number(value: object, *, least: float | None = None, above: float | None = None, whole: bool = False) -> bool:
    """Whether ``value`` is a number, which True and NaN are not, and within its bounds."""
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    if not whole and isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        return False
    return value == value and (least is None or value >= least) and (above is None or value > above)


def check(what: str, value: object, kind: type[Any] | tuple[type[Any], ...], wanted: str) -> None:
    """Raise `TypeError` where ``value`` is not of its ``kind``; ``wanted`` says what that is."""
    if not isinstance(value, kind):
        raise TypeError(f"{what} must be {wanted}, not {value!r:.200}")


def check_function(what: str, value: object, wanted: str) -> None:
    """Raise `TypeError` where ``value`` cannot be called; ``wanted`` says what it is called with."""
    if not callable(value):
        raise TypeError(f"{what} must be a function {wanted}, not {value!r:.200}")


def check_flags(**flags: object) -> None:
    """Raise `TypeError` where one of the ``flags`` is not True or False: "no" and "false" would count as true."""
    for name, value in flags.items():
        if value is not True and value is not False:
            raise TypeError(f"{name} must be True or False, not {value!r:.200}")


def check_path(what: str, value: object) -> None:
    """Raise `TypeError` where ``value`` does not name a file."""
    check(what, value, (str, os.PathLike), "a path, as text or a pathlib.Path")


def check_number(
    what: str,
    value: object,
    unit: str,
    *,
    least: float | None = None,
    above: float | None = None,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Raise `ValueError` where ``value`` is not a number of this ``unit`` within its bounds."""
    if is_number(value, least=least, above=above, whole=whole) or (optional and value is None):
        return
    bounds = f", {least:g} or more" if least is not None else f" above {above:g}" if above is not None else ""
    kind = "whole number" if whole else "number"
    raise ValueError(f"{what} must be a {kind} of {unit}{bounds}{', or None' if optional else ''}, not {value!r:.200}")


def check_items(what: str, values: object, kind: Any, wanted: str) -> tuple[Any, ...]:
    """The ``values``. Raises `TypeError` where they are not an iterable of items of this ``kind``.

    A text, and a single item, are no list: each has been given in place of one.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) or isinstance(values, kind):
        raise TypeError(f"{what} must be {wanted}, not {values!r:.200}")
    items = tuple(values)
    for each in items:
        if not isinstance(each, kind):
            raise TypeError(f"{what} must be {wanted}; {each!r:.200} is none")
    return items
