"""Modules that are imported when something of them is first used, so that importing this package takes no longer than
it must: `logging` and `inspect` bring a third of the standard library along.

    if TYPE_CHECKING:
        import inspect
    else:
        inspect = lazy("inspect")
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from logging import Logger

T = TypeVar("T")


def _module(name: str) -> Any:
    __import__(name)  # also where it is there: another thread may be in the middle of importing it
    return sys.modules[name]


class _Lazy:
    """A module, as far as it has been used."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        value = self.__dict__[name] = getattr(_module(self.__name__), name)
        return value

    def __repr__(self) -> str:
        return f"<module {self.__name__!r}, imported when it is used>"


def lazy(module: str) -> Any:
    """The module of this name, in the place of importing it. What was used of it once stays what it was."""
    return _Lazy(module)


class _Made:
    """An object that is made when something of it is first used. Two threads may both make it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.__make = make

    def __getattr__(self, name: str) -> Any:
        value = self.__dict__[name] = getattr(self.__make(), name)
        return value


def made_later(make: Callable[[], T]) -> T:
    """What ``make`` returns, made when a method of it is first called: a regular expression takes 0.1 ms to compile."""
    return _Made(make)  # type: ignore[return-value]


#: Called when one of our loggers is first used: what is built on this package completes their records.
before_logging: list[Callable[[], object]] = []


class _LazyLogger:
    """A logger, which imports `logging` when it has something to say."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        try:
            logger = _module("logging").getLogger(self._name)
            if before_logging:  # two threads may both do it, and neither logs before it is done
                for each in before_logging[:]:
                    each()
                before_logging.clear()
            return getattr(logger, name)
        except (ImportError, AttributeError):
            # The interpreter is ending, or a signal handler or finalizer has come into the middle of the import, in the
            # same thread. Nothing can be logged then, and the caller has something to finish.
            if hasattr(sys.modules.get("logging"), "Logger"):
                raise
            return _nothing


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def lazy_logger(name: str) -> Logger:
    """`logging.getLogger` of this name."""
    return _LazyLogger(name)  # type: ignore[return-value]
