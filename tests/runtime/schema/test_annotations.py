"""Annotations, functions and docstrings, as people write them: a tool is right, or refused where it is declared."""

from __future__ import annotations

import functools
import json
import sys
import typing
import uuid
from collections import abc
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, NewType, TypeVar

import pytest

from runtime import Agent, Session, tool
from runtime._errors import BadArguments
from support.scripted import Scripted, approving, call, say


class Hue(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int = 0


_T = TypeVar("_T")


@dataclass
class Page(Generic[_T]):
    items: list[_T]
    next: _T | None = None


UserId = NewType("UserId", int)


@pytest.mark.parametrize(
    ("annotation", "said", "got"),
    [
        (typing.List, [1, "a"], [1, "a"]),  # noqa: UP006
        (typing.Dict, {"a": 1}, {"a": 1}),  # noqa: UP006
        (typing.Set, [1, 1], {1}),  # noqa: UP006
        (abc.Sequence, [1], [1]),
        (tuple, [1, "a"], (1, "a")),
        (frozenset, [1], frozenset([1])),
        (abc.Iterable[int], [1], [1]),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[int, date], [1, "2026-12-24"], (1, date(2026, 12, 24))),
        (tuple[()], [], ()),
        (UserId, 1, 1),
        (list[UserId], [1], [1]),
        (Point, {"x": 1}, Point(1)),
        (Page[date], {"items": ["2026-12-24"]}, Page([date(2026, 12, 24)])),
        (Page[int], {"items": [], "next": 2}, Page([], 2)),
        (dict[int, str], {"7": "a"}, {7: "a"}),
        (dict[date, int], {"2026-12-24": 1}, {date(2026, 12, 24): 1}),
        (Literal[Hue.RED, "none"], "red", Hue.RED),
        (Literal[Hue.RED, "none"], "none", "none"),
        (uuid.UUID | str, "abc", "abc"),
        (Decimal | str, "abc", "abc"),
        (date | Literal["soon"], "soon", "soon"),
        (uuid.UUID | None, None, None),
        (Annotated[str, {"description": "who"}], "Ann", "Ann"),
        (object, [1], [1]),
    ],
    ids=str,
)
def test_annotations_get_what_they_name(annotation: Any, said: Any, got: Any) -> None:
    def keep(x: Any) -> None:
        """Keep."""

    keep.__annotations__ = {"x": annotation}
    made = tool(keep)
    assert not made.schema.problems({"x": said})
    assert made.values({"x": said}) == {"x": got}
    json.dumps(made.parameters)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a type statement")
def test_type_statements() -> None:
    names: dict[str, Any] = {}
    exec("type Names = list[str]\ntype Pair[T] = tuple[T, T]\ntype Deep = dict[str, Deep]", names)

    def keep(x: Any, y: Any) -> None:
        """Keep."""

    keep.__annotations__ = {"x": names["Names"], "y": names["Pair"][int]}
    assert tool(keep).values({"x": ["a"], "y": [1, 2]}) == {"x": ["a"], "y": (1, 2)}
    keep.__annotations__ = {"x": names["Deep"], "y": int}
    with pytest.raises(TypeError, match="cannot contain itself"):
        tool(keep)


@pytest.mark.parametrize("annotation", [bytes, Final[int], dict[bool, int], complex], ids=str)
def test_what_json_cannot_say_is_refused_where_it_is_declared(annotation: Any) -> None:
    def keep(x: Any) -> None:
        """Keep."""

    keep.__annotations__ = {"x": annotation}
    with pytest.raises(TypeError, match=r"cannot be (annotated|made)"):
        tool(keep)


def test_what_is_none_of_a_union_is_told_all_that_it_may_be() -> None:
    def keep(x: int | Literal["auto"]) -> None:
        """Keep."""

    assert tool(keep).schema.problems({"x": "often"}) == [
        "x must be a whole number, not 'often'; or x must be one of 'auto', not 'often'"
    ]


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    @tool(read_only=True)
    def sell(self, item: str) -> str:
        """Sell."""
        return f"{self.name} sold {item}"


def test_methods_are_tools_of_their_objects() -> None:
    made = Shop("Luigi").sell
    assert list(made.parameters["properties"]) == ["item"]
    assert made(item="lamp") == "Luigi sold lamp"
    assert Agent("a", Scripted(), tools=[made, tool(name="other")(Shop("Ann").sell.function)]).tools[0] is made
    with pytest.raises(TypeError, match=r"sell is a method, and has to be that of an object, such as Shop\(\)\.sell"):
        Agent("a", Scripted(), tools=[Shop.sell])


def test_what_a_partial_gives_is_not_asked_for() -> None:
    def weather(city: str, days: int, source: object) -> str:
        """Tell the weather."""
        return f"{city} {days} {source}"

    made = tool(functools.partial(weather, source="radar", days=3))
    assert (made.name, made.description) == ("weather", "Tell the weather.")
    assert list(made.parameters["properties"]) == ["city"]
    assert made(city="Oslo") == "Oslo 3 radar"


