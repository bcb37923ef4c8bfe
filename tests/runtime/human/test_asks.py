"""Questions: the right stream, the right call, once. Laws 6, 7, 14."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from channels import Cancelled, CancelToken, ChannelClosed
from runtime import Agent, Answer, EventStream, InvalidAnswer, NotPending, Runtime, Session, Tool, ToolContext, tool
from runtime.agent._tool import Question
from runtime.events import ElicitationRequest, Event, MaxIterationsReached, ToolCallConfirmation, ToolCallResponse
from runtime.human._asks import Ask, Asks
from support.interrupts import between, press_ctrl_c
from support.scripted import Scripted, call, say

FORM = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}


@tool(read_only=True)
def ask(context: ToolContext, what: str = "How many?") -> str:
    """Asks in a form."""
    answer = context.elicit(what, FORM)
    return f"{what} {answer.action} {dict(answer.content)}"


@tool(read_only=True)
async def ask_async(context: ToolContext, what: str = "How many?") -> str:
    """Asks in a form, asynchronously."""
    answer = await context.aelicit(what, FORM)
    return f"{what} {answer.action} {dict(answer.content)}"


both = pytest.mark.parametrize("asking", [ask, ask_async], ids=["sync", "async"])


def agent(*tools: Tool, calls: list[Any] | None = None) -> Agent:
    calls = calls or [call(each.name, id=str(i), index=i) for i, each in enumerate(tools)]
    return Agent("a", Scripted(calls, say("ok")), tools=tools)


@contextmanager
def asked(*tools: Tool, calls: list[Any] | None = None) -> Iterator[tuple[EventStream, list[ElicitationRequest]]]:
    """A stream, and the questions it asks, read as far as the last of them."""
    with Runtime(agent(*tools, calls=calls)) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        wanted = len(calls or tools)
        requests: list[ElicitationRequest] = []
        while len(requests) < wanted:
            event = next(stream)
            if isinstance(event, ElicitationRequest):
                requests.append(event)
        yield stream, requests


def responses(stream: EventStream) -> list[str]:
    return [event.response for event in stream if isinstance(event, ToolCallResponse)]


@both
def test_answered(asking: Tool) -> None:
    """The answer travels back to the call that asked."""
    with asked(asking) as (stream, [request]):
        assert request.schema == FORM
        assert request.mode == "form"
        stream.respond(request, "accept", {"n": 3})
        assert responses(stream) == ["How many? accept {'n': 3}"]


@both
@pytest.mark.parametrize("action", ["decline", "cancel"])
def test_refused(asking: Tool, action: Any) -> None:
    """Content that comes with a refusal is dropped."""
    with asked(asking) as (stream, [request]):
        stream.respond(request, action, {"n": 3})
        assert responses(stream) == [f"How many? {action} {{}}"]


@both
def test_a_bad_answer_is_the_answerers_error_and_the_question_waits(asking: Tool) -> None:
    """Law 6: InvalidAnswer, still pending; then once, then NotPending."""
    with asked(asking) as (stream, [request]):
        for bad in ({}, {"n": "three"}, {"n": 0}, {"n": True}, None):
            with pytest.raises(InvalidAnswer, match=r"n (is|must be)"):
                stream.respond(request, "accept", bad)
        with pytest.raises(InvalidAnswer, match="maybe"):
            stream.respond(request, "maybe", {"n": 1})  # type: ignore[arg-type]
        stream.respond(request, "accept", {"n": 1})
        with pytest.raises(NotPending):
            stream.respond(request, "accept", {"n": 2})
        assert responses(stream) == ["How many? accept {'n': 1}"]


def test_several_open_at_once_answered_in_any_order() -> None:
    """Law 6: by id, from other threads."""
    calls = [call("ask", f'{{"what": "q{i}"}}', id=str(i), index=i) for i in range(6)]
    with asked(ask, calls=calls) as (stream, requests):
        with pytest.raises(NotPending, match="6 questions are waiting"):
            stream._core.shared.asks.answer(None, "decline", None)
        threads = [
            threading.Thread(target=stream.respond, args=(request, "accept", {"n": int(request.message[1:]) + 1}))
            for request in reversed(requests)
        ]
        for thread in threads:
            thread.start()
        assert sorted(responses(stream)) == [f"q{i} accept {{'n': {i + 1}}}" for i in range(6)]
        for thread in threads:
            thread.join()


def test_one_answer_wins() -> None:
    """Law 6: twenty threads answer at once, one succeeds, and its answer is the one that arrives."""
    with asked(ask) as (stream, [request]):
        barrier = threading.Barrier(20)
        won: list[int] = []

        def answer(number: int) -> None:
            barrier.wait()
            try:
                stream.respond(request, "accept", {"n": number})
                won.append(number)
            except NotPending:
                pass

        threads = [threading.Thread(target=answer, args=(i + 1,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert responses(stream) == [f"How many? accept {{'n': {won[0]}}}"]


def test_a_strangers_id() -> None:
    """Law 6: another stream's consumer cannot answer."""
    with asked(ask) as (stream, [request]), asked(ask) as (other, [_]):
        with pytest.raises(NotPending):
            other.respond(request, "accept", {"n": 1})
        with pytest.raises(NotPending):
            stream.respond("no such id", "accept", {"n": 1})
        stream.respond(request, "accept", {"n": 1})


