"""Questions that outlive their process: a run is parked while it asks, is answered from anywhere, and goes on where it
was.
"""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from runtime import (
    Agent,
    EventStream,
    HookInput,
    HookResult,
    InvalidAnswer,
    NotParkable,
    NotPending,
    Permissions,
    RunError,
    Runtime,
    Session,
    StillWaiting,
    Team,
    ToolContext,
    tool,
)
from runtime.events import (
    ElicitationRequest,
    Event,
    MaxIterationsReached,
    StreamStopped,
    ToolCallConfirmation,
)
from runtime.human._bridge import ElicitationBridge
from runtime.session._journal import Request
from runtime.stores import MemoryStore
from runtime.stream._core import StreamCore
from runtime.stream._parking import Parking
from support.scripted import Stall
from support.stores import Planned, calls, done
from support.waiting import eventually

LONG = 10.0  # seconds after which something will never happen
HOW_MANY = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}


class Till:
    """Tools that count what they do."""

    def __init__(self) -> None:
        self.done: collections.Counter[str] = collections.Counter()

    def tools(self) -> list[Any]:
        @tool
        def pay(to: str) -> str:
            """Pays."""
            self.done[f"pay {to}"] += 1
            return f"paid {to}"

        @tool(resumable=True, read_only=True)
        def order(context: ToolContext) -> str:
            """Asks how many, reserves once, asks what colour, and orders."""
            n = context.elicit("How many?", HOW_MANY).content["n"]
            context.once("reserved", lambda: self.done.update(["reserved"]))
            colour = context.elicit("Which colour?", {"type": "object", "properties": {"c": {"type": "string"}}})
            self.done["ordered"] += 1
            return f"{n} in {colour.content.get('c')}"

        @tool(read_only=True)
        def ask(context: ToolContext) -> str:
            """Asks, and cannot be called again."""
            return context.elicit("Sure?").action

        return [pay, order, ask]


def park_when(stream: EventStream, asked: int) -> list[Event]:
    """Read the stream to its end, and park it when so many questions wait."""
    events: list[Event] = []
    for event in stream:
        events.append(event)
        if isinstance(event, (ToolCallConfirmation, ElicitationRequest, MaxIterationsReached)):
            asked -= 1
            if not asked:
                stream.park()
    return events


def test_a_parked_run_ends_as_waiting_and_settles_nothing() -> None:
    """The last event says so, the session keeps its open calls, and its requests are listed by everybody."""
    store, till = MemoryStore(), Till()
    two = calls(("c1", "pay", {"to": "ann"}), ("c2", "pay", {"to": "bob"}))
    session = Session.from_user("go")
    with Runtime(Agent("a", Planned(two, done()), tools=till.tools()), store=store) as runtime:
        with runtime.run_stream(session) as stream:
            events = park_when(stream, 2)
            assert stream.reason == "waiting"
            with pytest.raises(RunError, match="waits for its user"):
                stream.result()
        assert isinstance(events[-1], StreamStopped)
        asked = [event.confirmation_id for event in events if isinstance(event, ToolCallConfirmation)]
        assert [request.id for request in runtime.waiting()] == asked
        assert {request.id for request in session.waiting} == set(asked)
        assert [message.role for message in session.messages] == ["user", "assistant"]
        assert store.sessions()[0].status == "waiting"
        assert not store.ready()
    assert not till.done


