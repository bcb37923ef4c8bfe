"""Limits: turns, budgets, repeated calls. Each ends the stream with a reason of its own, and the session says so."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from runtime import (
    Agent,
    Budget,
    InvalidAnswer,
    NotPending,
    Price,
    RunError,
    Session,
    Tool,
    ToolContext,
    UsageDelta,
    tool,
)
from runtime.events import (
    BudgetExceeded,
    Error,
    Event,
    MaxIterationsReached,
    StreamStopped,
    SubSessionCompleted,
    ToolCallResponse,
    Warning,
)
from support.scripted import AsyncScripted, Scripted, Stall, approving, call, say


def again(n: int) -> Scripted:
    """A model that calls ``count`` ``n`` times, then says so."""
    return Scripted(*[[call("count", id=f"c{i}")] for i in range(n)], say("done"))


def counting() -> Tool:
    numbers = iter(range(1000))
    return Tool("count", lambda: str(next(numbers)))


def last(session: Session) -> tuple[str, str]:
    message = session.messages[-1]
    return message.role, message.content


# -- turns -------------------------------------------------------------------------------------------------------------


def test_it_asks_for_more_turns_and_goes_on() -> None:
    """As often as it is let; by event, by id, and by `respond`."""
    answers: list[Any] = []
    with (
        approving(Agent("a", again(7), tools=[counting()], max_iterations=2)) as runtime,
        runtime.run_stream(Session.from_user("hi")) as stream,
    ):
        for event in stream:
            if isinstance(event, MaxIterationsReached):
                answers.append(event.max_iterations)
                if len(answers) == 1:
                    stream.extend(event, 3)
                elif len(answers) == 2:
                    stream.extend(event.request_id, 1)
                else:
                    stream.respond(event.request_id, "accept", {"iterations": 10})
        assert stream.result().text == "done"
    assert answers == [2, 5, 6]


@pytest.mark.parametrize("how", ["extend", "respond", "deadline", "not interactive"])
def test_it_ends_where_nobody_gives_it_more(how: str) -> None:
    """Said no, nobody there in time, nobody to be asked. The next run's model is told."""
    session = Session.from_user("hi")
    timeout = 0.05 if how == "deadline" else 30
    with (
        approving(Agent("a", again(5), tools=[counting()], max_iterations=2), answer_timeout=timeout) as runtime,
        runtime.run_stream(session, interactive=how != "not interactive") as stream,
    ):
        reached = []
        for event in stream:
            if isinstance(event, MaxIterationsReached):
                reached.append(event)
                if how == "extend":
                    stream.extend(event, 0)
                elif how == "respond":
                    stream.respond(event.request_id, "decline")
        with pytest.raises(RunError, match="used up its turns") as raised:
            stream.result()
    assert raised.value.code == raised.value.reason == "max_iterations"
    assert len(reached) == 1
    assert bool(reached[0].request_id) == (how != "not interactive")
    assert last(session) == ("assistant", "Stopped: the agent has used up its turns (2).")


def test_run_passes_the_question_on() -> None:
    """`run(on_request=)` answers with a number of turns; None ends it."""
    with approving(Agent("a", again(3), tools=[counting()], max_iterations=2)) as runtime:
        assert runtime.run(Session.from_user("hi"), on_request=lambda request: 5).text == "done"
    with (
        approving(Agent("a", again(3), tools=[counting()], max_iterations=2)) as runtime,
        pytest.raises(RunError, match="max_iterations"),
    ):
        runtime.run(Session.from_user("hi"), on_request=lambda request: None)


def test_bad_answers_are_refused() -> None:
    """They are an error for who answers; the question waits on, until it is answered once."""
    with (
        approving(Agent("a", again(1), tools=[counting()], max_iterations=1)) as runtime,
        runtime.run_stream(Session.from_user("hi")) as stream,
    ):
        for event in stream:
            if isinstance(event, MaxIterationsReached):
                with pytest.raises(InvalidAnswer, match="turns, 0 or more"):
                    stream.extend(event, -1)
                with pytest.raises(InvalidAnswer, match="iterations"):
                    stream.respond(event.request_id, "accept", {"iterations": "many"})
                stream.extend(event, 1)
                with pytest.raises(NotPending):
                    stream.extend(event, 1)
        assert stream.reason == "normal"


def test_a_nested_agent_asks_the_same_consumer() -> None:
    """Law 6: its question reaches the stream at the top."""
    child = Agent("child", again(2), tools=[counting()], max_iterations=1)

    def delegate(context: ToolContext) -> str:
        return context.run_agent(child, "go").text

    model = Scripted([call("delegate")], say("outer"))
    with (
        approving(Agent("a", model, tools=[Tool("delegate", delegate)])) as runtime,
        runtime.run_stream(Session.from_user("hi")) as stream,
    ):
        for event in stream:
            if isinstance(event, MaxIterationsReached):
                assert event.agent_name == "child"
                stream.extend(event, 5)
            if isinstance(event, ToolCallResponse) and event.agent_name == "a":
                assert event.response == "done"
        assert stream.reason == "normal"