def test_resume_elicitation_needs_no_id_where_one_waits() -> None:
    """Law 6."""
    with Runtime(agent(ask)) as runtime:
        with pytest.raises(NotPending, match="no question is waiting"):
            runtime.resume_elicitation("accept", {"n": 1})
        for event in runtime.run_stream(Session.from_user("go")):
            if isinstance(event, ElicitationRequest):
                runtime.resume_elicitation("accept", {"n": 5})
            if isinstance(event, ToolCallResponse):
                assert event.response == "How many? accept {'n': 5}"


def test_answered_before_the_consumer_has_seen_it() -> None:
    """Law 6: the waiter is registered before the event is sent."""
    with Runtime(agent(ask)) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        while not runtime._shared.asks.pending():
            threading.Event().wait(0.001)
        runtime.resume_elicitation("accept", {"n": 2})
        assert responses(stream) == ["How many? accept {'n': 2}"]


@both
def test_nobody_to_ask(asking: Tool) -> None:
    """Law 7: not interactive: declined at once, no event, and the model can read why."""
    session = Session.from_user("go")
    with Runtime(agent(asking)) as runtime:
        assert runtime.run(session).text == "ok"
    note = session.messages[2].content
    assert note.startswith("How many? decline {}")
    assert "nobody is there to be asked" in note


@both
def test_an_unanswered_question_hangs_nobody(asking: Tool) -> None:
    """Law 14: a deadline with a default answer, also for `for e in stream: print(e)`."""
    session = Session.from_user("go")
    with Runtime(agent(asking), answer_timeout=0.05) as runtime:
        events = list(runtime.run_stream(session))
        request = next(event for event in events if isinstance(event, ElicitationRequest))
        with pytest.raises(NotPending):
            runtime.resume_elicitation("accept", {"n": 1}, request.elicitation_id)
    assert "nobody answered within 0.05 s" in session.messages[2].content


@tool(read_only=True)
def ask_for_a_while(context: ToolContext) -> str:
    """Takes the question back when its own token says so."""
    try:
        return context.elicit("How many?", FORM, cancel=giving_up[-1]).action
    except Cancelled as error:
        return f"gave up: {error.cause}"


@tool(read_only=True)
async def ask_for_a_while_async(context: ToolContext) -> str:
    """Takes the question back by cancelling the task that waits."""
    waiting = asyncio.ensure_future(context.aelicit("How many?", FORM))
    loop = asyncio.get_running_loop()
    giving_up[-1].on_cancel(lambda: loop.call_soon_threadsafe(waiting.cancel))
    try:
        return (await waiting).action
    except asyncio.CancelledError:
        return "gave up: enough"


giving_up: list[CancelToken] = []


@pytest.mark.parametrize("asking", [ask_for_a_while, ask_for_a_while_async], ids=["sync", "async"])
def test_a_question_may_be_taken_back(asking: Tool) -> None:
    """Who answers it later is told so; the call goes on."""
    giving_up.append(CancelToken())
    with asked(asking) as (stream, [request]):
        assert stream.pending == [request]
        giving_up[-1].cancel("enough")
        assert responses(stream) == ["gave up: enough"]
        assert stream.pending == []
        with pytest.raises(NotPending):
            stream.respond(request, "accept", {"n": 1})


def test_a_question_taken_back_before_it_is_asked_is_never_seen() -> None:
    giving_up.append(CancelToken())
    giving_up[-1].cancel("before")
    with Runtime(agent(ask_for_a_while)) as runtime:
        seen = list(runtime.run_stream(Session.from_user("go")))
    assert [event.response for event in seen if isinstance(event, ToolCallResponse)] == ["gave up: before"]


