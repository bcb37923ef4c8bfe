"""What enters a session is made sound at the door: one bad value does not spoil the requests after it."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import (
    Agent,
    Compaction,
    Image,
    Message,
    Permissions,
    ReasoningDelta,
    Runtime,
    Session,
    TextDelta,
    Tool,
    ToolCall,
    ToolDefinition,
    ToolResult,
    Usage,
    events,
    tool,
)
from runtime.foreign._arguments import read_arguments
from runtime.foreign._json import DEEPEST, LONGEST
from runtime.foreign._sound import TextPieces, sound, well_formed
from runtime.session import Compacted, Native
from runtime.stores import MemoryStore
from support.hostile import HOSTILE, changed, places
from support.scripted import Scripted, Stall, approving, call, say

HALF = "\ud83d"
PNG = b"\x89PNG\r\n\x1a\n"


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain", "plain"),
        ("caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600"),
        (b"caf\xe9.txt".decode("utf-8", "surrogateescape"), r"caf\xe9.txt"),
        (f"half {HALF}", "half \ufffd"),
        ("\ude00 other half", "\ufffd other half"),
        ("\ud83d\ude00", "\U0001f600"),
    ],
)
def test_text_is_made_well_formed(text: str, said: str) -> None:
    assert well_formed(text) == said
    assert Message("user", text).content == said


@settings(deadline=None)  # a machine may be busy
@given(st.text(alphabet=st.characters(), max_size=30) | st.text("a\ud83d\ude00\udce9\u00e9", max_size=12))
def test_any_text_can_be_written_as_utf_8_and_sound_text_stays(text: str) -> None:
    said = well_formed(text)
    said.encode()
    assert well_formed(said) == said
    pieces = TextPieces()
    assert "".join([*map(pieces.add, text), pieces.end()]) == said


def test_a_character_that_was_cut_between_two_pieces_is_whole_again() -> None:
    """Servers that count in UTF-16 do that."""
    model = Scripted([ReasoningDelta("\ud83d"), ReasoningDelta("\ude00"), *say("a\ud83d", "\ude00b", "\ud83d")])
    session = Session.from_user("go")
    with approving(Agent("a", model)) as runtime:
        seen = list(runtime.run_stream(session))
    text = "".join(event.content for event in seen if isinstance(event, events.AgentChoice))
    assert text == session.messages[-1].content == "a\U0001f600b\ufffd"
    assert "".join(e.content for e in seen if isinstance(e, events.AgentChoiceReasoning)) == "\U0001f600"


def test_a_schema_says_nothing_that_json_cannot() -> None:
    @tool
    def wait(seconds: float = float("inf"), note: str = HALF) -> str:
        """Wait."""
        return "waited"

    json.dumps(wait.definition.parameters, allow_nan=False, ensure_ascii=False).encode()
    assert "default" not in wait.definition.parameters["properties"]["seconds"]
    schema = {"type": "object", "examples": [{"x": float("nan")}]}
    foreign = Tool("f", wait.function, description=HALF, parameters=schema)
    json.dumps([foreign.definition.parameters, foreign.description], allow_nan=False, ensure_ascii=False).encode()


# -- arguments ---------------------------------------------------------------------------------------------------------

NEST = '{"a":'


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("[" * 3_000, "levels deep"),
        ("[" * 100_000, "levels deep"),
        (NEST * 3_000, "levels deep"),
        (NEST * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "levels deep"),
        ('{"a": NaN}', "JSON has no number NaN"),
        ('{"a": -Infinity}', "JSON has no number -Infinity"),
        ('{"a": 1e999}', "too large a number"),
        ('{"a": ' + "9" * 400 + "}", "too large a number"),
        ('{"a": ' + "9" * 5_000 + "}", "too large a number"),
        ('{"a": "' + "x" * LONGEST + '"}', "1,000,009 characters"),
        ("", "missing"),
        (" \n", "missing"),
        ("null", "a JSON object, not null"),
        ("[1]", "a JSON object, not a list"),
        ('"x"', "a JSON object, not text"),
        ("3", "a JSON object, not a number"),
        ("true", "a JSON object, not a truth value"),
        ('{"a": 1', "not JSON"),
        ('{"a": 1}}', "not JSON"),
        ('{"a": 1} {"a": 1}', "Extra data: line 1 column 10 (char 9)"),
        ('[1] {"a": 1}', "Extra data"),
    ],
    ids=lambda value: value[:12],
)
def test_broken_arguments_say_what_is_wrong(written: str, problem: str) -> None:
    broken = ToolCall("1", "f", written)
    assert problem in broken.problem
    assert broken.parsed is None
    assert broken.sound_arguments == "{}"
    assert broken.arguments == written  # for people


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("{}", {}),
        (' \n{"a": 1}\t', {"a": 1}),
        ('{"a": 1.5e300, "b": 12345678901234567890}', {"a": 1.5e300, "b": 12345678901234567890}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        ('{"a": "\\ud83d"}', {"a": "\ufffd"}),
        ('{"a": "[[[' + "[" * 500 + '"}', {"a": "[" * 503}),
        (NEST * DEEPEST + "1" + "}" * DEEPEST, None),
    ],
    ids=lambda value: str(value)[:12],
)
def test_whole_arguments_are_read_as_everyone_reads_them(written: str, value: Any) -> None:
    whole = ToolCall("1", "f", written)
    assert whole.problem == ""
    assert value is None or whole.parsed == value
    assert json.loads(whole.sound_arguments) == whole.parsed
    whole.sound_arguments.encode()


def test_each_who_reads_the_arguments_has_a_dictionary_of_its_own() -> None:
    whole = ToolCall("1", "f", '{"a": []}')
    first = whole.parsed
    assert first is not None
    first["a"].append(1)
    assert whole.parsed == {"a": []}


@pytest.mark.parametrize(
    "written",
    ['"\\"' * 300_000, "[]" * 499_000, '{"a":[' + "{}," * 330_000, '{"a":"' + '\\"' * 490_000 + '"}', "[" * 10_000_000],
    ids=lambda value: value[:8],
)
def test_reading_is_linear(written: str) -> None:
    began = time.process_time()
    read_arguments(written)
    assert time.process_time() - began < 2


def test_a_high_recursion_limit_does_not_end_the_process() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        assert "levels deep" in ToolCall("1", "f", "[" * 500_000).problem
    finally:
        sys.setrecursionlimit(limit)


# -- a session ---------------------------------------------------------------------------------------------------------


def poisoned(result: str, arguments: str, name: str) -> tuple[Session, list[str]]:
    """A session after a turn with these."""
    ran: list[str] = []

    @tool(name="ls")
    def ls(a: float = 0) -> str:
        ran.append("ls")
        return result

    session = Session.from_user(" ")
    with approving(Agent("a", Scripted([call(name, arguments)], say("\n\n")), tools=[ls])) as runtime:
        runtime.run(session)
    session.add_user("and now?")
    return session, ran


BAD = [
    (HALF, "{}", "ls"),
    ("caf\udce9", "{}", "ls"),
    ("", "[" * 3_000, "ls"),
    (" ", "[" * 100_000, "ls"),
    ("x", '{"a": NaN}', "ls"),
    ("x", '{"a": 1e999}', "ls"),
    ("x", '{"b": "\\ud83d"}', "ls"),
    ("x", "{}", "browser.tabs.open"),
    ("x", "{}", "$READFILE"),
    ("x", "{}", ""),
    ("x", "{}", "x" * 300),
    ("x", "{}", HALF),
]


def openai_request(messages: Sequence[Message], tools: Sequence[ToolDefinition] = ()) -> dict[str, Any]:
    from runtime.models.openai import OpenAIModel

    return OpenAIModel("m", base_url="http://127.0.0.1:9/v1", api_key="x")._request(messages, tools, None)


def anthropic_request(messages: Sequence[Message], tools: Sequence[ToolDefinition] = ()) -> dict[str, Any]:
    from runtime.models.anthropic import AnthropicModel

    return AnthropicModel("m", base_url="http://127.0.0.1:9", api_key="x")._request(messages, tools, None)[0]


def check_openai(request: dict[str, Any]) -> None:
    """What a server of the protocol refuses."""
    json.dumps(request, allow_nan=False, ensure_ascii=False).encode()
    open_calls: list[str] = []
    ids: set[str] = set()
    for message in request["messages"]:
        if message["role"] == "tool":
            assert message["tool_call_id"] in open_calls
            open_calls.remove(message["tool_call_id"])
            continue
        for each in message.get("tool_calls", ()):
            assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", each["function"]["name"])
            assert isinstance(json.loads(each["function"]["arguments"]), dict)
            assert each["id"] not in {"", *ids}
            ids.add(each["id"])
            open_calls.append(each["id"])
    assert not open_calls


def check_anthropic(request: dict[str, Any]) -> None:
    json.dumps(request, allow_nan=False, ensure_ascii=False).encode()
    open_calls: list[str] = []
    ids: set[str] = set()
    assert request.get("system", "x").strip()
    for message in request["messages"]:
        assert message["content"]
        for block in message["content"]:
            if block["type"] == "text":
                assert block["text"].strip()
            elif block["type"] == "tool_use":
                assert re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", block["name"])
                assert re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"])
                assert block["id"] not in ids
                ids.add(block["id"])
                assert isinstance(block["input"], dict)
                open_calls.append(block["id"])
            elif block["type"] == "tool_result":
                assert block["tool_use_id"] in open_calls
                open_calls.remove(block["tool_use_id"])
                assert all(each["type"] != "text" or each["text"].strip() for each in block["content"])
    assert not open_calls


PROVIDERS: list[tuple[Callable[..., dict[str, Any]], Callable[[dict[str, Any]], None], str]] = [
    (openai_request, check_openai, "openai"),
    (anthropic_request, check_anthropic, "anthropic"),
]


@pytest.mark.parametrize(("result", "arguments", "name"), BAD, ids=lambda value: ascii(value)[:14])
def test_one_bad_value_does_not_spoil_the_session(result: str, arguments: str, name: str) -> None:
    session, ran = poisoned(result, arguments, name)
    assert ran == (["ls"] if (name, arguments) == ("ls", "{}") else [])
    for request, check, extra in PROVIDERS:
        pytest.importorskip(extra)
        check(request(session.messages))
    again = Session.from_dict(json.loads(json.dumps(session.to_dict(), ensure_ascii=False).encode()))
    assert again.to_dict() == session.to_dict()


def test_a_name_that_a_tool_has_is_sent_as_it_is() -> None:
    """Servers of one's own take more than OpenAI does."""
    pytest.importorskip("openai")
    calls = Message("assistant", "", (ToolCall("1", "a.b"), ToolCall("2", "a.c"), ToolCall("3", "a/c")))
    request = openai_request([calls], [ToolDefinition("a.b", "", {})])
    names = [each["function"]["name"] for each in request["messages"][0]["tool_calls"]]
    assert names[0] == "a.b"
    assert len(set(names)) == 3