# -- budgets -----------------------------------------------------------------------------------------------------------


def spending(*usage: UsageDelta) -> Scripted:
    return Scripted(*[[call("count", id=f"c{i}"), each] for i, each in enumerate(usage)], say("done"))


@pytest.mark.parametrize("where", ["agent", "run_stream", "run"])
@pytest.mark.parametrize(
    ("budget", "kind", "used"),
    [(Budget(tokens=100), "tokens", 120), (Budget(cost=0.001), "cost", 0.0012)],
)
def test_tokens_and_dollars(where: str, budget: Budget, kind: str, used: float) -> None:
    """The stream ends before the calls that nobody would see the results of."""
    session = Session.from_user("hi")
    made: list[int] = []
    agent = Agent(
        "a",
        spending(UsageDelta(30, 30), UsageDelta(30, 30), UsageDelta(30, 30)),
        tools=[Tool("count", lambda: made.append(1))],
        budget=budget if where == "agent" else None,
    )
    given = None if where == "agent" else budget
    with approving(agent, prices={"scripted": Price(10, 10)}) as runtime:
        if where == "run":
            with pytest.raises(RunError) as raised:
                runtime.run(session, budget=given)
        else:
            with runtime.run_stream(session, budget=given) as stream:
                events = list(stream)
                with pytest.raises(RunError) as raised:
                    stream.result()
            [told] = [event for event in events if isinstance(event, BudgetExceeded)]
            assert (told.kind, told.used) == (kind, pytest.approx(used))
            assert not [event for event in events if isinstance(event, Error)]
    assert raised.value.code == raised.value.reason == "budget_exceeded"
    assert len(made) == 1
    assert last(session)[1].startswith("Stopped: the budget of ")


def test_the_last_answer_is_not_taken_away() -> None:
    """A run that has ended by itself has not failed, though it used more than it may."""
    with approving(Agent("a", Scripted([*say("done"), UsageDelta(500, 500)]), budget=Budget(tokens=10))) as runtime:
        assert runtime.run(Session.from_user("hi")).text == "done"


@pytest.mark.parametrize(("budget", "warnings"), [(Budget(tokens=10), 1), (Budget(cost=1), 1), (Budget(seconds=60), 0)])
def test_a_budget_that_cannot_be_kept_is_told_once(budget: Budget, warnings: int) -> None:
    """A model that does not say what it uses could go on for ever."""
    model = Scripted([call("count", id="1")], [call("count", id="2")], say("done"))
    agent = Agent("a", model, tools=[counting()], budget=budget)
    with approving(agent, prices={"scripted": Price(1, 1)}) as runtime:
        events = list(runtime.run_stream(Session.from_user("hi")))
    told = [event.message for event in events if isinstance(event, Warning)]
    assert told == ["scripted does not say what it uses, so the budget of tokens or dollars cannot be kept"] * warnings


def test_a_budget_in_dollars_needs_a_price() -> None:
    """It ends before anything is spent, and says what to do."""
    model = Scripted(say("never"))
    with (
        approving(Agent("a", model, budget=Budget(cost=1))) as runtime,
        pytest.raises(RunError, match="no price for scripted"),
    ):
        runtime.run(Session.from_user("hi"))
    assert not model.seen


def test_a_budget_in_dollars_holds_for_models_of_nested_streams() -> None:
    """One without a price is not asked: the outer run learns why, and goes on."""
    unpriced = Scripted(say("never"))
    unpriced.id = "unpriced"
    child = Agent("child", unpriced)

    def delegate(context: ToolContext) -> str:
        return context.run_agent(child, "go").text

    agent = Agent(
        "a", Scripted([call("delegate")], say("done")), tools=[Tool("delegate", delegate)], budget=Budget(cost=1)
    )
    session = Session.from_user("hi")
    with approving(agent, prices={"scripted": Price(1, 1)}) as runtime:
        assert runtime.run(session).text == "done"
    assert "no price for unpriced" in session.messages[2].content
    assert not unpriced.seen


def test_a_budget_counts_nested_streams() -> None:
    """The nested one ends when it uses up the budget of the one around it, which ends next."""
    child = Agent("child", spending(UsageDelta(80, 0), UsageDelta(80, 0)), tools=[counting()])

    def delegate(context: ToolContext) -> str:
        return context.run_agent(child, "go").text

    model = Scripted([call("delegate"), UsageDelta(10, 10)], say("never"))
    session = Session.from_user("hi")
    with (
        approving(Agent("a", model, tools=[Tool("delegate", delegate)], budget=Budget(tokens=100))) as runtime,
        runtime.run_stream(session) as stream,
    ):
        told = [event.agent_name for event in stream if isinstance(event, BudgetExceeded)]
        assert stream.reason == "budget_exceeded"
    assert told == ["child", "a"]
    assert len(model.seen) == 1


