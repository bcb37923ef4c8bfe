"""Tools: what they are given, what they give back, how long they may take, and where they run."""

from __future__ import annotations

import enum
import json
import math
import stat
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from channels import ChannelClosed, WouldBlock, select
from runtime import (
    Agent,
    ConsumerCall,
    Image,
    Message,
    NotPending,
    Runtime,
    Session,
    StreamStuck,
    Tool,
    ToolContext,
    ToolResult,
    tool,
)
from runtime.events import (
    AgentChoice,
    ElicitationRequest,
    Event,
    StreamStopped,
    ToolCallOutput,
    ToolCallResponse,
    ToolCallStarted,
)
from runtime.stream._core import StreamCore
from support.scripted import Scripted, Stall, approving, call, say, worker_rests

PIXEL = Image(b"\x89PNG", "image/png")


def run(made: Any, arguments: str = "{}", **more: Any) -> Message:
    """The message that a call comes to."""
    session = Session.from_user("go")
    made = made if isinstance(made, Tool) else tool(made)
    with approving(Agent("a", Scripted([call(made.name, arguments)], say("ok")), tools=[made]), **more) as runtime:
        runtime.run(session)
    [message] = [each for each in session.messages if each.role == "tool"]
    return message


def closes(channel: Any) -> bool:
    """Whether it does, before long."""
    try:
        channel.recv(timeout=5)
    except ChannelClosed:
        return True
    return False


def test_calls_for_which_there_are_no_threads_fail_and_the_others_count(
    monkeypatch: pytest.MonkeyPatch, cold: None
) -> None:
    """What has run is known to the model, and what could not be started."""
    start, before = threading.Thread.start, set(threading.enumerate())
    refused = threading.Event()

    def refuse(thread: threading.Thread) -> None:
        helpers = [each for each in set(threading.enumerate()) - before if each.name.startswith("lockgate-helper")]
        if thread.name.startswith("lockgate-helper") and len(helpers) >= 3 and not refused.is_set():
            raise RuntimeError("can't start new thread")
        start(thread)

    @tool(read_only=True)
    def echo() -> str:
        assert refused.wait(10)
        return "ran"

    monkeypatch.setattr(threading.Thread, "start", refuse)
    turns = [[call("echo", id=str(i), index=i) for i in range(5)], say("done")]
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(*turns), tools=[echo])) as runtime, runtime.run_stream(session) as stream:
        for event in stream:
            if isinstance(event, ToolCallResponse):
                refused.set()
        assert stream.result().text == "done"
    said = [message.content for message in session.messages if message.role == "tool"]
    assert len(said) == 5
    assert set(said) == {"ran", "RuntimeError: can't start new thread"}


# -- arguments ---------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.Enum):
    SMALL = (1, 2)


@dataclass
class Point:
    x: int
    y: float = 0.0
    colours: list[Colour] = field(default_factory=list)


class Box(TypedDict):
    corner: Point
    label: NotRequired[str]


@pytest.mark.parametrize(("annotation", "given", "value"), [
    (int, 5.0, 5),
    (float, 5, 5.0),
    (Colour, "red", Colour.RED),
    (Size, "SMALL", Size.SMALL),
    (Literal["a", 1], 1, 1),
    (date, "2026-12-24", date(2026, 12, 24)),
    (datetime, "2026-12-24T19:30:00+01:00", datetime.fromisoformat("2026-12-24T19:30:00+01:00")),
    (time, "19:30", time(19, 30)),
    (uuid.UUID, "12345678-1234-5678-1234-567812345678", uuid.UUID("12345678-1234-5678-1234-567812345678")),
    (Path, "/tmp/x", Path("/tmp/x")),
    (Decimal, 1.1, Decimal("1.1")),
    (list[date], ["2026-12-24"], [date(2026, 12, 24)]),
    (set[int], [1, 1, 2], {1, 2}),
    (tuple[int, ...], [1, 2], (1, 2)),
    (Sequence[Colour], ["blue"], [Colour.BLUE]),
    (dict[str, Colour], {"a": "red"}, {"a": Colour.RED}),
    (Point, {"x": 1, "colours": ["red"]}, Point(1, 0.0, [Colour.RED])),
    (Box, {"corner": {"x": 1, "y": 2}}, {"corner": Point(1, 2.0)}),
    (int | None, None, None),
    (Point | date, "2026-12-24", date(2026, 12, 24)),
    (Point | date, {"x": 3}, Point(3)),
    (Annotated[Colour, "which"], "red", Colour.RED),
])  # fmt: skip
def test_arguments_are_what_the_annotations_say(annotation: Any, given: Any, value: Any) -> None:
    seen = []

    def take(value: Any) -> None:
        seen.append(value)

    take.__annotations__["value"] = annotation
    message = run(take, json.dumps({"value": given}))
    assert not message.is_error, message.content
    assert seen == [value]
    assert type(seen[0]) is type(value)