def test_pictures_that_nobody_takes_stay_words() -> None:
    pytest.importorskip("openai")
    pytest.importorskip("anthropic")
    images = (Image(b"", "image/png"), Image(b"<svg/>", "image/svg+xml"), Image(PNG + b"x", "image/jpeg"))
    shown = [Message("user", "look", images=images)]
    (said,) = anthropic_request(shown)["messages"]
    assert [block["source"]["media_type"] for block in said["content"][1:]] == ["image/png"]
    (said,) = openai_request(shown)["messages"]
    assert [block["image_url"]["url"][:15] for block in said["content"][1:]] == ["data:image/png;"]


values = st.recursive(
    st.none() | st.floats() | st.text("a\ud83d", max_size=4), lambda inner: st.lists(inner, max_size=3)
)
texts = st.text(alphabet=" \na\ud83d\ude00\udce9\u00e9", max_size=6)
calls = st.lists(st.builds(ToolCall, texts, texts, st.sampled_from([each[1] for each in BAD]) | texts), max_size=3)
messages = st.one_of(
    st.builds(Message, st.sampled_from(["user", "system"]), texts),
    st.builds(
        Message,
        st.just("assistant"),
        texts,
        calls.map(tuple),
        native=st.none() | st.builds(Native, st.just("another"), st.dictionaries(texts, values, max_size=2)),
        created_at=st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    ),
    st.builds(Message, st.just("tool"), texts, tool_call_id=texts),
)


