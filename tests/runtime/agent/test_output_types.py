"""A run with an output type ends with a value of that type, or with an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, TypedDict

import pytest

from channels import CancelToken
from runtime import (
    Agent,
    Delta,
    HookInput,
    HookResult,
    Message,
    OutputSchema,
    RunError,
    Runtime,
    Session,
    TextDelta,
    ToolContext,
    ToolDefinition,
    tool,
)
from runtime.events import Error, StreamStopped, Warning
from support.scripted import Scripted, Stall, call, say


@dataclass
class Table:
    restaurant: str
    people: int
    day: date
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.people > 20:
            raise ValueError("no table is that long")


class Place(TypedDict):
    name: str
    stars: int


GOOD = '{"restaurant": "Luigi\'s", "people": 2, "day": "2026-12-24"}'
TABLE = Table("Luigi's", 2, date(2026, 12, 24))


def run(*turns: Any, wanted: Any = Table, **more: Any) -> Any:
    model = Scripted(*turns)
    session = Session.from_user("go")
    with Runtime(Agent("a", model, "Book.", **more)) as runtime:
        return runtime.run(session, output_type=wanted), model, session


@pytest.mark.parametrize("text", [GOOD, f" {GOOD}\n", f"```json\n{GOOD}\n```", f"```\n{GOOD}\n```\n"])
def test_a_value_of_the_type(text: str) -> None:
    """With converted dates, and defaults; in a fence too, as many models write JSON."""
    result, model, _ = run(say(text[:9], text[9:]))
    assert result.output == TABLE
    assert result.text == text
    [system, _] = model.seen[0]
    assert system.content.startswith("Book.\n\n")
    assert '"restaurant"' in system.content


def test_the_agents_type_and_that_of_the_run() -> None:
    """The run's comes first; without either there is no output."""
    agent = Agent("a", Scripted(say(GOOD), say('{"name": "x", "stars": 3}'), say("[1]")), output_type=Table)
    with Runtime(agent) as runtime:
        assert runtime.run(Session.from_user("go")).output == TABLE
        assert runtime.run(Session.from_user("go"), output_type=Place).output == {"name": "x", "stars": 3}
        assert runtime.run(Session.from_user("go"), output_type=list[int]).output == [1]
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        assert runtime.run(Session.from_user("go")).output is None


def test_a_pydantic_model() -> None:
    """With its own conversions and complaints."""
    pydantic = pytest.importorskip("pydantic")
    Point = pydantic.create_model("Point", x=(int, pydantic.Field(gt=0)), inner=(Table, ...))
    text = f'{{"x": 3, "inner": {GOOD}}}'
    result, _, session = run(say(text.replace("3", "0", 1)), say(text), wanted=Point)
    assert result.output == Point(x=3, inner=TABLE)
    assert "greater than 0" in session.messages[2].content or "more than 0" in session.messages[2].content


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A table at Luigi's.", "not JSON"),
        ("", "not JSON"),
        ('{"restaurant": "x"}', "people is missing"),
        (GOOD.replace("2,", '"two",'), "people must be a whole number"),
        (GOOD.replace("2,", "30,"), "no table is that long"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_reply_is_asked_for_again_once(text: str, problem: str) -> None:
    """With what is wrong with it, and the consumer is told; it is a turn like any other."""
    model = Scripted(say(text), say(GOOD))
    session = Session.from_user("go")
    with Runtime(Agent("a", model)) as runtime, runtime.run_stream(session, output_type=Table) as stream:
        events = list(stream)
        assert stream.result().output == TABLE
    [warning] = [event for event in events if isinstance(event, Warning)]
    assert problem in warning.message
    assert [message.role for message in session.messages] == ["user", "assistant", "user", "assistant"]
    assert problem in model.seen[1][-1].content


def test_a_second_wrong_reply_ends_the_run() -> None:
    """With an error event of its own code; `run` raises it, from what was wrong."""
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(say("no"), say('{"people": 2}')))) as runtime:
        with pytest.raises(RunError, match="restaurant is missing") as caught:
            runtime.run(session, output_type=Table)
        assert (caught.value.code, caught.value.reason) == ("invalid_output", "error")
        assert "restaurant is missing" in str(caught.value.__cause__)
    with Runtime(Agent("a", Scripted(say("no"), say("no")), output_type=Table)) as runtime:
        seen = list(runtime.run_stream(Session.from_user("go")))
    assert [event.code for event in seen if isinstance(event, Error)] == ["invalid_output"]
    assert isinstance(seen[-1], StreamStopped)
    assert seen[-1].reason == "error"


def test_tools_come_first() -> None:
    """A reply that calls tools may say what it likes."""

    @tool(read_only=True)
    def look() -> str:
        """Looks."""
        return "free"

    result, _, _ = run([*say("I look."), call("look")], say(GOOD), tools=[look])
    assert result.output == TABLE


