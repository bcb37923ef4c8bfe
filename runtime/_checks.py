"""Checks of what users give: a wrong value is an error where it is given, not where it is met."""

from __future__ import annotations

from typing import Any


def is_number(value: object, *, least: float | None = None, above: float | None = None, whole: bool = False) -> bool:
    """Whether ``value`` is a number, which True and NaN are not, and within its bounds."""
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return value == value and (least is None or value >= least) and (above is None or value > above)


def check(what: str, value: object, kind: type[Any] | tuple[type[Any], ...], wanted: str) -> None:
    """Raise `TypeError` where ``value`` is not of its ``kind``; ``wanted`` says what that is."""
    if not isinstance(value, kind):
        raise TypeError(f"{what} is {wanted}, not {value!r}")