@settings(deadline=None)  # a machine may be busy
@given(st.lists(messages, max_size=6))
def test_any_messages_can_be_sent_saved_and_read_again(given: list[Message]) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("anthropic")
    session = Session(given)
    with session.lease() as log:
        log.settle("unknown")
    check_openai(openai_request(session.messages))
    check_anthropic(anthropic_request(session.messages))
    text = json.dumps(session.to_dict(), allow_nan=False, ensure_ascii=False).encode()
    assert Session.from_dict(json.loads(text)).to_dict() == session.to_dict()
    for message in session.messages:
        assert Message.from_dict(json.loads(json.dumps(message.to_dict()))) == message


@settings(deadline=None)  # a machine may be busy
@given(values)
def test_any_value_is_made_sound(value: Any) -> None:
    json.dumps(sound(value), allow_nan=False, ensure_ascii=False).encode()


def test_what_goes_on_for_ever_is_made_sound_too() -> None:
    endless: list[Any] = []
    endless.append(endless)
    json.dumps(sound(endless))


# -- open calls, and the order of results ------------------------------------------------------------------------------

TWO = Message("assistant", "", (ToolCall("1", "pay"), ToolCall("2", "pay")))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ([TWO], ["1?", "2?"]),
        ([TWO, Message("tool", "paid", tool_call_id="1")], ["1", "2?"]),
        ([TWO, Message("tool", "paid", tool_call_id="2")], ["1?", "2"]),
        ([TWO, Message("tool", "paid", tool_call_id="2"), Message("tool", "paid", tool_call_id="1")], ["1", "2"]),
        ([TWO, Message("user", "well?")], ["1?", "2?", "user"]),
        ([TWO, Message("user", "well?"), Message("tool", "paid", tool_call_id="2")], ["1?", "2", "user"]),
    ],
)
def test_a_session_that_ended_in_the_middle_of_a_call_goes_on(said: list[Message], shown: list[str]) -> None:
    """Its calls have results before the model is asked, in the order of the calls."""
    saved = Session([Message("user", "pay twice"), *said])
    session = Session.from_dict(json.loads(json.dumps(saved.to_dict())))
    model = Scripted(say("ok"))
    with approving(Agent("a", model)) as runtime:
        runtime.run(session)
    seen = model.seen[0]
    assert seen[1].tool_calls == TWO.tool_calls
    results = [
        (m.tool_call_id or m.role) + ("?" if "it is not known whether it took effect" in m.content else "")
        for m in seen[2:]
    ]
    assert results == shown
    assert [message.content for message in session.messages[:-1]] == [message.content for message in seen]