def test_answers_of_a_parked_run_are_used_once_each_when_it_goes_on() -> None:
    """In another runtime, in any order; what is still open is asked again under the same id."""
    store, till = MemoryStore(), Till()

    def agent() -> Agent:
        three = calls(("c1", "pay", {"to": "ann"}), ("c2", "pay", {"to": "bob"}), ("c3", "pay", {"to": "cat"}))
        return Agent("a", Planned(three, done("all done")), tools=till.tools())

    session = Session.from_user("go")
    with Runtime(agent(), store=store) as runtime, runtime.run_stream(session) as stream:
        first, second, third = (e for e in park_when(stream, 3) if isinstance(e, ToolCallConfirmation))
    with Runtime(agent(), store=store) as runtime:
        runtime.reject(second.confirmation_id, "too dear")
        runtime.approve(first.confirmation_id)
        with pytest.raises(NotPending):
            runtime.approve(first.confirmation_id)
        assert [request.id for request in runtime.waiting()] == [third.confirmation_id]
        with pytest.raises(StillWaiting, match=third.confirmation_id):
            runtime.run(store.load(session.id))
        loaded = store.load(session.id)
        with runtime.run_stream(loaded) as stream:
            for event in stream:
                if isinstance(event, ToolCallConfirmation):
                    assert event.confirmation_id == third.confirmation_id
                    assert event.arguments == {"to": "cat"}
                    stream.approve(event)
            assert stream.result().text == "all done"
    assert till.done == {"pay ann": 1, "pay cat": 1}
    assert [message.content for message in loaded.messages if message.role == "tool"] == [
        "paid ann",
        "this call was rejected: too dear",
        "paid cat",
    ]


def test_who_answers_all_makes_a_session_ready() -> None:
    """`resume_ready` goes on with it, once, whoever asks first."""
    store, till = MemoryStore(), Till()
    agent = Agent("a", Planned(calls(("c1", "pay", {"to": "ann"})), done()), tools=till.tools())
    with Runtime(agent, store=store) as runtime:
        with runtime.run_stream(Session.from_user("go")) as stream:
            park_when(stream, 1)
        assert list(runtime.resume_ready()) == []
        runtime.approve()
        assert [stream.result().text for stream in runtime.resume_ready()] == ["done"]
        assert list(runtime.resume_ready()) == []
    assert till.done == {"pay ann": 1}


def test_a_resumable_tool_is_called_again_and_gets_its_answers() -> None:
    """Law 22: matched by their order and their text; a step is not made twice."""
    store, till = MemoryStore(), Till()

    def agent() -> Agent:
        return Agent("a", Planned(calls(("c1", "order", {})), done()), tools=till.tools())

    session = Session.from_user("go")
    with Runtime(agent(), store=store) as runtime, runtime.run_stream(session) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest) and event.message == "How many?":
                stream.respond(event, "accept", {"n": 2})
            elif isinstance(event, ElicitationRequest):
                colour = event
                stream.park()
        assert stream.reason == "waiting"
    assert till.done == {"reserved": 1}
    with Runtime(agent(), store=store) as runtime:
        with pytest.raises(InvalidAnswer):
            runtime.resume_elicitation("accept", {"c": 5}, colour.elicitation_id)
        runtime.resume_elicitation("accept", {"c": "red"}, colour.elicitation_id)
        loaded = store.load(session.id)
        result = runtime.run(loaded)
    assert result.reason == "normal"
    assert [message.content for message in loaded.messages if message.role == "tool"] == ["2 in red"]
    assert till.done == {"reserved": 1, "ordered": 1}


def test_what_is_under_way_is_named_and_may_be_left_to_itself() -> None:
    """`NotParkable` says which tool; with ``force`` its call is in doubt afterwards, and is not made again."""
    store, stall, done_twice = MemoryStore(), Stall(), collections.Counter[str]()

    @tool
    def slow() -> str:
        """Takes its time."""
        done_twice["slow"] += 1
        stall()
        return "slow"

    def agent() -> Agent:
        return Agent("a", Planned(calls(("c1", "slow", {}), ("c2", "slow", {})), done()), tools=[slow])

    session = Session.from_user("go")
    with Runtime(agent(), store=store, grace=0.1) as runtime, runtime.run_stream(session) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation) and event.tool_call.id == "c1":
                stream.approve(event)
                assert stall.reached.wait(LONG)
                with pytest.raises(NotParkable, match="tool slow"):
                    stream.park()
                stream.park(force=True)
                stall.go_on.set()
        assert stream.reason == "waiting"
    with Runtime(agent(), store=store) as runtime:
        loaded = store.load(session.id)
        runtime.run(loaded, on_request=lambda event: True)
    first, second = (message.content for message in loaded.messages if message.role == "tool")
    assert "it is not known whether it took effect" in first
    assert second == "slow"
    assert done_twice["slow"] == 2