def test_a_stop_hook_sees_a_valid_reply_only() -> None:
    """And what it makes the agent say counts."""
    seen = []

    def once(given: HookInput) -> HookResult | None:
        seen.append(given.response)
        return HookResult(block=True, reason="for three") if len(seen) == 1 else None

    three = GOOD.replace("2,", "3,")
    result, _, _ = run(say("no"), say(GOOD), say(three), hooks={"stop": [once]})
    assert seen == [GOOD, three]
    assert result.output.people == 3


def test_a_nested_agent_has_an_output_too() -> None:
    """`ToolContext.run_agent` gives it to the tool."""
    inner = Agent("inner", Scripted(say(GOOD)), output_type=Table)

    @tool(read_only=True)
    def delegate(context: ToolContext) -> str:
        """Delegates."""
        return str(context.run_agent(inner, "book").output.people)

    with Runtime(Agent("a", Scripted([call("delegate")], say("x")), tools=[delegate])) as runtime:
        runtime.run(session := Session.from_user("go"))
    assert session.messages[2].content == "2"


def test_a_type_that_json_cannot_be_made_into() -> None:
    """Is said at once, where it is given."""
    with pytest.raises(TypeError, match="no output_type"):
        Agent("a", Scripted(), output_type=threading.Thread)
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        with pytest.raises(TypeError, match="no output_type"):
            runtime.run_stream(session, output_type=threading.Thread)
        assert runtime.run(session).text == "x"


def test_code_of_the_type_does_not_run_on_the_worker() -> None:
    """It may take its time, and a cancel does not wait for it."""
    with Stall() as stall:

        @dataclass
        class Slow:
            n: int

            def __post_init__(self) -> None:
                stall()

        with Runtime(Agent("a", Scripted(say('{"n": 1}'))), grace=5) as runtime:
            stream = runtime.run_stream(Session.from_user("go"), output_type=Slow)
            assert stall.reached.wait(5)
            stream.cancel()
            assert list(stream)[-1].to_dict()["reason"] == "canceled"
            stall.go_on.set()


class Told:
    """A model that takes the schema."""

    id = "told"

    def __init__(self) -> None:
        self.outputs: list[OutputSchema | None] = []

    def stream(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolDefinition],
        *,
        cancel: CancelToken,
        output: OutputSchema | None = None,
    ) -> Iterator[Delta]:
        self.outputs.append(output)
        yield TextDelta(GOOD)


def test_a_model_that_takes_the_schema_is_given_it() -> None:
    """Only where there is one."""
    model = Told()
    with Runtime(Agent("a", model)) as runtime:
        runtime.run(Session.from_user("go"), output_type=Table)
        runtime.run(Session.from_user("go"))
    assert model.outputs[1] is None
    assert model.outputs[0] is not None
    assert model.outputs[0].name == "Table"
    assert model.outputs[0].schema["required"] == ["restaurant", "people", "day"]


@pytest.mark.parametrize(
    "text",
    [
        f"Here you are:\n```json\n{GOOD}\n```",
        f"```json\n{GOOD}\n```\nAnything else?",
        f"Here you are: {GOOD} Anything else?",
        f"<think>It is {{1}}, or {{}}.</think>\n\n{GOOD}",
        f"It is {{1}}.</think>\n{GOOD}",
        f"```json {GOOD} ```",
        f"Not {{'a': 1}}, nor [2], nor {{\"restaurant\": 1}}. It is {GOOD}",
        f"First {GOOD.replace('2026', '2025')}. No: {GOOD}",
    ],
)
def test_json_is_found_in_what_models_say_around_it(text: str) -> None:
    result, model, _ = run(say(text))
    assert result.output == TABLE
    assert len(model.seen) == 1


def test_a_text_needs_no_json() -> None:
    result, model, _ = run(say('Hello "there".'), wanted=str)
    assert result.output == 'Hello "there".'
    assert [message.content for message in model.seen[0]] == ["Book.", "go"]


@pytest.mark.parametrize(
    ("wanted", "text", "value"),
    [
        (list[int], '{"items": [1, 2]}', [1, 2]),
        (int, "42", 42),
        (int, '{"value": 42}', 42),
        (Literal["yes", "no"], "yes", "yes"),
        (Literal["yes", "no"], '"no"', "no"),
        (date, "2026-12-24", date(2026, 12, 24)),
        (Table | str, "No table is free.", "No table is free."),
        (Table | str, GOOD, TABLE),
    ],
)
def test_what_is_no_object(wanted: Any, text: str, value: Any) -> None:
    result, model, _ = run(say(text), wanted=wanted)
    assert result.output == value
    assert len(model.seen) == 1


@pytest.mark.parametrize(
    "text",
    ["[" * 300_000, "{" * 100_000, '{"a":' * 50_000, "[1," * 300_000, "`" * 200_000, "```" + "a" * 300_000],
    ids=lambda text: text[:5],
)
def test_reading_is_bounded(text: str) -> None:
    since = time.process_time()
    with pytest.raises(RunError) as caught:
        run(say(text), say(text))
    assert caught.value.code == "invalid_output"
    assert time.process_time() - since < 5