def test_what_was_made_shorter_begins_where_it_did_when_a_call_is_settled_before_it() -> None:
    session = Session([Message("user", "a"), TWO, Message("user", "b"), Message("assistant", "c")])
    with session.lease() as log:
        log.compact(Compacted("summary", start=2, shortened=3, at=4))
        log.settle("unknown")
    assert session.compacted.start == 4
    assert session.messages[session.compacted.start].content == "b"
    assert (session.compacted.shortened, session.compacted.at) == (5, 6)


def test_a_result_is_in_the_session_before_it_is_seen_and_in_the_order_of_the_calls() -> None:
    with Stall() as first:
        third = threading.Event()

        @tool(read_only=True)
        def work(n: int) -> str:
            if n == 1:
                first()
            if n == 2:
                third.wait(10)
            return str(n)

        turn = [call("work", json.dumps({"n": n}), id=str(n), index=n) for n in (1, 2, 3)]
        session = Session.from_user("go")
        states: list[tuple[str, list[str]]] = []
        with approving(Agent("a", Scripted(turn, say("done")), tools=[work])) as runtime:
            for event in runtime.run_stream(session):
                if isinstance(event, events.ToolCallResponse):
                    states.append((event.response, [m.content for m in session.messages if m.role == "tool"]))
                    third.set() if event.response == "3" else first.go_on.set()
    assert states == [("3", ["3"]), ("2", ["2", "3"]), ("1", ["1", "2", "3"])]


