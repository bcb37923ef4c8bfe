"""What servers and models bring is checked within bounds: it stalls no thread, opens nothing, and ends no run."""

from __future__ import annotations

import gc
import json
import pathlib
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from runtime import (
    Agent,
    HookResult,
    InvalidAnswer,
    Permissions,
    RunError,
    Runtime,
    Session,
    Tool,
    ToolContext,
    ToolResult,
    UsageDelta,
    tool,
)
from runtime.cli._fields import NotUnderstood, fields_of
from runtime.events import ElicitationRequest
from runtime.foreign import _json
from runtime.foreign._redact import Redaction
from runtime.permissions import decide
from runtime.schema import _patterns
from runtime.schema._checking import Schema, _plain, problems
from runtime.schema._patterns import Pattern
from support.scripted import Scripted, call, say, worker_rests

LET_GO = 0.1  # seconds after which other threads have to have had the GIL
TRIES = 3  # what holds the GIL by itself does so each time; a machine that is busy does not hold threads up each time


def held_up(work: Callable[[], object]) -> float:
    """How many seconds at most ``work`` has held up a thread that ticks, beyond what the machine takes by itself: the
    processor time of this process in between, which another process cannot use up. The least of a few tries.
    """
    least = 1e9
    gc.collect()
    gc.freeze()  # a collection that the work sets off shall not go through what earlier tests have made
    for _ in range(TRIES):
        _patterns.pattern.cache_clear()
        re.purge()
        with _heartbeat() as longest:
            work()
        least = min(least, longest[0])
        if least < LET_GO:
            break
    return least


@contextmanager
def _heartbeat() -> Iterator[list[float]]:
    over, longest = threading.Event(), [0.0]

    def beat() -> None:
        last, used = time.monotonic(), time.process_time()
        while not over.wait(0.002):
            now, spent = time.monotonic(), time.process_time()
            longest[0] = max(longest[0], min(now - last, spent - used))
            last, used = now, spent

    thread = threading.Thread(target=beat, name="heartbeat")
    thread.start()
    try:
        yield longest
    finally:
        over.set()
        thread.join()