def test_a_question_of_a_tool_that_cannot_be_called_again_keeps_the_run() -> None:
    """Its thread waits for the answer in the middle of its function."""
    agent = Agent("a", Planned(calls(("c1", "ask", {})), done()), tools=Till().tools())
    with Runtime(agent, store=MemoryStore()) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                with pytest.raises(NotParkable, match="tool ask"):
                    stream.park()
                stream.respond(event, "accept")
        assert stream.result().text == "done"


def test_what_keeps_a_run_from_being_parked_is_named_in_a_sentence() -> None:
    """One thing or several."""
    outer = Parking("a", None, None)
    with pytest.raises(NotParkable) as found:
        outer.park()
    assert str(found.value) == (
        "the run cannot be parked yet: a's model has not ended; wait until it has, or leave it to itself with"
        " force=True"
    )
    inner = Parking("b", outer, None)
    inner.busy = ("tool read", "hook log")
    with pytest.raises(NotParkable) as found:
        inner.park()
    assert str(found.value) == (
        "the run cannot be parked yet: a's model, b's tool read and b's hook log have not ended; wait until they have,"
        " or leave them to themselves with force=True"
    )


def test_a_runtime_without_a_store_parks_nothing() -> None:
    """It says what to do."""
    agent = Agent("a", Planned(done()))
    with Runtime(agent) as runtime:
        with runtime.run_stream(Session.from_user("go")) as stream, pytest.raises(NotParkable, match="store="):
            stream.park()
        with pytest.raises(RuntimeError, match="store="):
            runtime.waiting()
    with pytest.raises(ValueError, match="needs a store"):
        Runtime(agent, park_after=1)


def test_a_run_that_only_asks_is_parked_after_a_while() -> None:
    """``park_after``, for approvals, for questions and for more turns."""
    till = Till()
    agents = [
        Agent("a", Planned(calls(("c1", "pay", {"to": "ann"})), done()), tools=till.tools()),
        Agent("a", Planned(calls(("c1", "order", {})), done()), tools=till.tools()),
        Agent("a", Planned(calls(("c1", "order", {})), done()), tools=till.tools(), max_iterations=1),
    ]
    for agent in agents:
        with Runtime(agent, store=MemoryStore(), park_after=0.02) as runtime:
            with runtime.run_stream(Session.from_user("go")) as stream:
                for _ in stream:
                    pass
            assert stream.reason == "waiting"
            assert len(runtime.waiting()) == 1


def test_more_turns_are_given_to_a_parked_run() -> None:
    """Under the same id, or not at all."""
    for iterations, reason in ((5, "normal"), (0, "max_iterations")):
        store, till = MemoryStore(), Till()
        agent = Agent(
            "a",
            Planned(calls(("c1", "pay", {"to": "ann"})), calls(("c2", "pay", {"to": "bob"})), done()),
            tools=till.tools(),
            max_iterations=1,
        )
        with Runtime(agent, store=store, permissions=Permissions(allow=["pay"])) as runtime:
            session = Session.from_user("go")
            with runtime.run_stream(session) as stream:
                park_when(stream, 1)
            assert stream.reason == "waiting"
            (request,) = runtime.waiting()
            action = "accept" if iterations else "decline"
            runtime.resume_elicitation(action, {"iterations": iterations} if iterations else None, request.id)
            with runtime.run_stream(store.load(session.id)) as stream:
                for _ in stream:
                    pass
            assert stream.reason == reason
        assert till.done["pay ann"] == 1