def test_what_may_be_left_out_may_be_null() -> None:
    seen = []

    def take(count: int | None = 5, day: date | None = None, colour: Colour = Colour.RED) -> None:
        seen.append((count, day, colour))

    made = tool(take)
    assert made.parameters["properties"]["colour"] == {"enum": ["red", "blue"], "default": "red"}
    run(made)
    run(made, '{"count": null, "day": null}')
    assert run(made, '{"colour": null}').is_error
    assert seen == [(5, None, Colour.RED), (None, None, Colour.RED)]


@pytest.mark.parametrize(("arguments", "said"), [
    ("{", "the arguments are not JSON"),
    ("[1]", "the arguments must be a JSON object, not a list"),
    ("[" * 101 + "]" * 101, "the arguments cannot be read: nested more than 100 levels deep"),
    ("{}", "wrong arguments for take: point is missing"),
    ('{"point": {"y": 1}}', "wrong arguments for take: point.x is missing"),
    ('{"point": {"x": "one"}}', "wrong arguments for take: point.x must be a whole number, not 'one'"),
    ('{"point": {"x": 1, "colours": ["green"]}}', "must be one of 'red', 'blue', not 'green'"),
    ('{"point": {"x": 1}, "day": "soon"}', "day must be a date such as 2026-12-24, not 'soon'"),
    ('{"point": {"x": 1}, "id": "7"}', "wrong arguments for take: badly formed hexadecimal UUID string"),
    ('{"point": {"x": 1}, "more": 1}', "more is not asked for"),
    ('{"point": {"x": 1}, "id": 7}', "wrong arguments for take: id must be text, not 7"),
])  # fmt: skip
def test_bad_arguments_are_an_error_that_the_model_can_mend(arguments: str, said: str) -> None:
    called = []

    def take(point: Point, day: date | None = None, id: uuid.UUID | None = None) -> None:
        called.append(point)

    message = run(take, arguments)
    assert message.is_error
    assert said in message.content
    assert called == []


def test_what_a_value_does_not_take_is_a_bad_argument() -> None:
    """Conversion is foreign code: it runs where the tool does, and its failure is told as the argument's."""
    where: list[bool] = []

    @dataclass
    class Even:
        number: int

        def __post_init__(self) -> None:
            where.append(worker_rests())
            if self.number % 2:
                raise ValueError(f"{self.number} is odd")

    def take(even: Any) -> None: ...

    take.__annotations__["even"] = Even
    message = run(take, '{"even": {"number": 3}}')
    assert (message.content, message.is_error) == ("wrong arguments for take: 3 is odd", True)
    assert where == [True]


def test_what_contains_itself_is_refused() -> None:
    def take(tree: Any) -> None: ...

    take.__annotations__["tree"] = Tree
    with pytest.raises(TypeError, match="cannot contain itself"):
        tool(take)


@dataclass
class Tree:
    children: list[Tree]