def test_a_call_that_ends_takes_its_questions_with_it() -> None:
    """One that a thread of the call asked, which nobody waits for any more."""
    left: list[threading.Thread] = []
    answers: list[Answer] = []
    asked = threading.Event()

    @tool(read_only=True)
    def leave(context: ToolContext) -> str:
        """Leaves a thread behind, which asks."""
        left.append(threading.Thread(target=lambda: answers.append(context.elicit("How many?", FORM))))
        left[0].start()
        asked.wait(10)
        return "left"

    with Runtime(agent(leave)) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                request = event
                asked.set()
            elif isinstance(event, ToolCallResponse):
                with pytest.raises(NotPending):
                    stream.respond(request, "accept", {"n": 1})
    left[0].join(10)
    assert [(answer.action, answer.note) for answer in answers] == [("cancel", "the call that asked is over")]


def test_a_consumer_that_comes_late_finds_what_waits() -> None:
    """Oldest first, and only its own."""
    calls = [call("ask", f'{{"what": "{n}"}}', id=str(n), index=n) for n in range(3)]
    with asked(ask, calls=calls) as (stream, requests), asked(ask) as (other, [another]):
        assert stream.pending == requests
        assert other.pending == [another]
        stream.respond(requests[1], "decline")
        assert stream.pending == [requests[0], requests[2]]
        stream.cancel()
        assert list(stream)[-1].type == "stream_stopped"
        assert stream.pending == []


def test_run_with_somebody_to_ask() -> None:
    """`run(on_request=)`: content, an Answer, or None to decline."""
    replies: list[Any] = [{"n": 1}, Answer("cancel"), None]
    said: list[str] = []
    for reply in replies:
        session = Session.from_user("go")
        with Runtime(agent(ask)) as runtime:
            runtime.run(session, on_request=lambda request, reply=reply: reply)
        said.append(session.messages[2].content)
    assert said == ["How many? accept {'n': 1}", "How many? cancel {}", "How many? decline {}"]


def test_a_page_to_visit() -> None:
    """URL mode: there is no content to check."""

    @tool(read_only=True)
    def sign_in(context: ToolContext) -> str:
        """Asks the user to visit a page."""
        return context.elicit("Sign in", url="https://example.org/login").action

    with asked(sign_in) as (stream, [request]):
        assert (request.mode, request.url, request.schema) == ("url", "https://example.org/login", {})
        stream.respond(request, "accept")
        assert responses(stream) == ["accept"]


# -- an answer is delivered, or its question still waits ---------------------------------------------------------------

GIVE: dict[str, tuple[type[Event], Callable[[EventStream, Any], None]]] = {
    "respond": (ElicitationRequest, lambda stream, event: stream.respond(event, "accept", {"n": 3})),
    "approve": (ToolCallConfirmation, lambda stream, event: stream.approve(event)),
    "reject": (ToolCallConfirmation, lambda stream, event: stream.reject(event, "no")),
    "extend": (MaxIterationsReached, lambda stream, event: stream.extend(event, 3)),
}
giving = pytest.mark.parametrize("how", GIVE)


@contextmanager
def asking(how: str) -> Iterator[tuple[EventStream, Any]]:
    """A stream that waits for the user, for as long as that takes, and what it asks."""
    writing = Tool("write", lambda: "written", read_only=how == "extend")
    agent = Agent(
        "a",
        Scripted([call("ask" if how == "respond" else "write")], say("ok")),
        tools=[ask, writing],
        max_iterations=1 if how == "extend" else 5,
    )
    with Runtime(agent, answer_timeout=None) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        yield stream, next(event for event in stream if isinstance(event, GIVE[how][0]))


def ends(how: str, stream: EventStream, event: Any) -> None:
    """It goes on to its end; where the question still waits, once that has been answered."""
    if event in stream.pending:
        GIVE[how][1](stream, event)
    while True:
        try:
            assert stream.recv(timeout=5) is not None
        except ChannelClosed:
            break
    assert stream.reason == "normal"
    with pytest.raises(NotPending):
        GIVE[how][1](stream, event)


@giving
def test_an_answer_that_is_interrupted_is_not_lost(how: str) -> None:
    """Ctrl-C wherever one may come: the answer arrives, or may be given again. The call must not wait for ever."""
    for number in range(1000):
        with asking(how) as (stream, event):
            hit = True
            with contextlib.suppress(KeyboardInterrupt):
                hit = between(number, functools.partial(GIVE[how][1], stream, event), press_ctrl_c)
            ends(how, stream, event)
        if not hit:
            assert number > 10
            return
    pytest.fail("more points than there can be")