@pytest.fixture
def without_re2(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed."""
    monkeypatch.setitem(sys.modules, "re2", None)
    _patterns.pattern.cache_clear()


BACKTRACKS = [
    (r"^(\w+\s?)*$", "a" * 60 + "!"),
    (r"^(a+)+$", "a" * 60 + "!"),
    (r"(a|a)*b", "a" * 60),
    (r"(a|aa)+$", "a" * 60 + "!"),
    (r"(?:a?){60}a{60}", "a" * 59),
    (r"^(?:a|a)(?:a|a)(?:a|a)(?:a|a)(?:a|a)" * 6 + "b", "a" * 60),
    (r"a*a*a*a*a*a*a*b", "a" * 5000),
    (r"(x+x+)+y", "x" * 60),
    (r"^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 60),
    (r"(.*a){25}", "a" * 24 + "b" * 5000),
    (r"\s*$", " " * 100_000 + "x"),
    (r"([^,]*,)*x", "," * 5000),
    (r"((a{1,100}){1,100}){1,100}b", "a" * 5000),
    (r"(?=(a+))\1b", "a" * 5000),
    (r"(a*)*(a*)*b", "a" * 60),
    ("(" * 400 + "a" + ")*" * 400 + "b", "a" * 60),
    (r"(?i:" + "[\u0000-\U0010ffff]" + ")+b", "a" * 50_000),
]


@pytest.mark.parametrize(("wanted", "text"), BACKTRACKS)
def test_no_pattern_stalls_the_process(without_re2: None, wanted: str, text: str) -> None:
    """`re` holds the GIL: what may take it long is not run by it."""
    schema = {"properties": {"x": {"type": "string", "pattern": wanted}}}
    assert held_up(lambda: problems({"x": text}, schema)) < LET_GO
    found = problems({"x": text}, schema)
    assert found == [] or len(wanted) < 100  # it was left to the server, or there was a way to tell


@pytest.mark.parametrize(("wanted", "text"), BACKTRACKS)
def test_nor_where_re2_is_installed(wanted: str, text: str) -> None:
    """It lets go of the GIL, and takes time that is linear in the text."""
    pytest.importorskip("re2")
    assert held_up(lambda: problems({"x": text}, {"properties": {"x": {"pattern": wanted}}})) < LET_GO


@pytest.mark.parametrize(
    ("wanted", "good", "bad"),
    [
        (r"^[a-z]+$", "a" * 50_000, "a" * 50_000 + "1"),
        (r"^\d{4}-\d{2}-\d{2}$", "2026-12-24", "24.12."),
        (r"^#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})$", "#abc", "#abcd"),
        (r"^\+?[1-9]\d{1,14}$", "+4912345", "0123"),
        (r"^(\d{1,3}\.){3}\d{1,3}$", "127.0.0.1", "127.0.0"),
        (r"[^\s@]+@[^\s@]+", "a@b", "a b"),
        (r"^\w+$", "Größe", "a b"),
    ],
)
def test_patterns_as_people_write_them_are_checked(without_re2: None, wanted: str, good: str, bad: str) -> None:
    """With and without the extra."""
    assert Pattern(wanted).found_in(good)[0] is True
    assert Pattern(wanted).found_in(bad)[0] is False


@pytest.mark.parametrize(
    ("wanted", "good", "bad"),
    [
        (r"^\p{L}+$", "Größe", "a1"),
        (r"^(?<year>\d{4})$", "2026", "26"),
        (r"^(\w+\s?)*$", "größe " * 1000, "a" * 60 + "!"),
        (r"^[\w-]+(\.[\w-]+)*$", "ä.b-c", "ä..b"),
    ],
)
def test_what_python_cannot_read_or_bound_is_for_re2(wanted: str, good: str, bad: str) -> None:
    """It knows JavaScript's spellings, and letters are those of all alphabets as in `re`."""
    pytest.importorskip("re2")
    assert Pattern(wanted).found_in(good)[0] is True
    assert Pattern(wanted).found_in(bad)[0] is False


def test_a_pattern_that_cannot_be_run_is_left_to_the_server(without_re2: None, caplog: Any) -> None:
    """With a note, once: refusing what is right would be worse."""
    caplog.set_level("INFO", "runtime")
    schema = Schema({"type": "string", "pattern": r"^\p{L}+$", "minLength": 2})
    assert schema.problems("abc") == schema.problems("123") == []
    assert schema.problems("a") == ["the answer must have at least 2 characters"]
    assert [r"\\p{L}" in record.message for record in caplog.records] == [True]


def test_many_texts_against_a_slow_pattern_are_bounded_together(without_re2: None) -> None:
    """Each is quick by itself."""
    schema = {"items": {"pattern": "[a-z]+x|b$"}}

    def check() -> None:
        began = time.process_time()
        assert problems(["a" * 500 + "b"] * 100_000, schema) == []
        assert time.process_time() - began < 10

    assert held_up(check) < LET_GO


UNREADABLE: list[Any] = [
    True, {}, None, 5, "string", [], {"type": "any"}, {"type": 7}, {"type": ["string", "any"]}, {"type": None},
    {"type": {"a": 1}}, {"$ref": "#/$defs/Gone"}, {"$ref": "#/properties/x"}, {"$ref": 5}, {"$ref": "#gone"},
    {"$ref": "https://example.invalid/s.json"}, {"$ref": "s.json#/x"}, {"$ref": "#/properties/x/allOf/0"},
    {"required": None}, {"required": 5}, {"required": [5, None]}, {"required": True}, {"properties": None},
    {"properties": ["a"]}, {"enum": None}, {"enum": 5}, {"minimum": "0"}, {"minimum": None}, {"maximum": [1]},
    {"minLength": None}, {"maxLength": "9"}, {"minItems": {}}, {"pattern": None}, {"pattern": 5}, {"pattern": "("},
    {"pattern": "^\\p{L}+$"}, {"pattern": "^(?<y>a)"}, {"pattern": "[[a]--[b]]"}, {"format": None},
    {"format": ["date"]},
    {"anyOf": None}, {"anyOf": []}, {"anyOf": [True, 5]}, {"oneOf": "x"}, {"oneOf": ["x", "y"]}, {"oneOf": [None]},
    {"allOf": {"a": 1}}, {"allOf": [None]}, {"items": None}, {"items": [None]}, {"items": "x"}, {"prefixItems": 5},
    {"additionalProperties": None}, {"patternProperties": None}, {"patternProperties": {"(": 5}},
    {"uniqueItems": "yes"}, {"not": None}, {"if": 5}, {"contains": None}, {"multipleOf": "3"}, {"multipleOf": 0},
    {"dependentRequired": None}, {"propertyNames": 5}, {"unevaluatedProperties": "x"}, {"$dynamicRef": "#x"},
    {"$recursiveRef": "#"}, {"$schema": 5, "not": {}}, {"$schema": "nowhere", "multipleOf": 1}, {"$id": 5, "not": True},
    {"minimum": float("nan")},
]  # fmt: skip
VALUES: list[Any] = ["abc", 1, 1.5, float("nan"), None, True, [], ["a", 1], {}, {"a": {"b": [1]}}, 10**400, "\ud800"]


@pytest.mark.parametrize("part", UNREADABLE, ids=str)
def test_a_schema_that_cannot_be_read_is_no_error(part: Any) -> None:
    """Whatever stands in it, and wherever: a check says what is wrong with the value, and raises nothing."""
    for value in VALUES:
        for schema in (part, {"properties": {"x": part}}, {"anyOf": [part]}, {"items": part}, {"contains": part}):
            for given in (value, {"x": value}, [value]):
                found = problems(given, schema)
                assert isinstance(found, list)
                assert all(isinstance(each, str) for each in found)


def test_nothing_outside_the_schema_is_opened(tmp_path: pathlib.Path) -> None:
    """A reference to an address or a file would let a server look around, and hold up whoever checks."""
    secret = tmp_path / "secret.json"
    secret.write_text('{"const": "hunter2"}')
    seen: list[str] = []
    watching = [True]

    def watch(event: str, args: Any) -> None:
        if watching[0] and (event.startswith(("socket.", "urllib.")) or "secret" in str(args)):
            seen.append(event)

    sys.addaudithook(watch)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        seen.clear()
        for reference in (f"http://127.0.0.1:{port}/s.json", secret.as_uri(), str(secret), "secret.json"):
            for part in ({"$ref": reference}, {"not": {"not": {"$ref": reference}}}, {"$dynamicRef": reference}):
                assert problems({"x": "a"}, {"$id": secret.as_uri(), "properties": {"x": part}}) == []
    watching[0] = False
    assert seen == []


def nested(depth: int, inside: str = "") -> Any:
    value: Any = inside
    for _ in range(depth):
        value = [value]
    return value


def test_depth_and_size_are_bounded() -> None:
    """Values and schemas of any depth, schemas that unfold without end, values that are many."""
    deep: Any = {"type": "string"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    tree = {"type": "array", "items": {"$ref": "#"}}
    unfolds: dict[str, Any] = {"$defs": {"d0": {"const": 1}}, "$ref": "#/$defs/d60"}
    for i in range(1, 61):
        unfolds["$defs"][f"d{i}"] = {"anyOf": [{"$ref": f"#/$defs/d{i - 1}"}, {"$ref": f"#/$defs/d{i - 1}"}]}
    endless = {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}}
    million = list(range(1_000_000))

    def check() -> None:
        for value in (nested(99), nested(5000), nested(300, "x"), 1, "x"):
            for schema in (deep, tree, {"contains": deep}, {"enum": [nested(300)]}, {"uniqueItems": True}):
                problems(value, schema)
        assert problems(2, unfolds) == problems(2, endless) == []
        assert problems(million, {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}) == []
        assert len(problems(million, {"items": {"type": "string"}})) == 10

    assert held_up(check) < LET_GO


def test_wherever_the_stack_ends_in_a_check() -> None:
    """It is no error of the value: jsonschema is called from here, and calls a library that panics then."""
    deep: Any = {"type": "string"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    value = nested(300)

    def called_from(depth: int) -> list[str]:
        return called_from(depth - 1) if depth else problems(value, {"contains": deep})

    for depth in range(84, 120):
        assert called_from(depth) == []


def test_what_is_said_of_a_value_is_short() -> None:
    """The model, or somebody, reads it; and writing all of a large value would hold the GIL."""
    texts = ["x" * 10_000_000, ["x" * 10_000_000], [[list(range(1000))] * 1000], {"k" * 1_000_000: 1}, 10**5000]
    for value in texts:
        for schema in ({"type": "null"}, {"enum": ["a"] * 10_000}, {"const": "y" * 1_000_000}, {"anyOf": [False]}):
            assert sum(map(len, problems(value, schema))) < 6000
    assert problems({"n": "x" * 1000}, {"properties": {"n": {"type": "integer"}}}) == [
        f"n must be a whole number, not '{'x' * 120}'... (1000 characters)"
    ]


def test_the_quick_look_lets_nothing_pass_that_the_check_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most arguments only have to be of simple types, and are looked at in one step."""
    values: list[Any] = ["a", "", 1, -3, 10**400, True, False, 1.5, 2.0, float("nan"), None, [], {}, "\ud800"]
    kinds: list[Any] = ["string", "integer", "number", "boolean", "null", "array", ["string"], "nothing", None, 5]
    more: list[Any] = [
        {},
        {"title": "x"},
        {"minimum": 5},
        {"enum": ["b"]},
        {"pattern": "b"},
        {"$ref": "#"},
        {"not": {}},
    ]
    schemas = [
        {"type": "object", "properties": {"x": {"type": kind, **also}, "y": {"type": "string"}}, **rest}
        for kind in kinds
        for also in more
        for rest in (
            {},
            {"required": ["x"]},
            {"required": ["z"]},
            {"required": "x"},
            {"additionalProperties": False},
            {"additionalProperties": {"type": "integer"}},
            {"maxProperties": 0},
            {"not": {}},
        )
    ]
    given = [{}, *({"x": value} for value in values), {"x": "a", "y": 1}, {"x": 1, "y": "a"}, {"x": 1, "z": 1}, [], 1]
    quick = [[problems(each, schema) for each in given] for schema in schemas]
    passed = sum(_plain(schema).fits(each) for schema in schemas for each in given)
    monkeypatch.setattr("runtime.schema._checking._Plain.fits", lambda self, value: False)
    assert quick == [[problems(each, schema) for each in given] for schema in schemas]
    assert passed > 100


def test_jsonschema_and_this_check_agree() -> None:
    """Where both know the keywords, on schemas put together at random."""
    jsonschema = pytest.importorskip("jsonschema")
    import random

    rng = random.Random(5)
    values = [
        None,
        True,
        False,
        0,
        1,
        2,
        1.5,
        "",
        "a",
        "ab",
        [],
        [1],
        [1, 1],
        [1, "a"],
        {},
        {"a": 1},
        {"a": "x", "b": 2},
    ]
    parts: list[Any] = [
        {"type": "string"}, {"type": "integer"}, {"type": ["array", "null"]}, {"enum": [1, "a", None]},
        {"const": True},
        {"minimum": 1}, {"exclusiveMaximum": 2}, {"minLength": 1}, {"maxLength": 1}, {"pattern": "^a"}, {"minItems": 1},
        {"maxItems": 1}, {"uniqueItems": True}, {"required": ["a"]}, {"maxProperties": 1},
        {"additionalProperties": False},
        True, False, {"items": False}, {"prefixItems": [{"type": "integer"}]},
    ]  # fmt: skip

    def schema(depth: int) -> Any:
        made = dict(rng.choice([part for part in parts if isinstance(part, dict)]))
        if depth:
            for keyword in rng.sample(("anyOf", "allOf", "oneOf"), rng.randint(0, 2)):
                made[keyword] = [rng.choice([rng.choice(parts), schema(depth - 1)]) for _ in range(rng.randint(1, 3))]
            for keyword in rng.sample(("items", "additionalProperties"), rng.randint(0, 1)):
                made[keyword] = schema(depth - 1)
            if rng.random() < 0.5:
                made["properties"] = {"a": schema(depth - 1)}
        return made

    for _ in range(1500):
        made = schema(2)
        theirs = jsonschema.Draft202012Validator(made)
        for value in values:
            assert bool(problems(value, made)) != theirs.is_valid(value), json.dumps([value, made])


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("__str__ fails")


def mute() -> str:
    raise Mute


def deep(levels: int) -> str:
    return '{"x": ' + "[" * levels + "]" * levels + "}"


TREE = {"type": "object", "properties": {"x": {"$ref": "#/$defs/N"}}}
TREE["$defs"] = {"N": {"type": "array", "items": {"$ref": "#/$defs/N"}}}
OBJECT: dict[str, Any] = {"type": "object"}


@pytest.mark.parametrize(
    ("parameters", "arguments", "function", "said"),
    [
        (OBJECT, "{}", lambda: ToolResult(None), "ToolResult must be text, not None"),  # type: ignore[arg-type]
        (OBJECT, "{}", lambda: ToolResult({"a": 1}), "ToolResult must be text"),  # type: ignore[arg-type]
        (OBJECT, "{}", lambda: ToolResult("a", images=[None]), "tuple of images"),  # type: ignore[arg-type]
        (OBJECT, "{}", mute, "Mute, whose text cannot be had"),
        (OBJECT, deep(90), lambda x: "ran", "ran"),
        (TREE, deep(90), lambda x: "ran", "ran"),
        *[(OBJECT, deep(levels), lambda x: "ran", "100 levels deep") for levels in (100, 300, 900, 5000, 100_000)],
        *[(TREE, deep(levels), lambda x: "ran", "100 levels deep") for levels in (100, 300, 900, 5000, 100_000)],
        (OBJECT, '{"x": "' + "a" * 2_000_000 + '"}', lambda x: "ran", "more than 1,000,000"),
        (OBJECT, '{"x": ' + "1" * 5000 + "}", lambda x: "ran", "cannot be read"),
        ({"type": "object", "properties": None}, "{}", lambda: "ran", "ran"),
        ({"type": "object", "properties": {"x": True}}, '{"x": 1}', lambda x: "ran", "ran"),
        ({"type": "object", "properties": {"x": {"type": "any"}}}, '{"x": 1}', lambda x: "ran", "ran"),
        ({"type": "object", "required": None}, "{}", lambda: "ran", "ran"),
        ({"properties": {"x": {"$ref": "https://example.invalid/"}}}, '{"x": 1}', lambda x: "ran", "ran"),
    ],
)
def test_no_value_of_a_tool_or_a_model_ends_the_run(parameters: Any, arguments: str, function: Any, said: str) -> None:
    """It is a result that the model reads."""
    f = Tool("f", function, parameters=parameters, read_only=True)
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted([call("f", arguments)], say("done")), tools=[f])) as runtime:
        assert runtime.run(session).text == "done"
    assert said in session.messages[2].content
    assert session.messages[2].is_error == (said != "ran")


def test_nor_does_an_exception_without_a_text() -> None:
    """Of a hook, or of a model."""

    class Failing:
        id = "failing"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
            mute()

    hooks = {"post_tool_use": [lambda given: mute()]}
    f = Tool("f", lambda: "ran", read_only=True)
    with Runtime(Agent("a", Scripted([call("f")], say("done")), tools=[f], hooks=hooks)) as runtime:
        assert runtime.run(Session.from_user("go")).text == "done"
    with Runtime(Agent("a", Failing())) as runtime, pytest.raises(RunError, match="Mute, whose text") as caught:
        runtime.run(Session.from_user("go"))
    assert caught.value.code == "model_error"
    assert "Mute" in caught.value.traceback


def test_what_a_model_does_not_count_is_none() -> None:
    """Several servers say null; what is no number at all is the model's fault."""
    for cached, code in ((None, ""), (-1, ""), ("3", "model_error"), (2.5, "model_error")):
        with Runtime(Agent("a", Scripted([UsageDelta(1, 1, cached), *say("done")]))) as runtime:
            if not code:
                assert runtime.run(Session.from_user("go")).usage.cached_tokens == 0
                continue
            with pytest.raises(RunError) as caught:
                runtime.run(Session.from_user("go"))
            assert caught.value.code == code


HEAVY: list[tuple[str, Any, Any]] = [
    ("pattern", {"properties": {"x": {"pattern": r"^(\w+\s?)*$"}}}, {"x": "a" * 40 + "!"}),
    ("many patterns", {"properties": {"x": {"items": {"pattern": "[a-z]+x|b$"}}}}, {"x": ["a" * 400] * 2000}),
    ("numbers", {"properties": {"x": {"items": {"type": "integer"}, "uniqueItems": True}}}, {"x": [7] + [1] * 300_000}),
    ("unfolding", {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"allOf": [{"$ref": "#/$defs/a"}] * 2}] * 2}}}, {}),
    ("objects", {"additionalProperties": {"not": {"const": 1}}}, {f"k{i}": i for i in range(50_000)}),
]


