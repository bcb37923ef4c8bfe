"""The small parts: events on the wire, tools from functions, schemas, sessions."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import pytest

from channels import Channel
from runtime import (
    Agent,
    ElicitationBridge,
    Image,
    Message,
    Runtime,
    Session,
    SessionBusy,
    Tool,
    ToolCall,
    ToolContext,
    events,
    stream_scope,
    tool,
)
from runtime.schema._checking import problems
from runtime.session._session import Compacted, settled
from support.interrupts import between, press_ctrl_c
from support.scripted import Scripted

SAMPLES: dict[str, Any] = {
    "str": "text",
    "bool": True,
    "int": 3,
    "float": 1.5,
    "float | None": 0.25,
    "StopReason": "canceled",
    "ToolCall": ToolCall("1", "f", "{}"),
    "ToolCall | None": ToolCall("1", "f", "{}"),
    "Message": Message("assistant", "hi", (ToolCall("1", "f"),)),
    "Mapping[str, Any]": {"type": "object"},
    "tuple[str, ...]": ("a", "b"),
    "tuple[Image, ...]": (Image(b"x"),),
    "datetime": None,
}
ALL = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not events.Event])
def test_every_event_survives_json(kind: type[events.Event]) -> None:
    """to_dict, JSON, from_dict: the same event; frozen; its wire name is its class name in snake_case, but for the one
    whose class would be called as `runtime.ToolCall` is.
    """
    given = {f.name: SAMPLES[str(f.type)] for f in dataclasses.fields(kind) if f.name != "timestamp"}
    event = kind(**given)
    wire = json.loads(json.dumps(event.to_dict()))
    back = events.Event.from_dict(wire)
    assert type(back) is kind
    assert back.to_dict() == event.to_dict()
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in kind.__name__).lstrip("_")
    assert wire["type"] == ("tool_call" if kind is events.ToolCallStarted else words)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.agent_name = "x"  # type: ignore[misc]


def test_an_unknown_event_type() -> None:
    """A clear error."""
    with pytest.raises(ValueError, match="unknown event type 'nope'; known are agent_choice"):
        events.Event.from_dict({"type": "nope"})


def test_a_tool_from_a_function() -> None:
    """Name, docstring and annotations are what the model sees; the context is not."""

    @tool
    def order(
        dish: str,
        context: ToolContext,
        count: int = 1,
        spicy: bool | None = None,
        drink: Literal["water", "wine"] = "water",
        notes: list[str] | None = None,
        extras: dict[str, int] | None = None,
        table: Annotated[int, "the number on the sign"] = 0,
        price: float | str = 0.0,
    ) -> str:
        """Order a dish,
        from the kitchen.

        Args:
            dish: What to eat;
                anything on the menu.
            count (int): How many.

        Returns:
            A number.
        """
        return dish

    assert order.name == "order"
    assert order.description == "Order a dish, from the kitchen.\n\nReturns:\n    A number."
    schema = order.parameters
    assert schema["required"] == ["dish"]
    properties = schema["properties"]
    assert "context" not in properties
    assert properties["dish"] == {"type": "string", "description": "What to eat; anything on the menu."}
    assert properties["count"] == {"type": "integer", "description": "How many.", "default": 1}
    assert properties["spicy"] == {"type": "boolean"}
    assert properties["drink"]["enum"] == ["water", "wine"]
    assert properties["notes"] == {"type": "array", "items": {"type": "string"}}
    assert properties["extras"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert properties["table"]["description"] == "the number on the sign"
    assert properties["price"]["anyOf"] == [{"type": "number"}, {"type": "string"}]
    assert order.context_parameter == "context"
    json.dumps(schema)


def test_what_cannot_be_a_tool() -> None:
    """Clear errors when it is made, not when it is called."""

    def star(*args: str) -> None: ...
    def odd(a: Runtime) -> None: ...

    with pytest.raises(TypeError, match="passed by name"):
        tool(star)
    with pytest.raises(TypeError, match="cannot be annotated"):
        tool(odd)
    with pytest.raises(ValueError, match="two tools named 'f'"):
        Agent("a", Scripted(), tools=[Tool("f", print), Tool("f", print)])


GOOD_AND_BAD: list[tuple[Mapping[str, Any], list[Any], list[Any]]] = [
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["a", "abcd", 3, None]),
    ({"type": "string", "pattern": "^a+$"}, ["aa"], ["ab"]),
    ({"type": "string", "format": "date"}, ["2026-12-24"], ["24.12.2026", "tomorrow", ""]),
    ({"type": "string", "format": "date-time"}, ["2026-12-24T19:30:00Z"], ["now"]),
    ({"type": "string", "format": "email"}, ["a@b.org"], ["a@b", "a b@c.org"]),
    ({"type": "string", "format": "uri"}, ["https://example.org"], ["example"]),
    ({"type": "integer", "minimum": 1, "maximum": 20}, [1, 20, 2.0], [0, 21, 1.5, "1", True]),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5], [0, 1, "x", False]),
    ({"type": "boolean"}, [True, False], [0, 1, "yes"]),
    ({"enum": ["a", 1]}, ["a", 1], ["b", True]),
    ({"oneOf": [{"const": "x", "title": "X"}, {"const": "y"}]}, ["x"], ["z"]),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, [1, None], ["1"]),
    ({"type": ["string", "null"]}, ["a", None], [1]),
    ({"type": "array", "uniqueItems": True}, [[1, True, "1"], []], [[1, 1.0], [{"a": [1]}, {"a": [1]}]]),
    ({"type": "array", "items": [{"type": "integer"}]}, [[1, "a"], []], [["a"]]),
    (
        {"prefixItems": [{"type": "integer"}], "items": {"type": "string"}},
        [[1, "a"], []],
        [["a"], [1, 2]],
    ),
    ({"type": "array", "items": False}, [[]], [[1]]),
    ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ["a", 1], [1.5, None]),
    ({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, [1], [0, 2]),
    ({"allOf": [{"minimum": 1}, {"maximum": 2}], "type": "number"}, [1, 2], [0, 3, "a"]),
    ({"enum": [[1], {"a": True}]}, [[1.0], {"a": True}], [[True], {"a": 1}]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1}], [{"a": 2.7}, {"a": "3"}]),
    (
        {"patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False},
        [{"ab": 1}],
        [{"ab": ""}, {"b": 1}],
    ),
    ({"minProperties": 1, "maxProperties": 1}, [{"a": 1}], [{}, {"a": 1, "b": 2}]),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "additionalProperties": False,
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": 1}, {"b": 1}],
        [{}, {"a": "text"}, {"a": 1, "c": 1}],
    ),
    (
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}},
        [[], [[], [[]]]],
        [1, [[], [[1]]]],
    ),
    ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "null"}}}, [None], [1]),
    ({"minimum": 1, "exclusiveMinimum": True}, [2], [1, 0]),
    (
        {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
        [["a"], ["a", "b"]],
        [[], ["c"], ["a", "b", "a"], "a"],
    ),
    (
        {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        },
        [{"n": 1}],
        [{}, {"n": "1"}, {"n": 1, "m": 2}, []],
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), GOOD_AND_BAD)
def test_schemas(schema: Mapping[str, Any], good: list[Any], bad: list[Any]) -> None:
    """Law 6: content is checked; what fits fits, what does not has a sentence that says why."""
    for value in good:
        assert problems(value, schema) == []
    for value in bad:
        assert problems(value, schema), value


def test_nested_schemas_are_checked_too() -> None:
    """References too."""
    schema = {"$defs": {"n": {"type": "integer"}}, "type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}}
    assert problems({"a": 1}, schema) == []
    assert problems({"a": "x"}, schema) == ["a must be a whole number, not 'x'"]


@pytest.mark.parametrize("endless", [float("nan"), float("inf"), -float("inf")])
def test_a_number_is_one_that_json_has(endless: float) -> None:
    """A bound is no bound to it, and what an answer says would reach nobody."""
    form = {"properties": {"stars": {"type": "number", "minimum": 1}}}
    assert problems({"stars": endless}, form) == [f"stars must be a finite number, not {endless}"]
    assert problems({"stars": 10**400}, form) == []


def test_other_keywords_are_checked_by_jsonschema() -> None:
    """Where it is installed, and without fetching anything."""
    pytest.importorskip("jsonschema")
    assert problems(6, {"not": {"const": 5}, "multipleOf": 3}) == []
    assert problems(5, {"multipleOf": 3}) == ["the answer: 5 is not a multiple of 3"]
    assert problems({"a": 1}, {"properties": {"a": True}, "dependentRequired": {"a": ["b"]}})
    assert problems([1], {"contains": {"$ref": "https://example.invalid/s.json"}}) == []


def test_settling_gives_every_call_a_result() -> None:
    """Law 16: after the message that made the call, in its order; what has a result keeps it."""
    session = Session.from_user("hi")
    with session.lease() as log:
        log.append(Message("assistant", "", (ToolCall("1", "f"), ToolCall("2", "f"))))
        log.append(Message("tool", "done", tool_call_id="2"))
        log.settle("interrupted")
        with pytest.raises(SessionBusy):
            session.lease()
    assert [(m.tool_call_id, m.content) for m in session.messages[2:]] == [("1", "interrupted"), ("2", "done")]
    with pytest.raises(RuntimeError, match="sealed"):
        log.append(Message("user", "late"))
    before = session.messages
    log.settle("late")
    assert session.messages == before


@pytest.mark.parametrize("use", [Session.lease, lambda session: session.add_user("more")], ids=["lease", "add_user"])
def test_an_interrupt_anywhere_leaves_the_session_free(use: Callable[[Session], object]) -> None:
    """Ctrl-C between the moment a lease is taken and the moment the caller has it would keep it for ever."""
    number, happened = 0, True
    while happened:
        session = Session.from_user("hi")

        def interrupted(session: Session = session) -> None:
            with contextlib.suppress(KeyboardInterrupt):
                use(session)

        happened = between(number, interrupted, press_ctrl_c)
        if happened:
            session.add_user("the session is free")
        number += 1
    assert number > 5


@pytest.mark.parametrize("seed", range(40))
def test_a_session_that_is_settled_again_and_again_is_as_if_settled_at_its_end(seed: int) -> None:
    """Who settles does not look again at what is in order already; what is not is mended wherever it stands."""
    choose = random.Random(seed)
    session = Session()
    with session.lease() as log:
        for turn in range(12):
            calls = tuple(ToolCall(f"{turn}.{n}", "f") for n in range(choose.randrange(4)))
            log.append(Message("assistant", str(turn), calls))
            order: dict[str | None, int] = {each.id: n for n, each in enumerate(calls)}
            for each in choose.sample(calls, choose.randrange(len(calls) + 1)):
                if choose.random() < 0.3:
                    log.append(Message("user", "in between"))
                result = Message("tool", "done", tool_call_id=each.id)
                if choose.random() < 0.7:
                    log.add_result(result, order)
                else:
                    log.append(result)
            if choose.random() < 0.4:
                log.settle("late")
                assert list(session.messages) == settled(session.messages, "late")
            elif choose.random() < 0.5:
                log.compact(Compacted("before", start=len(session.messages)))
                first = len(session.messages)
                log.settle("late")
                assert first <= session.compacted.start <= len(session.messages)
            assert log.call_ids() == {each.id for message in session.messages for each in message.tool_calls}
        log.settle("late")
        assert list(session.messages) == settled(session.messages, "late")


def test_repr_is_helpful() -> None:
    """In a debugger."""
    session = Session.from_user("hi")
    assert repr(session) == f"<Session {session.id[:8]}, 1 message>"
    with session.lease():
        assert "live" in repr(session)
    channel = Channel[events.Event](1, name="events")
    assert repr(stream_scope(ElicitationBridge(), channel)) == "<stream_scope of <Channel 'events' 0/1 open>>"


def test_an_event_shows_first_what_it_is_about() -> None:
    """The fields that all events have come last, and those that are empty not at all."""
    event = events.StreamStopped("normal", agent_name="a", timestamp=datetime(2026, 12, 24, 10, tzinfo=UTC))
    assert repr(event) == "StreamStopped(reason='normal', agent_name='a', timestamp=2026-12-24T10:00:00+00:00)"