def test_agents_three_deep_are_parked_and_go_on_together() -> None:
    """The sessions of the inner ones are in the store; only what was asked is asked again."""
    store, till = MemoryStore(), Till()

    def team() -> Team:
        pay = till.tools()[0]
        inner = Agent("inner", Planned(calls(("i1", "pay", {"to": "ann"})), done("inner done")), tools=[pay])
        middle = Agent(
            "middle",
            Planned(calls(("m1", "transfer_task", {"agent": "inner", "task": "x"})), done("middle done")),
            sub_agents=["inner"],
        )
        outer = Agent(
            "outer",
            Planned(
                calls(("o1", "transfer_task", {"agent": "middle", "task": "x"}), ("o2", "pay", {"to": "bob"})),
                done("outer done"),
            ),
            tools=[pay],
            sub_agents=["middle"],
        )
        return Team([outer, middle, inner])

    session = Session.from_user("go")
    with Runtime(team(), store=store) as runtime, runtime.run_stream(session) as stream:
        park_when(stream, 2)
        assert stream.reason == "waiting"
    assert len(store.pending(session.id)) == 2
    with Runtime(team(), store=store) as runtime:
        for request in runtime.waiting():
            runtime.approve(request.id)
        assert store.ready() == [session.id]
        (result,) = [stream.result() for stream in runtime.resume_ready()]
    assert result.text == "outer done"
    assert till.done == {"pay ann": 1, "pay bob": 1}
    loaded = store.load(session.id)
    assert [message.content for message in loaded.messages if message.role == "tool"] == ["middle done", "paid bob"]


def test_a_deny_that_was_added_meanwhile_wins_over_an_approval() -> None:
    """Permissions are asked again; hooks that could have changed what the user saw are not."""
    store, till = MemoryStore(), Till()
    fired: list[str] = []

    def look(given: HookInput) -> HookResult:
        fired.append(given.hook_event_name)
        return HookResult()

    def agent() -> Agent:
        return Agent(
            "a",
            Planned(calls(("c1", "pay", {"to": "ann"}), ("c2", "pay", {"to": "bob"})), done()),
            tools=till.tools(),
            hooks={"pre_tool_use": [look], "permission_request": [look]},
        )

    session = Session.from_user("go")
    with Runtime(agent(), store=store) as runtime, runtime.run_stream(session) as stream:
        park_when(stream, 2)
    assert fired.count("pre_tool_use") == 2
    fired.clear()
    with Runtime(agent(), store=store, permissions=Permissions(deny=["pay:to=bob"])) as runtime:
        for request in runtime.waiting():
            runtime.approve(request.id)
        loaded = store.load(session.id)
        runtime.run(loaded)
    assert till.done == {"pay ann": 1}
    assert "denied by the permission" in [m.content for m in loaded.messages if m.role == "tool"][1]
    assert fired == []


def test_the_first_of_two_answers_counts_also_across_runtimes() -> None:
    """Law 6, for runs that are live somewhere else: whoever is second is told so."""
    for _ in range(20):
        store, till, won = MemoryStore(), Till(), dict[str, bool]()
        agent = Agent("a", Planned(calls(("c1", "pay", {"to": "ann"})), done()), tools=till.tools())
        here, there, ready = Runtime(agent, store=store), Runtime(agent, store=store), threading.Barrier(2)

        def give(name: str, act: Callable[[], None], ready: threading.Barrier, won: dict[str, bool]) -> None:
            ready.wait()
            try:
                act()
                won[name] = True
            except NotPending:
                won[name] = False

        with here, there, here.run_stream(Session.from_user("go")) as stream:
            for event in stream:
                if isinstance(event, ToolCallConfirmation):
                    approve = functools.partial(stream.approve, event)
                    reject = functools.partial(there.reject, event.confirmation_id)
                    both = [
                        threading.Thread(target=give, args=("approve", approve, ready, won)),
                        threading.Thread(target=give, args=("reject", reject, ready, won)),
                    ]
                    for thread in both:
                        thread.start()
                    for thread in both:
                        thread.join(LONG)
        assert sorted(won.values()) == [False, True]
        assert (till.done == {"pay ann": 1}) is won["approve"]


def test_a_run_hears_of_an_answer_that_another_process_gives() -> None:
    """Through the store, without being asked to look."""
    store, till = MemoryStore(), Till()
    agent = Agent("a", Planned(calls(("c1", "pay", {"to": "ann"})), done()), tools=till.tools())
    here, there = Runtime(agent, store=store), Runtime(agent, store=store)
    with here, there, here.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                there.approve(event.confirmation_id)
        assert stream.result().text == "done"
    assert till.done == {"pay ann": 1}