def test_a_session_that_is_saved_while_its_calls_run_goes_on_elsewhere() -> None:
    """With the results that were there; of the other calls it is not known whether they took effect."""
    with Stall() as slow:

        @tool(read_only=True)
        def work(n: int) -> str:
            if n == 1:
                slow()
            return str(n)

        turn = [call("work", json.dumps({"n": n}), id=str(n), index=n) for n in (1, 2)]
        session = Session.from_user("go")
        saved = ""
        with approving(Agent("a", Scripted(turn, say("done")), tools=[work])) as runtime:
            for event in runtime.run_stream(session):
                if isinstance(event, events.ToolCallResponse) and event.response == "2":
                    saved = json.dumps(session.to_dict())
                    slow.go_on.set()
    model = Scripted(say("ok"))
    with approving(Agent("a", model, tools=[work])) as runtime:
        runtime.run(Session.from_dict(json.loads(saved)))
    assert [(m.tool_call_id, m.is_error) for m in model.seen[0][2:]] == [("1", True), ("2", False)]


def test_what_a_tool_says_is_seen_as_the_model_will_see_it() -> None:
    @tool(read_only=True)
    def ls() -> ToolResult:
        return ToolResult("caf\udce9")

    session = Session.from_user("go")
    with approving(Agent("a", Scripted([call("ls")], say("done")), tools=[ls])) as runtime:
        seen = [event for event in runtime.run_stream(session) if isinstance(event, events.ToolCallResponse)]
    assert seen[0].response == session.messages[2].content == r"caf\xe9"


# -- what was written down ---------------------------------------------------------------------------------------------


def written_down() -> dict[str, Any]:
    """A session with a bit of everything."""
    session = Session.from_user("hi", permissions=Permissions(allow=["f:x=1"], deny=["g"]))
    session.add_user("look", images=[Image(b"\x89PNG", "image/png")])
    calls = (ToolCall("c1", "f", '{"a": 1}'),)
    said = Message("assistant", "ok", calls, agent_name="a", model="m", usage=Usage(1, 2), native=Native("p", {"a": 1}))
    data = session.to_dict()
    data["messages"] += [said.to_dict(), Message("tool", "done", tool_call_id="c1").to_dict()]
    return {**data, "usage": Usage(1, 2, cost=0.5).to_dict()}


def test_a_session_that_was_written_by_anybody_is_refused_in_a_sentence_or_runs() -> None:
    """Whatever stands in whatever place of what `Session.to_dict` wrote."""
    data = written_down()
    assert Session.from_dict(data).to_dict() == data
    runs, refusals = 0, []
    with Runtime(Agent("a", Endless(), compaction=Compaction(window=1000))) as runtime:
        for place in places(data):
            for value in HOSTILE:
                try:
                    session = Session.from_dict(changed(data, place, value))
                except ValueError as error:
                    refusals.append(str(error))
                    continue
                json.dumps(session.to_dict()).encode()
                assert runtime.run(session).text == "ok"
                runs += 1
    assert runs > 50
    assert max(map(len, refusals)) < 400


class Endless:
    id = "endless"

    def stream(self, messages: Sequence[Message], tools: Any, *, cancel: Any) -> Iterator[TextDelta]:
        yield TextDelta("ok")


def test_the_place_of_what_is_wrong_is_named() -> None:
    wrong = changed(written_down(), ("messages", 2, "usage", "input_tokens"), "many")
    with pytest.raises(ValueError, match=r"tokens of usage of messages\[2\] of the session must be .* not 'many'"):
        Session.from_dict(wrong)


def test_what_is_exported_after_a_call_that_was_too_long_can_be_imported() -> None:
    """Its next message is known not to be counted: that number is one more than there are messages."""
    session = Session.from_user("hi")
    store = MemoryStore()
    with Runtime(Agent("a", Endless()), store=store) as runtime:
        runtime.run(session)
    data = store.export(session.id)
    data["sessions"][0]["compacted"]["at"] = len(data["sessions"][0]["messages"]) + 1
    assert MemoryStore().import_(data).id == session.id