@giving
def test_an_answer_at_the_end_of_the_stack_is_not_lost(how: str) -> None:
    """It is refused before it is written down, or it arrives."""

    def deep(frames: int, function: Callable[[], None]) -> None:
        if frames:
            deep(frames - 1, function)
        else:
            function()

    def depth() -> int:
        frame, found = sys._getframe(), 0
        while frame is not None:
            frame, found = frame.f_back, found + 1  # type: ignore[assignment]
        return found

    limit = sys.getrecursionlimit()
    refused = 0
    for left in range(1, 40):
        with asking(how) as (stream, event):
            sys.setrecursionlimit(300)
            try:
                deep(300 - depth() - left, lambda: GIVE[how][1](stream, event))
            except RecursionError:
                refused += 1
            finally:
                sys.setrecursionlimit(limit)
            ends(how, stream, event)
    assert 3 < refused < 39


def test_a_signal_handler_answers_in_the_middle_of_an_answer() -> None:
    """Another call of the same turn: both answers arrive, though the handler came where it could not send its own."""
    writing = Tool("write", lambda: "written")
    calls = [call("write", id=str(i), index=i) for i in range(2)]
    for number in range(1000):
        agent = Agent("a", Scripted(calls, say("ok")), tools=[writing])
        with Runtime(agent, answer_timeout=None) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
            events = (event for event in stream if isinstance(event, ToolCallConfirmation))
            mine, its = next(events), next(events)
            hit = between(number, functools.partial(stream.approve, mine), functools.partial(stream.approve, its))
            if not hit:
                assert number > 10
                return
            while True:
                try:
                    stream.recv(timeout=5)
                except ChannelClosed:
                    break
            assert stream.reason == "normal"
    pytest.fail("more points than there can be")


@pytest.mark.parametrize(("other", "refused"), [(None, False), ({"size": "large"}, True)], ids=["own", "another"])
def test_the_store_may_tell_of_an_answer_before_its_answerer_settles_it(
    other: dict[str, str] | None, refused: bool
) -> None:
    """The store tells every process of an answer, the one that gave it too: that is no second answer."""
    asks, settled = Asks(), []
    ask = Ask(None, None, None, Question("Which size?", {}), settled.append)
    asks.register(ask, None)
    given = Answer("accept", {"size": "small"})
    told = given if other is None else Answer("accept", other)
    ask.keep = lambda answer: asks.settle_elsewhere(ask.id, told)
    with pytest.raises(NotPending) if refused else contextlib.nullcontext():
        asks.settle(ask, given)
    assert settled[0] == told
    assert not asks.pending()


# -- the table ---------------------------------------------------------------------------------------------------------


def registered(
    asks: Asks, stream: object = "stream", root: object = "root"
) -> tuple[Ask[Question, Answer], list[Answer]]:
    settled: list[Answer] = []
    made = Ask(stream, root, "call", Question("Which size?"), settled.append)
    asks.register(made, None)
    return made, settled


def test_a_second_answer_is_refused_also_if_it_is_the_same() -> None:
    """Both had found the question open. Only the store's own word of an answer may come twice."""
    asks = Asks()
    made, settled = registered(asks)
    asks.settle(made, Answer("decline"))
    with pytest.raises(NotPending, match="was settled meanwhile"):
        asks.settle(made, Answer("decline"))
    assert settled == [Answer("decline")]


def test_an_answer_to_a_question_that_was_parked_is_kept_and_not_refused() -> None:
    """Its stream has ended meanwhile, but the next one finds the answer in the store."""
    asks, kept = Asks(), []
    made, _ = registered(asks)
    made.keep = kept.append

    def gone(answer: Answer) -> None:
        raise ChannelClosed

    made.settled = gone
    deadline = made.deadline
    assert deadline is not None
    assert asks.park("stream") == [made]
    assert made.deadline is None, "nobody waits for its time here"
    asks.settle(made, Answer("decline"))
    assert kept == [Answer("decline")]
    assert not asks.pending()


def test_a_question_is_that_of_its_consumer() -> None:
    asks = Asks()
    made, _ = registered(asks)
    other, _ = registered(asks, root="another root")
    assert asks.pending("root") == [made]
    assert asks.pending() == [made, other]
    assert asks.find(other.id) is other
    with pytest.raises(NotPending, match="was answered, withdrawn or timed out"):
        asks.find(other.id, "root")
    assert asks.find(None, "root") is made
    with pytest.raises(NotPending, match=f"2 questions are waiting, so the answer needs an id: {made.id}, {other.id}"):
        asks.find(None)
    assert asks.is_pending(made)
    made.written[None] = [Answer("decline")]  # as an answer that is just being delivered
    assert not asks.is_pending(made)
    assert asks.find(None) is other