def test_objects_that_can_be_called() -> None:
    class Adder:
        """Adds."""

        def __call__(self, a: int) -> int:
            """Add one."""
            return a + 1

    made = tool(name="add")(Adder())
    assert (made.description, made.parameters["properties"]["a"]) == ("Add one.", {"type": "integer"})
    for nameless in (Adder(), lambda x: x):
        with pytest.raises(TypeError, match=r"has no name that a model could call: tool\(name=\.\.\.\)"):
            tool(nameless)


def test_a_class_is_a_tool_that_makes_one() -> None:
    made = tool(Page)
    assert made.parameters["required"] == ["items"]


def test_generators_are_refused_where_they_are_declared() -> None:
    def pages() -> Iterator[str]:
        yield "one"

    async def more() -> AsyncIterator[str]:
        yield "one"

    for each in (pages, more):
        with pytest.raises(TypeError, match="is a generator: let it return a list"):
            tool(each)


def test_what_it_returns_need_not_be_known() -> None:
    def later(x: int) -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
        """Later."""

    assert tool(later).parameters["properties"] == {"x": {"type": "integer"}}


def test_a_default_of_none_may_be_said() -> None:
    def later(x: int = None) -> None:  # type: ignore[assignment]  # noqa: RUF013
        """Later."""

    made = tool(later)
    assert made.nullable == {"x"}
    assert made.values({"x": None}) == {"x": None}


def test_none_is_null() -> None:
    @tool(read_only=True)
    def nothing() -> None:
        """Find nothing."""

    session = Session.from_user("go")
    with approving(Agent("a", Scripted([call("nothing")], say("ok")), tools=[nothing])) as runtime:
        runtime.run(session)
    assert [message.content for message in session.messages if message.role == "tool"] == ["null"]


def test_pydantic_s_fields_as_defaults() -> None:
    pydantic = pytest.importorskip("pydantic")

    def find(
        x: int = pydantic.Field(5, description="how many", le=9), y: str = pydantic.Field(description="who")
    ) -> str:
        """Find."""
        return f"{x} {y}"

    made = tool(find)
    assert made.parameters["properties"]["x"] == {
        "type": "integer", "description": "how many", "default": 5, "maximum": 9,
    }  # fmt: skip
    assert made.parameters["required"] == ["y"]
    assert made.values({"y": "Ann"}) == {"x": 5, "y": "Ann"}


def test_strict_models_take_what_json_can_say() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Booking(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        model_config = pydantic.ConfigDict(strict=True)
        day: date
        hue: Hue

    def book(booking: Any) -> None:
        """Book."""

    book.__annotations__ = {"booking": Booking}
    made = tool(book)
    booked = made.values({"booking": {"day": "2026-12-24", "hue": "red"}})
    assert booked == {"booking": Booking(day=date(2026, 12, 24), hue=Hue.RED)}
    with pytest.raises(BadArguments, match=r"wrong arguments for book: day: Input should be a valid date[^\n]*$"):
        made.values({"booking": {"day": "never", "hue": "red"}})


def test_unions_of_models_that_hold_models() -> None:
    pydantic = pytest.importorskip("pydantic")
    street = pydantic.create_model("Street", name=(str, ...))
    number = pydantic.create_model("Number", value=(int, ...))
    home = pydantic.create_model("Home", at=(street, ...))
    phone = pydantic.create_model("Phone", at=(number, ...))

    def send(to: Any, back: Any = None) -> None:
        """Send."""

    send.__annotations__ = {"to": home | phone, "back": home | None}
    made = tool(send)
    for at, kind in (({"name": "Main"}, home), ({"value": 5}, phone)):
        assert not made.schema.problems({"to": {"at": at}})
        bound = made.values({"to": {"at": at}, "back": {"at": {"name": "Main"}}})
        assert (type(bound["to"]), type(bound["back"])) == (kind, home)


DOCSTRINGS = {
    "google": "Args:\n    city (str, optional): Where,\n        exactly.\n    days: How many.\n\nReturns:\n    A text.",
    "other": "Arguments:\n  city: Where, exactly.\n  - `days` (dict[str, int]): How many.",
    "numpy": "Parameters\n----------\ncity : str\n    Where,\n    exactly.\ndays : int, optional\n    How many.\n",
    "sphinx": ":param city: Where,\n    exactly.\n:type city: str\n:param int days: How many.\n:rtype: str",
    "epydoc": "@param city: Where, exactly.\n@type city: C{str}\n@param days: How many.",
}


@pytest.mark.parametrize("form", DOCSTRINGS)
def test_docstrings_describe_parameters(form: str) -> None:
    def forecast(city: str, days: int = 1) -> None: ...

    forecast.__doc__ = f"Forecast the\nweather.\n\nWith care.\n\n{DOCSTRINGS[form]}"
    made = tool(forecast)
    properties = made.parameters["properties"]
    assert (properties["city"]["description"], properties["days"]["description"]) == ("Where, exactly.", "How many.")
    assert made.description.startswith("Forecast the weather.\n\nWith care.")
    assert "city" not in made.description


def test_lists_and_examples_of_a_docstring_stay_as_they_are() -> None:
    def run() -> None:
        """Run.

        - one
        - two

        >>> run()
        1
        """

    assert tool(run).description == "Run.\n\n- one\n- two\n\n>>> run()\n1"