@pytest.mark.parametrize("stands_in", ["model", "async model", "tool", "hook", "question", "more turns"])
def test_time_ends_a_stream_wherever_it_waits(stands_in: str) -> None:
    """With its own reason and events, which the consumer gets."""
    session = Session.from_user("hi")
    with Stall() as stall:

        async def stand() -> None:
            import asyncio

            await asyncio.sleep(30)

        @tool(read_only=True)
        def slow(context: ToolContext) -> str:
            """Stands."""
            if stands_in == "tool":
                stall()
            elif stands_in == "question":
                context.elicit("Really?")
            return ""

        models: dict[str, Any] = {
            "model": Scripted([*say("half"), stall]),
            "async model": AsyncScripted([*say("half"), stand]),
        }
        agent = Agent(
            "a",
            models.get(stands_in) or Scripted([call("slow")], say("x")),
            tools=[slow],
            hooks={"before_llm_call": [stall]} if stands_in == "hook" else None,
            budget=Budget(seconds=0.05),
            max_iterations=1 if stands_in == "more turns" else 50,
        )
        with approving(agent) as runtime, runtime.run_stream(session) as stream:
            events: list[Event] = []
            for event in stream:
                events.append(event)
            stall.go_on.set()
            with pytest.raises(RunError, match=r"0.05 seconds is used up"):
                stream.result()
    assert isinstance(events[-1], StreamStopped)
    assert events[-1].reason == "budget_exceeded"
    assert [event.kind for event in events if isinstance(event, BudgetExceeded)] == ["time"]
    assert last(session) == ("assistant", "Stopped: the budget of 0.05 seconds is used up.")


def test_time_is_up_for_nested_streams_too() -> None:
    """The inner one is cancelled with it."""
    with Stall() as stall:
        child = Agent("child", Scripted([stall]))

        def delegate(context: ToolContext) -> str:
            return context.run_agent(child, "go").text

        agent = Agent(
            "a", Scripted([call("delegate")]), tools=[Tool("delegate", delegate)], budget=Budget(seconds=0.05)
        )
        with approving(agent) as runtime, runtime.run_stream(Session.from_user("hi")) as stream:
            for _ in stream:
                pass
            stall.go_on.set()
            assert stream.reason == "budget_exceeded"


def test_the_time_of_a_nested_stream_is_its_own() -> None:
    """The outer run reads that it was up, and goes on."""
    with Stall() as stall:
        child = Agent("child", Scripted([stall]), budget=Budget(seconds=0.05))

        def delegate(context: ToolContext) -> str:
            try:
                return context.run_agent(child, "go").text
            finally:
                stall.go_on.set()

        session = Session.from_user("hi")
        agent = Agent("a", Scripted([call("delegate")], say("done")), tools=[Tool("delegate", delegate)])
        with approving(agent, grace=0.2) as runtime, runtime.run_stream(session) as stream:
            reasons = [event.reason for event in stream if isinstance(event, SubSessionCompleted)]
            assert stream.result().text == "done"
    assert reasons == ["budget_exceeded"]


def test_a_cancel_goes_before_the_time() -> None:
    """Who cancels a stream with a budget is told that it was cancelled."""
    with (
        Stall() as stall,
        approving(Agent("a", Scripted([stall]), budget=Budget(seconds=30))) as runtime,
        runtime.run_stream(Session.from_user("hi")) as stream,
    ):
        stall.reached.wait(5)
        stream.cancel()
        stall.go_on.set()
        assert [event.reason for event in stream if isinstance(event, StreamStopped)] == ["canceled"]


# -- repeated calls ----------------------------------------------------------------------------------------------------


def calling(*arguments: str, name: str = "look") -> Scripted:
    return Scripted(*[[call(name, each, id=f"c{i}")] for i, each in enumerate(arguments)], say("done"))


def look(x: int = 0, y: int = 0) -> str:
    """Looks."""
    return "nothing"


def run_on(model: Scripted, a_tool: Any, **more: Any) -> tuple[str | None, list[Event], Session]:
    session = Session.from_user("hi")
    with approving(Agent("a", model, tools=[a_tool], **more)) as runtime, runtime.run_stream(session) as stream:
        events = list(stream)
        return stream.reason, events, session


