"""What people say to a run that is under way: steer, follow up, pause, resume. Laws 16, 18. Nothing is lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from runtime import Agent, HookInput, HookResult, NotRunning, RunError, Runtime, Session, ToolContext, tool
from runtime.events import AgentChoice, Paused, StreamStopped, ToolCallResponse, UserMessage
from runtime.human._mailbox import Mail, Mailbox
from runtime.session._session import SessionLog
from support.scripted import Scripted, Stall, call, say


@tool(read_only=True)
def look() -> str:
    """Looks."""
    return "seen"


def said(session: Session) -> list[str]:
    return [f"{message.role}: {message.content}" for message in session.messages]


def test_steering_reaches_the_model_after_the_calls_that_are_under_way() -> None:
    """A user message, behind the results, before the next model call; the consumer sees it."""
    with Stall() as stall:

        @tool(read_only=True)
        def slow() -> str:
            """Takes its time."""
            stall()
            return "done"

        model = Scripted([call("slow")], say("ok"))
        session = Session.from_user("go")
        with Runtime(Agent("a", model, tools=[slow])) as runtime:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(10)
            runtime.steer(session, "hurry")
            runtime.steer(session.id, "please")
            stall.go_on.set()
            events = list(stream)
    assert said(session) == ["user: go", "assistant: ", "tool: done", "user: hurry", "user: please", "assistant: ok"]
    assert [message.content for message in model.seen[1]] == ["go", "", "done", "hurry", "please"]
    kinds = [type(event) for event in events if isinstance(event, (UserMessage, ToolCallResponse, AgentChoice))]
    assert kinds == [UserMessage, ToolCallResponse, UserMessage, UserMessage, AgentChoice]


def test_steering_while_the_model_says_its_last_word() -> None:
    """It is asked once more."""
    with Stall() as stall:
        session = Session.from_user("go")
        with Runtime(Agent("a", Scripted([*say("Bye."), stall], say("Still here.")))) as runtime:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(10)
            runtime.steer(session, "wait")
            stall.go_on.set()
            assert stream.result().text == "Still here."
    assert said(session) == ["user: go", "assistant: Bye.", "user: wait", "assistant: Still here."]


def test_follow_ups_come_one_by_one_when_it_has_nothing_more_to_do() -> None:
    """Not before: calls and steering go first."""
    with Stall() as stall:
        session = Session.from_user("go")
        model = Scripted([stall, call("look")], say("one"), say("two"), say("three"))
        with Runtime(Agent("a", model, tools=[look])) as runtime:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(10)
            runtime.follow_up(session, "first")
            runtime.follow_up(session, "second")
            runtime.steer(session, "now")
            stall.go_on.set()
            stream.result()
    said_by_user = ["user: go", "user: now", "user: first", "user: second"]
    assert [each for each in said(session) if each.startswith("user")] == said_by_user
    assert said(session)[3:] == [
        "user: now", "assistant: one", "user: first", "assistant: two", "user: second", "assistant: three"
    ]  # fmt: skip


def test_steering_a_nested_agent() -> None:
    """By the id of its session, which its events carry."""
    with Stall() as stall:
        inner = Agent("inner", Scripted([*say("x"), stall, call("look")], say("ok")), tools=[look])
        arguments = '{"agent": "inner", "task": "go"}'
        outer = Agent("outer", Scripted([call("transfer_task", arguments)], say("bye")), sub_agents=[inner])
        with Runtime(outer) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
            for event in stream:
                if isinstance(event, AgentChoice) and event.content == "x":
                    runtime.steer(event.session_id, "hurry")
                    stall.go_on.set()
    assert [message.content for message in inner.model.seen[1]][-1] == "hurry"  # type: ignore[attr-defined]


def test_nobody_to_tell() -> None:
    """No run, or one that is over: an error says so, and nothing is recorded."""
    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted(say("ok"), say("ok")))) as runtime:
        for method in (runtime.steer, runtime.follow_up):
            with pytest.raises(NotRunning, match=session.id):
                method(session, "hello?")
        for method in (runtime.pause, runtime.resume):  # type: ignore[assignment]
            with pytest.raises(NotRunning):
                method(session)  # type: ignore[call-arg]
        runtime.run(session)
        with pytest.raises(NotRunning, match="no run on session"):
            runtime.steer(session, "hello?")
    assert said(session) == ["user: go", "assistant: ok"]


def test_a_run_that_comes_to_its_end_takes_nothing_more() -> None:
    """It still runs hooks, and would never look again."""
    with Stall() as stall:
        session = Session.from_user("go")
        with Runtime(Agent("a", Scripted(say("ok")), hooks={"session_end": [stall]})) as runtime:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(10)
            for tell in (runtime.steer, runtime.follow_up):
                with pytest.raises(NotRunning, match="has come to its end"):
                    tell(session, "too late")
            stall.go_on.set()
            stream.result()
    assert said(session) == ["user: go", "assistant: ok"]


@pytest.mark.usefixtures("switching")
def test_nothing_is_lost_where_steering_races_the_end(threads: Any) -> None:
    """Each message is either recorded and answered, or refused."""

    class Echo:
        id = "echo"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
            yield from say("heard: " + ", ".join(m.content for m in messages if m.role == "user"))

    with Runtime(Agent("a", Echo())) as runtime:
        for number in range(60):
            session = Session.from_user("go")
            tell = runtime.steer if number % 2 else runtime.follow_up
            opened = threading.Event()
            taken: list[str] = []

            def talk(session: Session = session, tell: Any = tell, taken: list[str] = taken) -> None:
                assert opened.wait(10)
                for text in "abcdefgh":
                    try:
                        tell(session, text)
                    except NotRunning:
                        return
                    taken.append(text)

            talking = threads.go(talk)
            stream = runtime.run_stream(session)
            opened.set()
            text = stream.result().text
            talking.result()
            assert text == "heard: " + ", ".join(["go", *taken])


@pytest.mark.parametrize("how", ["cancel", "fail", "max_iterations"])
def test_what_was_taken_too_late_is_in_the_session(how: str) -> None:
    """The run ends before the model could see it: it is the last message, for the next run."""
    with Stall() as stall:
        last = OSError("broken") if how == "fail" else call("look")
        session = Session.from_user("go")
        agent = Agent(
            "a", Scripted([call("look")], [*say("x"), stall, last], say("ok")), tools=[look], max_iterations=2
        )
        with Runtime(agent) as runtime:
            stream = runtime.run_stream(session, interactive=False)
            assert stall.reached.wait(10)
            runtime.steer(session, "one")
            runtime.follow_up(session, "two")
            if how == "cancel":
                stream.cancel()
            stall.go_on.set()
            with pytest.raises(RunError):
                stream.result()
            assert said(session)[-2:] == ["user: one", "user: two"]
            stream.close()
            if how == "max_iterations":
                assert runtime.run(session).text == "ok"


def test_the_hooks_of_what_is_said_meanwhile() -> None:
    """They add context for the rest of the run, or end it."""
    told: list[tuple[str, str]] = []

    def note(given: HookInput) -> HookResult:
        told.append((given.hook_event_name, given.prompt))
        return HookResult(context=f"[{given.prompt}]", block=given.prompt == "stop", reason="stopped")

    points = ("user_steering_messages_submit", "user_followup_submit")
    with Stall() as stall:
        model = Scripted([stall, call("look")], say("one"), say("two"))
        session = Session.from_user("go")
        with Runtime(Agent("a", model, tools=[look], hooks={point: [note] for point in points})) as runtime:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(10)
            runtime.steer(session, "now")
            runtime.follow_up(session, "then")
            runtime.follow_up(session, "stop")
            stall.go_on.set()
            with pytest.raises(RunError, match="hook_blocked: stopped"):
                stream.result()
    assert told == [(points[0], "now"), (points[1], "then"), (points[1], "stop")]
    assert [messages[0].content for messages in model.seen[1:]] == ["[now]", "[now]\n\n[then]"]


# -- pause -------------------------------------------------------------------------------------------------------------


def test_a_paused_run_stands_still_before_its_next_turn() -> None:
    """And goes on when it is resumed, with what was said meanwhile."""
    with Stall() as stall:
        model = Scripted([stall, call("look")], say("ok"))
        session = Session.from_user("go")
        with Runtime(Agent("a", model, tools=[look])) as runtime, runtime.run_stream(session) as stream:
            assert stall.reached.wait(10)
            runtime.pause(session)
            runtime.pause(session)
            stall.go_on.set()
            paused = 0
            for event in stream:
                if isinstance(event, Paused):
                    paused += 1
                    assert said(session)[-1] == "tool: seen"
                    assert len(model.seen) == 1
                    runtime.steer(session, "go on")
                    runtime.resume(session)
                    runtime.resume(session)
            assert paused == 1
    assert said(session)[-2:] == ["user: go on", "assistant: ok"]


def test_law_18_a_cancel_is_prompt_while_it_is_paused(threads: Any) -> None:
    """It waits where the cancel reaches it."""
    with Stall() as stall:
        session = Session.from_user("go")
        with Runtime(Agent("a", Scripted([stall, call("look")], say("never")), tools=[look])) as runtime:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(10)
            runtime.pause(session)
            stall.go_on.set()
            for event in stream:
                if isinstance(event, Paused):
                    threads.parked(runtime._shared.cores.copy().pop().mailbox._resumed, receivers=1)
                    stream.cancel("enough")
            assert isinstance(event, StreamStopped)
            assert event.reason == "canceled"


def test_a_run_that_is_not_paused_can_be_resumed() -> None:
    """Harmless; and a tool may pause the run it belongs to."""

    @tool(read_only=True)
    def stop_here(context: ToolContext) -> str:
        """Pauses."""
        runtime.resume(context.session_id)
        runtime.pause(context.session_id)
        runtime.resume(context.session_id)
        return "ok"

    with Runtime(Agent("a", Scripted([call("stop_here")], say("on")), tools=[stop_here])) as runtime:
        assert runtime.run(Session.from_user("go")).text == "on"


def test_the_mailbox_tells_what_it_is() -> None:
    """For people."""
    session = Session()
    box = Mailbox(session, SessionLog(session))
    box.take(Mail("user_steering_messages_submit", "x"))
    assert repr(box) == "<Mailbox open, 1 waiting>"
    box.pause()
    assert repr(box) == "<Mailbox paused, 1 waiting>"
    box.close()
    assert repr(box) == "<Mailbox closed, 0 waiting>"


@pytest.mark.parametrize("say_it", [Runtime.steer, Runtime.follow_up])
def test_what_is_said_while_the_last_turn_is_being_ended_is_refused(say_it: Any) -> None:
    """The agent has nothing more to do by then, though hooks still run: taken, it would never be answered."""
    with Stall() as stall:
        session = Session.from_user("go")
        agent = Agent("a", Scripted(say("Bye.")), hooks={"turn_end": [lambda given: stall()]})
        with Runtime(agent) as runtime:
            stream = runtime.run_stream(session)
            assert stall.reached.wait(10)
            with pytest.raises(NotRunning):
                say_it(runtime, session, "late")
            stall.go_on.set()
            assert stream.result().text == "Bye."
    assert said(session) == ["user: go", "assistant: Bye."]