@pytest.mark.parametrize(("schema", "value"), [each[1:] for each in HEAVY], ids=[each[0] for each in HEAVY])
def test_a_cancel_leaves_a_check_of_arguments_behind(schema: Any, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker only waits for it: the stream closes at once, and nothing stands still meanwhile."""
    checking = threading.Event()
    problems = Schema.problems

    def watched(self: Schema, value: Any, **more: Any) -> list[str]:
        checking.set()
        return problems(self, value, **more)

    monkeypatch.setattr(Schema, "problems", watched)
    f = Tool("f", lambda **arguments: "ran", parameters={"type": "object", **schema}, read_only=True)

    def cancel() -> None:
        checking.clear()
        with Runtime(Agent("a", Scripted([call("f", json.dumps(value))], say("done")), tools=[f])) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            assert checking.wait(10)
            began, used = time.monotonic(), time.process_time()
            stream.cancel()
            for _ in stream:
                pass
            assert min(time.monotonic() - began, time.process_time() - used) < 0.05
            assert stream.reason in ("canceled", "normal")

    assert held_up(cancel) < LET_GO


def test_the_worker_checks_no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what the model wrote, nor what a hook made of it: it rests, or a helper does it."""
    kept_off = []
    problems = Schema.problems

    def watched(self: Schema, value: Any, **more: Any) -> list[str]:
        kept_off.append(worker_rests() or threading.current_thread().name.startswith("lockgate-helper"))
        return problems(self, value, **more)

    monkeypatch.setattr(Schema, "problems", watched)
    hooks = {"pre_tool_use": [lambda given: HookResult(updated_input={"x": 2})]}
    f = Tool("f", lambda x: str(x), parameters=OBJECT, read_only=True)
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted([call("f", '{"x": 1}')], say("done")), tools=[f], hooks=hooks)) as runtime:
        runtime.run(session)
    assert session.messages[2].content == "2"
    assert kept_off == [True, True]