def test_pydantic_models() -> None:
    """Where the program uses pydantic, its models are arguments and results."""
    pydantic = pytest.importorskip("pydantic")

    class Inner(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        day: date

    class Order(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        count: int = pydantic.Field(ge=1)
        inner: Inner

    def take(order: Any, times: Any = 1) -> Any:
        return [order] * times

    take.__annotations__.update(order=Order, times=Annotated[int, pydantic.Field(le=2)])
    made = tool(take)
    assert "Inner" in made.parameters["$defs"]
    message = run(made, '{"order": {"count": 2, "inner": {"day": "2026-12-24"}}}')
    assert json.loads(message.content) == [{"count": 2, "inner": {"day": "2026-12-24"}}]
    for bad in ('{"order": {"count": 0, "inner": {"day": "2026-12-24"}}}', '{"order": {"count": 1, "inner": {}}}'):
        message = run(made, bad)
        assert message.is_error
        assert message.content.startswith("wrong arguments for take")


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "content"), [
    ("text", "text"),
    (None, "null"),
    ({"a": [1, None]}, '{"a": [1, null]}'),
    ([Point(1), Colour.RED, date(2026, 12, 24)], '[{"x": 1, "y": 0.0, "colours": []}, "red", "2026-12-24"]'),
    ({Colour.RED: {1}}, '{"red": [1]}'),
    (ToolResult("no", is_error=True), "no"),
])  # fmt: skip
def test_results(value: Any, content: str) -> None:
    message = run(Tool("give", lambda: value))
    assert message.content == content


@pytest.mark.parametrize("asynchronous", [False, True])
def test_images(asynchronous: bool) -> None:
    """Beside the text, in the message and in the event, and through JSON."""

    def give() -> list[Any]:
        return ["a pixel:", PIXEL]

    async def give_async() -> list[Any]:
        return give()

    made = Tool("give", give_async if asynchronous else give)
    session = Session.from_user("go")
    with approving(Agent("a", Scripted([call("give")], say("ok")), tools=[made])) as runtime:
        events = list(runtime.run_stream(session))
    [response] = [event for event in events if isinstance(event, ToolCallResponse)]
    assert response.response == "a pixel:\n[image image/png, 4 bytes]"
    assert response.images == (PIXEL,)
    assert Event.from_dict(json.loads(json.dumps(response.to_dict()))) == response
    message = session.messages[2]
    assert message.images == (PIXEL,)
    assert Message.from_dict(json.loads(json.dumps(message.to_dict()))) == message


def test_a_result_that_json_cannot_write_is_text() -> None:
    class Odd:
        def __str__(self) -> str:
            assert worker_rests()  # foreign code
            return "odd"

    assert run(Tool("give", lambda: [Odd()])).content == '["odd"]'


# -- results that are too long -----------------------------------------------------------------------------------------


def test_a_long_result_is_cut_and_kept_in_full(tmp_path: Path) -> None:
    """In a file that only its owner may read, in a directory for the session, which stays."""
    text = "".join(f"{i}\n" for i in range(1000))
    message = run(Tool("give", lambda: text), result_limit=100, result_directory=tmp_path)
    assert message.content.startswith("0\n1\n")
    assert message.content.endswith("999\n")
    assert f"{len(text) - 100} of {len(text)} characters are left out here; the full text is in" in message.content
    [file] = tmp_path.glob("*/give-*.txt")
    assert str(file) in message.content
    assert file.read_text() == text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_the_temporary_directory_goes_with_the_runtime() -> None:
    made = Tool("give", lambda: "x" * 1000, result_limit=10)
    session = Session.from_user("go")
    with approving(Agent("a", Scripted([call("give")], say("ok")), tools=[made])) as runtime:
        runtime.run(session)
        path = Path(session.messages[2].content.partition("full text is in ")[2].partition(" ...")[0])
        assert path.read_text() == "x" * 1000
    assert not path.parents[1].exists()


def test_a_session_s_id_does_not_lead_out_of_the_directory(tmp_path: Path) -> None:
    made = Tool("give", lambda: "x" * 100, result_limit=10)
    session = Session([Message("user", "go")], id="../../x")
    agent = Agent("a", Scripted([call("give")], say("ok")), tools=[made])
    with approving(agent, result_directory=tmp_path / "deep") as runtime:
        runtime.run(session)
    assert len(list((tmp_path / "deep").glob("*/*.txt"))) == 1


