"""The dataclasses of `runtime`, whose methods are made when they are first used, are those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import pytest

from runtime import _dataclasses as ours
from runtime import events

T = TypeVar("T")
OURS: Any = ours
DEFINE: list[tuple[Any, Any]] = [(ours.dataclass, ours.field), (dataclasses.dataclass, dataclasses.field)]


def define(dataclass: Any, field: Any, **settings: Any) -> tuple[type, type]:
    """A class and one that goes on with it."""

    @dataclass(**settings)
    class Point:
        """A point."""

        kind: ClassVar[str] = "point"
        x: int
        y: int = 2
        tags: list[str] = field(default_factory=list, repr=False)
        name: str = field(default="", kw_only=True)
        known: Any = field(default=None, init=False, repr=False, compare=False)

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError("x is 0 or more")

        def length(self) -> int:
            return self.x + self.y

    @dataclass(**settings)
    class Deep(Point):  # type: ignore[misc, valid-type]
        """A point with a depth."""

        kind: ClassVar[str] = "deep"
        z: int = 3

    return Point, Deep


def seen(action: Callable[[], Any]) -> Any:
    """What an action returns, or how it fails."""
    try:
        return action()
    except Exception as error:
        return type(error), str(error)


ACTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "make": lambda p, d: repr((p(1), p(1, 5, ["a"]), d(1, z=4, name="n"))),
    "repr of the class": lambda p, d: (p.__name__, d.__qualname__, p.__doc__, d.__module__),
    "signature": lambda p, d: (str(inspect.signature(p)), str(inspect.signature(d))),
    "signature of init": lambda p, d: str(inspect.signature(d.__init__)),
    "name of init": lambda p, d: d.__init__.__qualname__,
    "fields": lambda p, d: [(f.name, f.type, f.kw_only, f.repr) for f in dataclasses.fields(d)],
    "is one": lambda p, d: (dataclasses.is_dataclass(p), dataclasses.is_dataclass(d(1))),
    "match args": lambda p, d: (p.__match_args__, d.__match_args__),
    "eq": lambda p, d: (p(1) == p(1), p(1) == p(2), p(1) == d(1), p(1) != p(1)),
    "hash": lambda p, d: seen(lambda: hash(p(1, tags=())) == hash(p(1, tags=()))),  # type: ignore[arg-type]
    "set": lambda p, d: seen(lambda: setattr(p(1), "x", 5)),
    "delete": lambda p, d: seen(lambda: delattr(p(1), "x")),
    "wrong": lambda p, d: seen(lambda: p()),
    "post init": lambda p, d: seen(lambda: p(-1)),
    "method": lambda p, d: d(1).length(),
    "not in init": lambda p, d: (d(1).known, seen(lambda: d(1, known=5))),
    "replace": lambda p, d: repr(dataclasses.replace(d(1), x=7, name="m")),
    "copy": lambda p, d: (copy.copy(p(1)) == p(1), copy.deepcopy(d(1, 5)) == d(1, 5)),
    "asdict": lambda p, d: (dataclasses.asdict(d(1)), dataclasses.astuple(p(1))),
    "class variable": lambda p, d: (p.kind, d.kind, d(1).kind),
    "slots": lambda p, d: (hasattr(p(1), "__dict__"), getattr(p, "__slots__", None), getattr(d, "__slots__", None)),
    "default of the class": lambda p, d: getattr(p, "name", None) if not hasattr(p, "__slots__") else None,
    "params": lambda p, d: repr(d.__dataclass_params__),
    "subclass": lambda p, d: repr(type("Sub", (d,), {"extra": 1})(1)),
    "attribute of a subclass": lambda p, d: seen(lambda: setattr(type("Sub", (d,), {})(1), "more", 1)),
}


@pytest.mark.parametrize("settings", [{"frozen": True, "slots": True}, {"slots": True}, {"frozen": True}, {}], ids=str)
@pytest.mark.parametrize("first", ACTIONS)
def test_what_is_done_first_does_as_with_the_standard_library(settings: dict[str, bool], first: str) -> None:
    """Whatever it is that has the methods made, and everything else afterwards."""
    mine, standard = (define(*each, **settings) for each in DEFINE)
    for name in (first, *ACTIONS):
        expected, got = ACTIONS[name](*standard), ACTIONS[name](*mine)
        if (name, settings) == ("attribute of a subclass", {"frozen": True, "slots": True}):
            continue  # where the standard library of 3.11 fails with a TypeError about super
        assert got == expected, name


def test_an_instance_may_be_unpickled_before_any_was_made(script: Callable[..., str]) -> None:
    event = events.AgentChoice("hello", agent_name="a")
    assert pickle.loads(pickle.dumps(event)) == event
    said = script("import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])))", pickle.dumps(event).hex())
    assert said.strip() == repr(event)


def test_a_class_may_match_before_any_instance_was_made(script: Callable[..., str]) -> None:
    script("from runtime.events import Error\nmatch object():\n  case Error(message): raise AssertionError(message)\n")


def test_generic_dataclasses_stay_generic() -> None:
    @OURS.dataclass(frozen=True, slots=True)
    class Box(Generic[T]):
        """A box."""

        value: T

    assert Box[int](5) == Box(5)
    assert repr(Box[int]) == f"{__name__}.{Box.__qualname__}[int]"


def test_methods_of_its_own_are_kept() -> None:
    @OURS.dataclass(frozen=True, slots=True)
    class Named:
        """A name."""

        name: str

        def __repr__(self) -> str:
            return "mine"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 5

    assert (repr(Named("a")), Named("a") == 3, hash(Named("a"))) == ("mine", True, 5)


def test_many_threads_may_be_the_first(threads: Any, switching: None) -> None:
    for _ in range(20):
        point, deep = define(*DEFINE[0], frozen=True, slots=True)
        threads.all(*(lambda: (point(1), deep(1, z=4), hash(deep(1, tags=())), deep.__match_args__) for _ in range(4)))
        assert deep(1, z=4) == deep(1, z=4)
        assert threading.active_count() >= 1