def test_patterns_of_permissions_see_long_arguments_on_a_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    """To hold them against all of the values takes time that a cancel does not wait for."""
    threads = []

    def watched(*args: Any, **more: Any) -> Any:
        threads.append(threading.current_thread().name)
        return decide(*args, **more)

    monkeypatch.setattr("runtime.toolcalls._approval.decide", watched)
    f = Tool("f", lambda x: "ran", parameters={"type": "object", "properties": {"x": {}}})
    session = Session.from_user("go")
    permissions = Permissions(deny=["f:x=*secret*"], approve_all=True)
    model = Scripted([call("f", json.dumps({"x": [1] * 100_000 + ["secret"]}))], say("done"))
    with Runtime(Agent("a", model, tools=[f]), permissions=permissions) as runtime:
        runtime.run(session)
    assert "denied" in session.messages[2].content
    assert threads
    assert not any("stream" in name for name in threads), threads


@pytest.mark.parametrize(
    "part", [part for part in UNREADABLE if not isinstance(part, dict) or "x" not in part], ids=str
)
def test_a_form_that_cannot_be_read_can_be_answered(part: Any) -> None:
    """The answer goes to who asked, who knows what was meant."""

    @tool(read_only=True)
    def ask(context: ToolContext) -> str:
        """Ask."""
        return context.elicit("Name?", {"type": "object", "properties": {"x": part}}).action

    with Runtime(Agent("a", Scripted([call("ask")], say("done")), tools=[ask])) as runtime:
        with runtime.run_stream(Session.from_user("go")) as stream:
            for event in stream:
                if isinstance(event, ElicitationRequest):
                    try:
                        stream.respond(event, "accept", {"x": "abc"})
                    except InvalidAnswer:
                        stream.respond(event, "accept", {"x": ["abc"]} if "items" in str(part) else {})
        assert stream.reason == "normal"