def test_an_answer_that_the_run_hears_of_through_the_store_first_is_no_second_one() -> None:
    """The store tells of each answer, also of one that is given here, whose giver may be the last to hear."""
    till = Till()

    class Telling(MemoryStore):
        """Who answers hears of it after the listener of the runtime has."""

        def answer(self, request_id: str, answer: Mapping[str, Any], *, by: str = "") -> Request:
            request = super().answer(request_id, answer, by=by)
            assert eventually(lambda: not runtime._shared.confirmations.pending())
            return request

    agent = Agent("a", Planned(calls(("c1", "pay", {"to": "ann"})), done()), tools=till.tools())
    with Runtime(agent, store=Telling()) as runtime:
        runtime.run(Session.from_user("go"), on_request=lambda event: True)
        with runtime.run_stream(Session.from_user("go")) as stream:
            for event in stream:
                if isinstance(event, ToolCallConfirmation):
                    stream.approve(event)
            assert stream.reason == "normal"
    assert till.done == {"pay ann": 2}


def test_a_run_that_cannot_be_started_leaves_the_questions_where_they_are(tmp_path: Path) -> None:
    """Neither a record that cannot be written, nor an agent that is not there any more, takes them back."""
    store, till = MemoryStore(), Till()

    def team(name: str) -> Team:
        first = Agent("first", Planned(calls(("c1", "handoff", {"agent": name}))), handoffs=[name])
        second = Agent(name, Planned([], calls(("c2", "pay", {"to": "ann"})), done()), tools=till.tools())
        return Team([first, second])

    session = Session.from_user("go")
    with Runtime(team("second"), store=store) as runtime:
        with runtime.run_stream(session) as stream:
            park_when(stream, 1)
            assert stream.reason == "waiting"
        with pytest.raises(OSError, match="nowhere"):
            runtime.run_stream(store.load(session.id), record=tmp_path / "nowhere" / "run.jsonl")
    gone = r"agent 'second', which is not in this runtime \(it has first, other\)"
    with Runtime(team("other"), store=store) as runtime, pytest.raises(LookupError, match=gone):
        runtime.run_stream(store.load(session.id))
    assert store.sessions()[0].status == "waiting"
    with Runtime(team("second"), store=store) as runtime:
        runtime.approve()
        assert runtime.run(store.load(session.id)).text == "done"
    assert till.done == {"pay ann": 1}


def test_a_question_that_timed_out_while_it_was_parked_is_declined() -> None:
    """``answer_timeout`` holds all the same."""
    store, till = MemoryStore(), Till()
    agent = Agent("a", Planned(calls(("c1", "pay", {"to": "ann"})), done()), tools=till.tools())
    with Runtime(agent, store=store, answer_timeout=1.0) as runtime:
        session = Session.from_user("go")
        with runtime.run_stream(session) as stream:
            park_when(stream, 1)
            assert stream.reason == "waiting"
        eventually(lambda: not runtime.waiting())
        with pytest.raises(NotPending):
            runtime.approve(stream._core.requested.popitem()[0])
        loaded = store.load(session.id)
        runtime.run(loaded)
    assert not till.done
    assert "nobody answered in time" in loaded.messages[2].content


@pytest.mark.parametrize("settings", [{}, {"park_after": 0.02}])
@pytest.mark.parametrize("name", ["pay", "order", "more"])
def test_what_is_parked_waits_without_end(settings: dict[str, Any], name: str) -> None:
    """Approvals, questions and requests for more turns: nobody has said how long they may wait."""
    called, limit = ("pay", 1) if name == "more" else (name, 20)
    model = Planned(calls(("c1", called, {"to": "ann"} if called == "pay" else {})), done())
    agent = Agent("a", model, tools=Till().tools(), max_iterations=limit)
    allowed = Permissions(allow=["pay"] if name == "more" else [])
    store = MemoryStore()
    with Runtime(agent, store=store, permissions=allowed, **settings) as runtime:
        session = Session.from_user("go")
        with runtime.run_stream(session) as stream:
            park_when(stream, 0 if settings else 1)
            assert stream.reason == "waiting"
        [request] = runtime.waiting()
        assert request.expires_at is None
        assert session.waiting == (request,)
        with runtime.run_stream(store.load(session.id)) as stream:
            park_when(stream, 0 if settings else 1)
            assert stream.reason == "waiting"
        assert [each.expires_at for each in runtime.waiting()] == [None]


