"""Tool calls as servers really send them: a table of dialects, and what holds for any sequence of pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime import Agent, FinishDelta, Message, Session, ToolCall, ToolCallDelta, events, tool
from runtime.foreign._arguments import WholeObject
from runtime.toolcalls._assembler import Assembler, cut_off
from support.scripted import Scripted, approving, call, say

TOOLS = ("wipe", "now", "today", "go", "gogo")
X = '{"pattern":"/tmp/x"}'
ONE = [("wipe", X)]


def pieces(*given: tuple[Any, ...]) -> list[ToolCallDelta]:
    return [ToolCallDelta(*each) for each in given]


def assembled(deltas: list[ToolCallDelta], finish: str | None = "tool_calls") -> list[tuple[str, str]]:
    assembler = Assembler(set(), TOOLS)
    for delta in deltas:
        assembler.add(delta)
    made = assembler.calls(finish)
    assert len({each.id for each in made}) == len(made)
    assert all(each.id for each in made)
    return [(each.name, each.arguments) for each in made]


# What is said of whom: pieces (index, id, name, arguments), and the calls that they are.
DIALECTS: dict[str, tuple[list[ToolCallDelta], list[tuple[str, str]]]] = {
    "the protocol": (pieces((0, "a", "wipe"), (0, "", "", '{"pattern":'), (0, "", "", '"/tmp/x"}')), ONE),
    "the protocol, side by side": (
        pieces((0, "a", "wipe"), (1, "b", "now"), (1, "", "", "{}"), (0, "", "", X)),
        [("wipe", X), ("now", "{}")],
    ),
    "in one piece": (pieces((0, "a", "wipe", X)), ONE),
    "numbered from 1, as blocks are": (
        pieces((1, "a", "wipe"), (1, "", "", X), (2, "b", "now")),
        [*ONE, ("now", "{}")],
    ),
    "a new id in every piece": (
        pieces((0, "a", "wipe"), (0, "b", "", '{"pattern":'), (0, "c", "", '"/tmp/x"}'), (0, "d")),
        ONE,
    ),
    "another id from the second piece on": (
        pieces((0, "a", "wipe"), (0, "b", "", '{"pattern":'), (0, "b", "", '"/tmp/x"}')),
        ONE,
    ),
    "a new id and the name in every piece": (
        pieces((0, "a", "wipe"), (0, "b", "wipe", '{"pattern":'), (0, "c", "wipe", '"/tmp/x"}'), (0, "d", "wipe")),
        ONE,
    ),
    "the id comes late": (pieces((0, "", "wipe", '{"pattern":'), (0, "a", "", '"/tmp/x"}')), ONE),
    "the id and the name in every piece": (
        pieces((0, "a", "wipe", '{"pattern":'), (0, "a", "wipe", '"/tmp/x"}'), (0, "a", "wipe", "")),
        ONE,
    ),
    "the id first, then the name": (
        pieces((0, "a"), (0, "", "wipe"), (0, "", "", X), (0, "b"), (0, "", "now")),
        [*ONE, ("now", "{}")],
    ),
    "the name in pieces": (pieces((0, "a", "wi"), (0, "", "pe"), (0, "", "", X)), ONE),
    "the name in pieces that are alike": (pieces((0, "a", "go"), (0, "", "go", "{}")), [("go", "{}")]),
    "whole calls, one index, no ids": (
        pieces((0, "", "wipe", '{"pattern":"a"}'), (0, "", "wipe", '{"pattern":"b"}')),
        [("wipe", '{"pattern":"a"}'), ("wipe", '{"pattern":"b"}')],
    ),
    "whole calls, no index, no ids": (
        pieces((None, "", "now", "{}"), (None, "", "now", "{}"), (None, "", "wipe", X)),
        [("now", "{}"), ("now", "{}"), ("wipe", X)],
    ),
    "whole calls, one index, one id": (
        pieces((0, "a", "wipe", '{"pattern":"a"}'), (0, "a", "wipe", '{"pattern":"b"}')),
        [("wipe", '{"pattern":"a"}'), ("wipe", '{"pattern":"b"}')],
    ),
    "whole calls, an index each, one id": (
        pieces((0, "a", "wipe", X), (1, "a", "wipe", X[:-1] + " }")),
        [("wipe", X), ("wipe", X[:-1] + " }")],
    ),
    "the same call, an index each, one id": (pieces((0, "a", "wipe", X), (1, "a", "wipe", X)), [*ONE, *ONE]),
    "one index, told apart by ids": (
        pieces((0, "a", "wipe"), (0, "", "", X), (0, "b", "wipe"), (0, "", "", '{"pattern":"b"}')),
        [("wipe", X), ("wipe", '{"pattern":"b"}')],
    ),
    "one index, told apart by ids, side by side": (
        pieces((0, "a", "wipe"), (0, "b", "now"), (0, "a", "", X), (0, "b", "", "{}")),
        [("wipe", X), ("now", "{}")],
    ),
    "no index, told apart by ids": (
        pieces((None, "a", "wipe", '{"pattern":'), (None, "b", "now", "{}"), (None, "a", "", '"/tmp/x"}')),
        [("wipe", X), ("now", "{}")],
    ),
    "no arguments, one index, no ids": (pieces((0, "", "now"), (0, "", "today")), [("now", "{}"), ("today", "{}")]),
    "the index counts pieces": (
        pieces((0, "a", "wipe"), (1, "a", "", '{"pattern":'), (2, "", "", '"/tmp/x"}'), (3, "", "", "")),
        ONE,
    ),
    "the whole call once more at the end": (
        pieces((0, "a", "wipe"), (0, "", "", '{"pattern":'), (0, "", "", '"/tmp/x"}'), (0, "a", "wipe", X)),
        ONE,
    ),
    "an empty object first": (pieces((0, "a", "wipe", "{}"), (0, "", "", X)), ONE),
    "an object": ([ToolCallDelta(0, "a", "wipe", {"pattern": "/tmp/x"})], [("wipe", '{"pattern": "/tmp/x"}')]),
    "null": (pieces((0, "a", "now", "null")), [("now", "{}")]),
    "null, in pieces": (pieces((0, "a", "now"), (0, "", "", "null"), (0, "", "", "")), [("now", "{}")]),
    "blank": (pieces((0, "a", "now", " \n")), [("now", "{}")]),
    "an empty piece at the end": (pieces((0, "a", "wipe", X), (0, "", "", ""), (1, "", "", "")), ONE),
    "an id alone at the end": (pieces((0, "a", "wipe", X), (1, "b")), ONE),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_is_understood(dialect: str) -> None:
    given, made = DIALECTS[dialect]
    assert assembled(given) == made


def test_a_name_that_is_twice_its_half_is_one_name() -> None:
    """Where no tool has the name of the half."""
    assembler = Assembler(set(), ["gogo"])
    for delta in pieces((0, "a", "go"), (0, "", "go", "{}")):
        assembler.add(delta)
    assert [each.name for each in assembler.calls("stop")] == ["gogo"]


def test_the_id_of_a_call_never_changes_and_is_nobody_else_s() -> None:
    """A consumer has seen it with the first piece."""
    taken = {"a"}
    assembler = Assembler(taken, TOOLS)
    said = [
        assembler.add(each) for each in pieces((0, "", "wipe", '{"pattern":'), (0, "a", "", '"x"}'), (1, "a", "now"))
    ]
    ids = [each.id for each in said if each is not None]
    assert ids[0] == ids[1] != ids[2]
    assert "a" not in ids
    assert taken == {"a", *ids}


@pytest.mark.parametrize("finish", ["length", "content_filter", "pause_turn"])
@pytest.mark.parametrize("arguments", ["", " ", "null", '{"pattern":', '{"pattern":"/', '{"a": 1}}'])
def test_a_call_that_was_cut_off_is_never_made(finish: str, arguments: str) -> None:
    """Not with its defaults either; the model is told, and the run goes on."""
    ran: list[str] = []

    @tool
    def wipe(pattern: str = "*") -> str:
        ran.append(pattern)
        return "wiped"

    model = Scripted([call("wipe", arguments), FinishDelta(finish)], say("I see"))
    session = Session.from_user("go")
    with approving(Agent("a", model, tools=[wipe])) as runtime:
        seen = list(runtime.run_stream(session))
    assert ran == []
    (result,) = [message for message in session.messages if message.role == "tool"]
    assert result.is_error
    assert f"this call was not made: the reply ended ({finish})" in result.content
    assert session.messages[-1].content == "I see"
    assert any(isinstance(event, events.ToolCallResponse) and event.is_error for event in seen)


def test_a_call_that_is_whole_is_made_though_its_reply_was_cut_off() -> None:
    ran: list[str] = []

    @tool
    def wipe(pattern: str = "*") -> str:
        ran.append(pattern)
        return "wiped"

    model = Scripted([call("wipe", X), call("wipe", "", id="2", index=1), FinishDelta("length")], say("I see"))
    with approving(Agent("a", model, tools=[wipe])) as runtime:
        runtime.run(Session.from_user("go"))
    assert ran == ["/tmp/x"]


# -- any sequence ------------------------------------------------------------------------------------------------------

texts = st.one_of(
    st.sampled_from(
        ["", " ", "null", "{}", X, '{"pattern":', '"/tmp/x"}', "[", "NaN", "1e999", '"\\ud83d"', "\ud83d", "}"]
    ),
    st.text(alphabet='{}[]":,\\a1 \ud83d\ude00', max_size=8),
)
names = st.sampled_from(["", "wipe", "wi", "pe", "now", "browser.open", "\udce9", "x" * 200])
some_pieces = st.lists(
    st.builds(
        ToolCallDelta,
        st.sampled_from([0, 1, 2, None]),
        st.sampled_from(["", "a", "b", "c", "\udce9"]),
        names,
        st.one_of(texts, st.dictionaries(texts, st.floats(), max_size=2)),
    ),
    max_size=12,
)


@settings(deadline=None)  # a machine may be busy
@given(some_pieces, st.sampled_from([None, "stop", "tool_calls", "length"]))
@example(pieces((0, "a", "wipe", "")), "length")
def test_any_pieces_are_calls_that_are_whole_or_refused(deltas: list[ToolCallDelta], finish: str | None) -> None:
    """And nothing of what was said is lost where one call was all there was."""
    taken = {"b"}
    assembler = Assembler(taken, TOOLS)
    for delta in deltas:
        assembler.add(delta)
    made = assembler.calls(finish)
    ids = [each.id for each in made]
    assert len(set(ids)) == len(ids)
    assert "b" not in ids
    for each in made:
        parsed = each.parsed
        assert (parsed is None) == bool(each.problem)
        if parsed is None:
            assert each.sound_arguments == "{}"
            assert cut_off(each, finish) or finish != "length"
        else:
            assert json.loads(each.sound_arguments) == parsed
            json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()
    Session([Message("user", "x"), Message("assistant", "", made)])


@settings(deadline=None)  # a machine may be busy
@given(st.lists(texts, max_size=8))
def test_whether_an_object_is_whole_does_not_depend_on_the_pieces(given: list[str]) -> None:
    text = "{" + "".join(given)
    whole = WholeObject()
    whole.add(text)
    split = WholeObject()
    for letter in text:
        split.add(letter)
    assert whole.whole == split.whole
    if ToolCall("1", "f", text).parsed is not None:
        assert whole.whole


def test_looking_for_the_end_of_an_object_is_linear() -> None:
    """A server that says the name in every piece has the end looked for each time."""
    import time

    assembler = Assembler(set(), TOOLS)
    assembler.add(ToolCallDelta(0, "a", "wipe", '{"pattern":['))
    began = time.process_time()
    for _ in range(20_000):
        assembler.add(ToolCallDelta(0, "a", "wipe", "{},"))
    assert time.process_time() - began < 2
    assert [each.name for each in assembler.calls("length")] == ["wipe"]