def test_a_disk_that_is_full_does_not_lose_the_call(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = run(Tool("give", lambda: "x" * 1000), result_limit=100, result_directory=tmp_path / "file")
    assert not message.is_error
    assert "the full text could not be kept" in message.content


# -- progress ----------------------------------------------------------------------------------------------------------


def test_progress() -> None:
    """Events in order, before the response; late ones are dropped."""
    contexts = []

    @tool(read_only=True)
    def work(context: ToolContext) -> str:
        """Works."""
        contexts.append(context)
        context.progress("begun")
        context.progress("half", 1, 2)
        return "done"

    agent = Agent("a", Scripted([call("work")], say("ok")), tools=[work])
    with Runtime(agent) as runtime:
        events = [
            e for e in runtime.run_stream(Session.from_user("go")) if isinstance(e, (ToolCallOutput, ToolCallResponse))
        ]
    assert [(e.output, e.progress, e.total) for e in events[:2] if isinstance(e, ToolCallOutput)] == [
        ("begun", None, None),
        ("half", 1, 2),
    ]
    assert isinstance(events[2], ToolCallResponse)
    contexts[0].progress("late")


def test_progress_is_a_number_that_json_has_a_word_for() -> None:
    @tool(read_only=True)
    def work(context: ToolContext) -> str:
        """Works."""
        context.progress("some", math.nan, math.inf)
        return "ok"

    with Runtime(Agent("a", Scripted([call("work")], say("ok")), tools=[work])) as runtime:
        events = list(runtime.run_stream(Session.from_user("go")))
    [told] = [event for event in events if isinstance(event, ToolCallOutput)]
    assert (told.output, told.progress, told.total) == ("some", None, None)


def test_progress_never_waits_for_a_slow_consumer() -> None:
    """Not even from the loop's thread; some is dropped then."""

    @tool(read_only=True)
    async def work(context: ToolContext) -> str:
        """Works."""
        for i in range(10_000):
            context.progress(progress=i)
        return "done"

    agent = Agent("a", Scripted([call("work")], say("ok")), tools=[work])
    with Runtime(agent, event_capacity=1) as runtime:
        events = list(runtime.run_stream(Session.from_user("go")))
    assert 0 < sum(isinstance(event, ToolCallOutput) for event in events) <= 10_000


# -- timeouts ----------------------------------------------------------------------------------------------------------


def test_a_tool_whose_time_is_up_is_an_error_and_the_run_goes_on() -> None:
    """Its token is cancelled, its thread is left behind, what it says is dropped, and `StreamStuck` names it."""
    cancelled = threading.Event()
    with Stall() as stall:

        @tool(read_only=True, timeout=0.05)
        def slow(context: ToolContext) -> str:
            """Does not end."""
            context.cancel.on_cancel(cancelled.set)
            stall()
            return "late"

        session = Session.from_user("go")
        agent = Agent("a", Scripted([call("slow")], say("ok")), tools=[slow])
        with Runtime(agent, grace=0.1) as runtime:
            stream = runtime.run_stream(session)
            assert list(stream)[-1].reason == "normal"  # type: ignore[attr-defined]
            assert cancelled.wait(5)
            with pytest.raises(StreamStuck, match="tool slow"):
                stream.close()
            stall.go_on.set()
            stream.close()
    assert session.messages[2].is_error
    assert "slow did not end within 0.05 s" in session.messages[2].content


def test_a_coroutine_whose_time_is_up_is_cancelled() -> None:
    ended = threading.Event()

    @tool(timeout=0.5)  # long enough for it to begin, on a busy machine too
    async def slow() -> None:
        """Does not end."""
        import asyncio

        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    assert "did not end within 0.5 s" in run(slow).content
    assert ended.wait(5)


def test_the_time_of_the_user_is_not_counted() -> None:
    """A question stops the clock, which goes on with what was left."""
    with Stall() as stall:

        @tool(read_only=True, timeout=0.6)
        def ask(context: ToolContext) -> str:
            """Asks, then does not end."""
            said = context.elicit("?").action
            context.progress(said)
            stall()
            return "late"

        said: list[Any] = []
        agent = Agent("a", Scripted([call("ask")], say("ok")), tools=[ask])
        with Runtime(agent) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            for event in stream:
                said.append(event)
                if isinstance(event, ElicitationRequest):
                    assert not threading.Event().wait(0.8)  # the user thinks
                    stream.respond(event, "accept", {})
                elif isinstance(event, ToolCallResponse):
                    stall.go_on.set()
    assert [event.output for event in said if isinstance(event, ToolCallOutput)] == ["accept"]
    assert "did not end" in next(event.response for event in said if isinstance(event, ToolCallResponse))


def test_a_nested_stream_ends_with_the_call_that_runs_it() -> None:
    @tool(timeout=0.05)
    def delegate(context: ToolContext) -> str:
        """Runs an agent whose model goes on until the call is over."""
        inner = Agent("inner", Scripted([lambda: closes(context.cancel.done), *say("never")]))
        return context.run_agent(inner, "go").text

    assert "did not end within" in run(delegate).content


# -- tools in the consumer's thread ------------------------------------------------------------------------------------


@tool(on="consumer", read_only=True)
def where() -> str:
    """Tells its thread."""
    return threading.current_thread().name


def consuming(*turns: Any, tools: Any = (where,), **more: Any) -> Runtime:
    return Runtime(Agent("a", Scripted(*(turns or ([call("where")],)), say("ok")), tools=tools), **more)


def consumed(how: Any, **more: Any) -> list[Any]:
    """The events that a consumer in a thread of its own gets."""
    events: list[Any] = []

    def consume() -> None:
        with consuming(**more) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
            how(stream, events)

    thread = threading.Thread(target=consume, name="the consumer")
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return events


def iterate(stream: Any, events: list[Any]) -> None:
    events.extend(stream)


def receive(stream: Any, events: list[Any]) -> None:
    while not (events and isinstance(events[-1], StreamStopped)):
        events.append(stream.recv(timeout=5))


def poll(stream: Any, events: list[Any]) -> None:
    while not (events and isinstance(events[-1], StreamStopped)):
        try:
            events.append(stream.try_recv())
        except WouldBlock:
            events.append(stream.recv())


def choose(stream: Any, events: list[Any]) -> None:
    while not (events and isinstance(events[-1], StreamStopped)):
        event = select(stream).value
        if isinstance(event, ConsumerCall):
            event.run()
            event.run()  # harmless
            with pytest.raises(TypeError, match="stays in the process"):
                event.to_dict()
        else:
            events.append(event)


class Watcher:
    def __init__(self) -> None:
        self.seen: list[Event] = []

    def on_run_start(self, session: Session) -> None:
        pass

    def on_event(self, session: Session, event: Event) -> None:
        self.seen.append(event)


@pytest.mark.parametrize("how", [iterate, receive, poll, choose])
@pytest.mark.parametrize("observed", [False, True])
def test_it_runs_in_the_thread_that_consumes(how: Any, observed: bool) -> None:
    """However it consumes; observers are told the events, and nothing of the errand."""
    watcher = Watcher()
    events = consumed(how, observers=[watcher] if observed else [])
    assert [event.response for event in events if isinstance(event, ToolCallResponse)] == ["the consumer"]
    assert not any(isinstance(event, ConsumerCall) for event in events)
    if observed:
        assert watcher.seen == events


def test_run_makes_it_in_its_own_thread() -> None:
    session = Session.from_user("go")
    with consuming() as runtime:
        runtime.run(session)
    assert session.messages[2].content == threading.current_thread().name


def test_the_consumer_of_a_nested_stream_is_that_of_the_root() -> None:
    inner = Agent("inner", Scripted([call("where")], say("ok")), tools=[where])

    @tool(read_only=True)
    def delegate(context: ToolContext) -> str:
        """Runs the other agent."""
        session = Session.from_user("go")
        context.run_agent(inner, session)
        return session.messages[2].content

    with consuming([call("delegate")], tools=[delegate]) as runtime:
        session = Session.from_user("go")
        runtime.run(session)
    assert session.messages[2].content == threading.current_thread().name


def test_several_run_one_after_the_other_and_others_beside_them() -> None:
    @tool(read_only=True)
    def elsewhere() -> str:
        """Tells its thread."""
        return threading.current_thread().name

    calls = [call("where", id="1"), call("elsewhere", id="2", index=1), call("where", id="3", index=2)]
    session = Session.from_user("go")
    with consuming(calls, tools=[where, elsewhere]) as runtime:
        runtime.run(session)
    me = threading.current_thread().name
    first, second, third = (message.content for message in session.messages if message.role == "tool")
    assert (first, third) == (me, me)
    assert second.startswith("lockgate-helper")


def test_a_failure_is_its_result() -> None:
    @tool(on="consumer", read_only=True)
    def fail(context: ToolContext) -> str:
        """Fails."""
        raise LookupError("broken")

    with consuming([call("fail")], tools=[fail]) as runtime:
        session = Session.from_user("go")
        runtime.run(session)
    assert (session.messages[2].content, session.messages[2].is_error) == ("LookupError: broken", True)


def test_a_coroutine_that_a_plain_function_returns_is_a_failure_too() -> None:
    """The consumer's thread has no loop to run it on; on a helper it is awaited."""

    async def later() -> str:
        return "later"

    for on, result in (("helper", "later"), ("consumer", "TypeError: lazy returned a coroutine")):
        session = Session.from_user("go")
        lazy = Tool("lazy", lambda: later(), on=on, read_only=True)  # type: ignore[arg-type]
        with consuming([call("lazy")], tools=[lazy]) as runtime:
            runtime.run(session)
        assert session.messages[2].content.startswith(result)


@pytest.mark.parametrize("how", [iterate, receive])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_ctrl_c_in_it_is_the_consumer_s_and_ends_the_stream(how: Any, kind: type[BaseException]) -> None:
    """Law 8."""

    @tool(on="consumer", read_only=True)
    def interrupt() -> None:
        """Is interrupted."""
        raise kind

    session = Session.from_user("go")
    with consuming([call("interrupt")], tools=[interrupt]) as runtime:
        stream = runtime.run_stream(session)
        with pytest.raises(kind):
            how(stream, [])
        assert list(stream)[-1].reason == "canceled"  # type: ignore[attr-defined]
    assert len([message for message in session.messages if message.role == "tool"]) == 1


def test_a_consumer_that_leaves_never_makes_it() -> None:
    """Nor does one that drains a cancelled stream; the call has a result all the same (law 16)."""
    made: list[int] = []
    ready = threading.Event()

    @tool(on="consumer", read_only=True)
    def touch() -> None:
        """Leaves a trace."""
        made.append(1)

    for leave in (lambda stream: stream.close(), lambda stream: (stream.cancel(), list(stream))):
        session = Session.from_user("go")
        with consuming([call("touch")], tools=[touch]) as runtime, runtime.run_stream(session) as stream:
            while len(stream) < 5 and not ready.wait(0.001):  # the call is among the events
                pass
            leave(stream)
        assert [message.role for message in session.messages] == ["user", "assistant", "tool"]
    assert made == []


def test_cancelled_while_it_runs() -> None:
    """Law 18: the stream ends without it, and the consumer gets the last event when it is back."""
    stream: Any = None

    @tool(on="consumer", read_only=True)
    def cancel(context: ToolContext) -> str:
        """Cancels its own stream."""
        stream.cancel()
        assert closes(stream._core.finished)
        return "late"

    session = Session.from_user("go")
    with consuming([call("cancel")], tools=[cancel]) as runtime:
        stream = runtime.run_stream(session)
        assert list(stream)[-1].reason == "canceled"
    assert session.messages[2].content.startswith("interrupted")


def test_it_cannot_read_from_its_own_stream_nor_ask_through_it() -> None:
    """Each would wait for the other for ever."""
    stream: Any = None
    said: list[str] = []

    @tool(on="consumer", read_only=True)
    def read(context: ToolContext) -> str:
        """Tries everything that would wait for its own thread."""
        agent = Agent("inner", Scripted(say("x")))
        for attempt in (
            lambda: next(stream), lambda: stream.recv(timeout=5), lambda: stream.try_recv(), lambda: stream.result(),
            lambda: context.elicit("?"), lambda: context.run_agent(agent, "go"),
        ):  # fmt: skip
            with pytest.raises(RuntimeError) as caught:
                attempt()
            said.append(str(caught.value))
        context.progress("goes")
        return "read"

    with consuming([call("read")], tools=[read]) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        events = list(stream)
    assert [event.response for event in events if isinstance(event, ToolCallResponse)] == ["read"]
    assert [event.output for event in events if isinstance(event, ToolCallOutput)] == ["goes"]
    assert len(said) == 6
    assert events[-1].reason == "normal"


def test_its_time_begins_when_it_does() -> None:
    """A consumer that is busy with something else does not use it up; a tool that takes too long is given up."""

    @tool(on="consumer", read_only=True, timeout=0.4)
    def slow(seconds: float) -> str:
        """Takes its time."""
        threading.Event().wait(seconds)
        return "in time"

    calls = [[call("slow", '{"seconds": 0}')], [call("slow", '{"seconds": 1}', id="2")]]
    session = Session.from_user("go")
    with consuming(*calls, tools=[slow]) as runtime, runtime.run_stream(session) as stream:
        for event in stream:
            if isinstance(event, AgentChoice):
                break
            if isinstance(event, ToolCallStarted):
                threading.Event().wait(0.5)
        list(stream)
    first, second = (message.content for message in session.messages if message.role == "tool")
    assert first == "in time"
    assert "did not end within 0.4 s" in second


def test_what_cannot_run_on_the_consumer() -> None:
    async def work() -> None: ...

    with pytest.raises(TypeError, match="coroutine function"):
        tool(on="consumer")(work)
    with pytest.raises(ValueError, match="on must be 'helper' or 'consumer', not 'moon'"):
        tool(on="moon", name="f")(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="a number of seconds above 0"):
        tool(timeout=0, name="f")(lambda: None)


def test_a_result_is_in_the_session_before_its_event_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who saves the session on the event has the result."""
    session = Session.from_user("go")
    emit, had = StreamCore.emit, []

    def watched(core: StreamCore, event: Event) -> None:
        if isinstance(event, ToolCallResponse):
            had.append(session.messages[-1].tool_call_id == event.tool_call.id)
        emit(core, event)

    monkeypatch.setattr(StreamCore, "emit", watched)
    with approving(Agent("a", Scripted([call("f", "{}")], say("ok")), tools=[tool(lambda: "x", name="f")])) as runtime:
        runtime.run_stream(session).result()
    assert had == [True]


def test_a_question_that_a_tool_leaves_behind_is_withdrawn_with_the_call() -> None:
    """Nobody waits for its answer any more, and the stream goes on."""
    sent = threading.Event()

    @tool(read_only=True)
    def leaves(context: ToolContext) -> str:
        """Asks on a thread of its own, and does not wait."""
        asks = threading.Thread(target=lambda: answers.append(context.elicit("?").action))
        threads.append(asks)
        asks.start()
        assert sent.wait(5)
        return "left"

    answers: list[str] = []
    threads: list[threading.Thread] = []
    model = Scripted([call("leaves", "{}")], say("ok"))
    with Runtime(Agent("a", model, tools=[leaves])) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                asked = event
                sent.set()
            elif isinstance(event, ToolCallResponse):
                assert not stream.pending
                with pytest.raises(NotPending):
                    stream.respond(asked, "accept")
                threads[0].join(5)
                assert answers == ["cancel"]