@pytest.mark.parametrize("name", ["pay", "order", "more"])
def test_a_run_can_be_parked_as_soon_as_its_question_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer has it before the thread that has sent it goes on. What was under way before is not any more."""
    shown = ToolCallConfirmation, ElicitationRequest, MaxIterationsReached

    def parking(send: Callable[..., Any]) -> Callable[..., Any]:
        def sending(where: Any, event: Event, **more: Any) -> Any:
            sent = send(where, event, **more)
            if isinstance(event, shown):
                stream.park()
            return sent

        return sending

    monkeypatch.setattr(ElicitationBridge, "send", parking(ElicitationBridge.send))
    monkeypatch.setattr(StreamCore, "emit", parking(StreamCore.emit))
    called, limit = ("pay", 1) if name == "more" else (name, 20)
    model = Planned(calls(("c1", called, {"to": "ann"} if called == "pay" else {})), done())
    hooks: Any = {"pre_tool_use": [lambda given: None]}
    agent = Agent("a", model, tools=Till().tools(), max_iterations=limit, hooks=hooks)
    allowed = Permissions(allow=["pay"] if name == "more" else [])
    with Runtime(agent, store=MemoryStore(), permissions=allowed) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        list(stream)
        assert stream.reason == "waiting", stream._core.ending.message


@pytest.mark.parametrize("settings", [{}, {"park_after": 0.02}])
def test_a_time_that_somebody_has_set_goes_on_while_the_run_is_parked(settings: dict[str, Any]) -> None:
    """That of the runtime, also if it is the default, and that of the tool which asks."""

    @tool(resumable=True, read_only=True)
    def hurried(context: ToolContext) -> str:
        """Asks for a minute."""
        return context.elicit("Now?", timeout=60.0).action

    for called, more in (("pay", {"answer_timeout": 300.0}), ("hurried", {}), ("hurried", {"answer_timeout": None})):
        model = Planned(calls(("c1", called, {"to": "ann"} if called == "pay" else {})), done())
        agent = Agent("a", model, tools=[*Till().tools(), hurried])
        with Runtime(agent, store=MemoryStore(), **settings, **more) as runtime:
            with runtime.run_stream(Session.from_user("go")) as stream:
                park_when(stream, 0 if settings else 1)
                assert stream.reason == "waiting"
            [request] = runtime.waiting()
            assert request.expires_at is not None
            left = (request.expires_at - datetime.now(UTC)).total_seconds()
            assert 0 < left <= (300 if called == "pay" else 60)


def test_a_time_that_somebody_has_set_is_kept_by_a_runtime_that_has_set_none() -> None:
    """It goes on with the run, and parks it again."""
    store = MemoryStore()
    agent = Agent("a", Planned(calls(("c1", "pay", {"to": "ann"})), done()), tools=Till().tools())
    session = Session.from_user("go")
    with Runtime(agent, store=store, answer_timeout=600) as runtime, runtime.run_stream(session) as stream:
        park_when(stream, 1)
    [before] = store.pending()
    with Runtime(agent, store=store) as runtime, runtime.run_stream(store.load(session.id)) as stream:
        park_when(stream, 1)
    assert [each.expires_at for each in store.pending()] == [before.expires_at]


def test_what_is_said_to_a_run_that_is_parked_then_is_heard_when_it_goes_on() -> None:
    """Steering is in the store when `steer` returns."""
    store, till = MemoryStore(), Till()
    model = Planned(calls(("c1", "pay", {"to": "ann"})), done())
    agent = Agent("a", model, tools=till.tools())
    session = Session.from_user("go")
    with Runtime(agent, store=store) as runtime:
        with runtime.run_stream(session) as stream:
            for event in stream:
                if isinstance(event, ToolCallConfirmation):
                    runtime.steer(session, "hurry")
                    stream.park()
        runtime.approve()
        loaded = store.load(session.id)
        runtime.run(loaded)
    assert [message.content for message in loaded.messages if message.role == "user"] == ["go", "hurry"]
    assert model.seen[-1][-1].content == "hurry"