SIZE = 500_000
UGLY = {
    "web tokens that are none": "-eyJ" * (SIZE // 4),
    "web tokens of two parts": "eyJaaaaaaaa." * (SIZE // 12),
    "one long word": "eyJ" + "a" * SIZE,
    "words": "The quick brown fox. " * (SIZE // 21),
    "names without values": "token" * (SIZE // 5),
    "names and spaces": "token" + " " * SIZE,
    "names with values": '"api_key": "abc", ' * (SIZE // 18),
    "a value of spaces": "token=" + " " * SIZE + ",",
    "a quote that does not end": 'token="' + "a" * SIZE,
    "a quote of backslashes": 'token="' + "\\\\" * (SIZE // 2),
    "a quote in a quote": 'token=\\"' + "\\a" * (SIZE // 2),
    "half an address": "://" + "a:" * (SIZE // 2),
    "many halves": "://a:b" * (SIZE // 6),
    "keys that do not end": "-----BEGIN PRIVATE KEY-----" * (SIZE // 27),
    "a key with dashes": "-----BEGIN PRIVATE KEY-----" + "-" * SIZE,
    "a key with other ends": "-----BEGIN PRIVATE KEY-----" + "-----END A" * (SIZE // 10),
    "a key of many words": "-----BEGIN " + "A " * (SIZE // 2),
    "beginnings": "sk- ghp_ " * (SIZE // 9),
    "bearers": "Bearer " * (SIZE // 7) + "token: bearer " + " " * SIZE,
}


@pytest.mark.parametrize("text", UGLY.values(), ids=UGLY)
def test_redaction_is_linear_and_lets_others_go_on(text: str) -> None:
    """A page of 160 kB held up every thread for half a minute."""
    redaction = Redaction()
    began = time.process_time()
    redaction.text(text[: len(text) // 8])
    part = time.process_time() - began
    taken: list[float] = []

    def redact() -> None:
        began = time.process_time()
        redaction.text(text)
        taken.append(time.process_time() - began)

    assert held_up(redact) < LET_GO
    assert min(taken) < 8 * part * 3 + 0.2


def test_a_secret_is_found_wherever_the_text_is_cut_for_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of any size, it is the same."""
    text = (
        "Bearer abcdefgh, see https://ann:secret@example.org and eyJhbGciOiJ9.eyJzdWIi.c2ln; "
        '{"api_key": "a\\"b"} -----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----'
        " sk-abcdefghijklmnopqrst"
    )
    whole = Redaction().text(text)
    assert whole.count("<redacted>") == 6
    for piece in range(1, 80):
        monkeypatch.setattr("runtime.foreign._redact._PIECE", piece)
        assert Redaction().text(text) == whole


@pytest.mark.parametrize(
    "text",
    ["[" + "[]," * 330_000 + "1]", "[" + "{}," * 330_000 + "1]", "[" + "1," * 499_000 + "1]", "[" * 1_000_000,
     '"' * 999_999, '"' + "\\n" * 499_000 + '"', "[" + "1e100," * 160_000 + "1]"],
    ids=["lists", "objects", "numbers", "brackets", "quotes", "escapes", "exponents"],
)  # fmt: skip
def test_reading_json_lets_others_go_on(text: str) -> None:
    """Of any kind, up to the size that is read."""

    def read_and_write() -> None:
        try:
            value = _json.parse(text)
        except ValueError:
            value = None
        assert _json.write(value).count("1") < 600_000

    assert held_up(read_and_write) < LET_GO


@pytest.mark.parametrize(
    "part",
    [*UNREADABLE, {"enumNames": 7, "enum": ["x"]}, {"title": 5}, {"default": {"x": 1}, "type": "integer"}],
    ids=str,
)
def test_a_form_that_cannot_be_read_is_shown_all_the_same(part: Any) -> None:
    """By the command: nothing that a server writes there is an exception."""
    forms = part, {"properties": {"x": part}, "required": part}, {"properties": {"x": {"items": part, "type": "array"}}}
    for form in forms:
        for field in fields_of(form):
            assert isinstance(field.label + field.note + field.show(field.default), str)
            for text in ("abc", "1", "yes", "[1]"):
                try:
                    field.read(text)
                except NotUnderstood:
                    pass