def test_identical_calls_are_a_loop() -> None:
    """The same tool, the same JSON however it is written, the same result, five times in a row."""
    same = ['{"x": 1, "y": 2}', '{"y":2,"x":1}', '{"x":1,"y":2}', '{ "x": 1, "y": 2 }', '{"x": 1, "y": 2}']
    reason, events, session = run_on(calling(*same), look)
    assert reason == "loop_detected"
    [error] = [event for event in events if isinstance(event, Error)]
    assert error.code == "loop_detected"
    assert "look was called 5 times in a row" in error.error
    assert last(session)[1].startswith("Stopped: look was called 5 times")
    assert run_on(calling(*same[:4]), look)[0] == "normal"


def test_what_is_no_loop() -> None:
    """Other arguments, other results, another call between, a tool that polls, a limit that is higher or off."""
    five = ["{}"] * 5
    assert run_on(calling(*[f'{{"x": {n}}}' for n in range(6)]), look)[0] == "normal"
    numbers = iter(range(9))
    assert run_on(calling(*five), Tool("look", lambda: next(numbers)))[0] == "normal"
    assert run_on(calling("{}", "{}", "{}", '{"x": 1}', "{}", "{}"), look)[0] == "normal"
    assert run_on(calling(*five), tool(polling=True)(look))[0] == "normal"
    assert run_on(calling(*five), look, max_repeated_calls=6)[0] == "normal"
    assert run_on(calling(*["{}"] * 9), look, max_repeated_calls=None)[0] == "normal"


def test_what_is_the_same_in_json() -> None:
    """The order of keys makes no difference at any depth; the kind of a value does, and so does the order of a list."""
    taking = Tool("look", lambda **given: "nothing", parameters={"type": "object"})
    deep = ['{"x": [{"a": 1, "b": null}], "y": {}}', '{"y": {}, "x": [{"b": null, "a": 1}]}']
    assert run_on(calling(*[deep[n % 2] for n in range(5)]), taking)[0] == "loop_detected"
    for one, other in ("1", "true"), ("1", "1.0"), ("1", '"1"'), ("null", '"null"'), ("[1, 2]", "[2, 1]"), ("[]", "{}"):
        said = [f'{{"x": {one if n % 2 else other}}}' for n in range(6)]
        assert run_on(calling(*said), taking)[0] == "normal", (one, other)


def test_calls_that_fail_alike_are_a_loop_too() -> None:
    """A tool that is not there, arguments that are broken."""
    assert run_on(calling(*["{}"] * 5, name="nothing"), look)[0] == "loop_detected"
    assert run_on(calling(*["{"] * 5), look)[0] == "loop_detected"


def test_two_tools_in_turn_are_a_loop_where_nothing_changes() -> None:
    """All the calls of a turn are looked at together; twins in one turn count once."""
    for result, reason in ("same", "loop_detected"), ("new", "normal"):
        numbers = iter(range(9))
        turns = [[call("look", id=f"a{i}"), call("b", id=f"b{i}", index=1)] for i in range(5)]
        b = Tool("b", (lambda: "same") if result == "same" else lambda: next(numbers))
        with (
            approving(Agent("a", Scripted(*turns, say("done")), tools=[look, b])) as runtime,
            runtime.run_stream(Session.from_user("hi")) as stream,
        ):
            for _ in stream:
                pass
            assert stream.reason == reason
    twins = [call("look", id=str(i), index=i) for i in range(6)]
    assert run_on(Scripted(twins, say("done")), look)[0] == "normal"


def test_a_polling_call_does_not_hide_a_loop() -> None:
    """It is not seen at all."""
    turns = [[call("look", id=f"a{i}"), call("poll", id=f"b{i}", index=1)] for i in range(5)]
    session = Session.from_user("hi")
    agent = Agent("a", Scripted(*turns), tools=[look, Tool("poll", lambda: "wait", polling=True)])
    with approving(agent) as runtime, pytest.raises(RunError) as raised:
        runtime.run(session)
    assert raised.value.code == "loop_detected"


def test_a_run_after_a_limit_goes_on() -> None:
    """Law 16: the session is whole, and the model is told why it was stopped."""
    model = Scripted(*[[call("look", id=f"c{i}")] for i in range(3)], say("I see"))
    session = Session.from_user("hi")
    with approving(Agent("a", model, tools=[look], max_iterations=3)) as runtime:
        with pytest.raises(RunError):
            runtime.run(session)
        session.add_user("And now?")
        assert runtime.run(session).text == "I see"
    assert [message.role for message in model.seen[-1]][-2:] == ["assistant", "user"]
    assert model.seen[-1][-2].content.startswith("Stopped:")


def test_the_worker_waits_for_more_turns_without_holding_anyone() -> None:
    """Law 18: a cancel ends the wait."""
    reached = threading.Event()
    with (
        approving(Agent("a", again(3), tools=[counting()], max_iterations=1)) as runtime,
        runtime.run_stream(Session.from_user("hi")) as stream,
    ):
        for event in stream:
            if isinstance(event, MaxIterationsReached):
                reached.set()
                stream.cancel()
        assert stream.reason == "canceled"
    assert reached.is_set()
