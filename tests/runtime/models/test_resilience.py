"""Models made of models: another attempt, a model that stands in, silence as an error. In both forms of a stream."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from channels import CancelToken
from channels.aio import default_loop
from runtime import (
    Agent,
    FallbackDelta,
    FinishDelta,
    Message,
    Model,
    ModelError,
    NativeDelta,
    OutputSchema,
    Price,
    ReasoningDelta,
    RunError,
    Runtime,
    Session,
    StreamStuck,
    TextDelta,
    UsageDelta,
)
from runtime.events import Error, ModelFallback, StreamStopped, TokenUsage
from runtime.models import Fallback, IdleTimeout, Retry, exponential
from runtime.session import Native
from support.scripted import AsyncScripted, Scripted, Stall, call, say
from support.waiting import in_time

PROMPT = 0.05  # seconds
LONG = 30.0


class Iterating(AsyncScripted):
    """An asynchronous model whose ``stream`` is a plain function."""

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:  # type: ignore[override]
        return super().stream(messages, tools, cancel=cancel)


KINDS = [Scripted, AsyncScripted, Iterating]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    """Each kind of model there is."""
    return request.param


def overloaded(retry_after: float | None = None) -> ModelError:
    return ModelError("overloaded", "too busy", retryable=True, retry_after=retry_after)


def wrong() -> ModelError:
    return ModelError("bad_request", "no such field")


def named(model: Any, id: str) -> Any:
    model.id = id
    return model


def deltas(model: Model) -> list[Any]:
    """All that it says, as a stream would have it."""
    source: Any = model.stream([Message("user", "Hi")], [], cancel=CancelToken())
    return list(default_loop().iterate(source) if hasattr(source, "__aiter__") else source)


def texts(said: list[Any]) -> list[str]:
    return [delta.text for delta in said if isinstance(delta, TextDelta)]


def run(model: Model) -> tuple[list[Any], Session]:
    session = Session.from_user("Hi")
    with Runtime(Agent("a", model)) as runtime:
        return list(runtime.run_stream(session)), session


def at_once(attempt: int) -> float:
    return 0.0


# -- Retry -------------------------------------------------------------------------------------------------------------


def test_a_model_that_fails_is_asked_again(kind: Any) -> None:
    waits: list[int] = []

    def backoff(attempt: int) -> float:
        waits.append(attempt)
        return 0.0

    model = kind([overloaded()], [UsageDelta(3), overloaded()], say("Hello"))
    assert deltas(Retry(model, backoff=backoff)) == [UsageDelta(3), TextDelta("Hello")]
    assert waits == [1, 2]


def test_attempts_are_counted(kind: Any) -> None:
    model = kind([overloaded()], [overloaded()], say("never"))
    with pytest.raises(ModelError, match="too busy"):
        deltas(Retry(model, attempts=2, backoff=at_once))
    assert len(model.turns) == 1


@pytest.mark.parametrize("said", [TextDelta("He"), ReasoningDelta("hm"), call("add")])
def test_what_was_said_is_never_said_twice(kind: Any, said: Any) -> None:
    model = kind([said, overloaded()], say("Hello"))
    source: Any = Retry(model, backoff=at_once)
    events, session = run(source)
    assert [type(event) for event in events[-2:]] == [Error, StreamStopped]
    assert len(model.turns) == 1
    if isinstance(said, TextDelta):
        assert (session.messages[-1].content, session.messages[-1].finish_reason) == ("He", "interrupted")


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (overloaded(), True),
        (wrong(), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (LookupError(), False),
    ],
)
def test_only_what_passes_is_tried_again(kind: Any, error: Exception, again: bool) -> None:
    model = kind([error], say("Hello"))
    if again:
        assert texts(deltas(Retry(model, backoff=at_once))) == ["Hello"]
    else:
        with pytest.raises(type(error)):
            deltas(Retry(model, backoff=at_once))


def test_which_errors_are_tried_again_can_be_said() -> None:
    model = Scripted([LookupError()], say("Hello"))
    assert texts(deltas(Retry(model, backoff=at_once, when=lambda error: isinstance(error, LookupError)))) == ["Hello"]


def test_retry_after_is_honoured(kind: Any) -> None:
    started = time.monotonic()
    deltas(Retry(kind([overloaded(0.2)], say("Hello")), backoff=at_once))
    assert time.monotonic() - started >= 0.2


def test_nobody_waits_longer_than_their_patience(kind: Any) -> None:
    model = kind([overloaded(61.0)], say("never"))
    with pytest.raises(ModelError) as caught:
        deltas(Retry(model))
    assert caught.value.retry_after == 61.0


def test_backoff_doubles_with_jitter_up_to_a_bound() -> None:
    longest = exponential(1.0, 10.0, random=lambda: 1.0)
    shortest = exponential(1.0, 10.0, random=lambda: 0.0)
    assert [longest(n) for n in (1, 2, 3, 4, 5, 5000)] == [1, 2, 4, 8, 10, 10]
    assert [shortest(n) for n in (1, 2, 3, 4, 5, 5000)] == [0.5, 1, 2, 4, 5, 5]


def test_law_18_cancel_is_prompt_while_it_waits(kind: Any, tasks_of_ours: Any) -> None:
    assert in_time(lambda: cancelled_while_it_waits(kind), PROMPT)
    assert not tasks_of_ours()


def cancelled_while_it_waits(kind: Any) -> float:
    waiting = Stall()

    def backoff(attempt: int) -> float:
        waiting.reached.set()
        return LONG

    with Runtime(Agent("a", Retry(kind([overloaded()]), backoff=backoff))) as runtime:
        stream = runtime.run_stream(Session.from_user("Hi"))
        assert waiting.reached.wait(10)
        started = time.monotonic()
        stream.cancel()
        events = list(stream)
        took = time.monotonic() - started
        assert events[-1].reason == "canceled"
        stream.close()
    return took


def test_attempts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "runtime"):
        deltas(Retry(Scripted([overloaded()], say("Hello")), backoff=at_once))
    assert "scripted: attempt 1 of 4, the next in 0.0 s: too busy" in caplog.text


def test_at_least_one_attempt() -> None:
    with pytest.raises(ValueError, match="attempts"):
        Retry(Scripted(), attempts=0)


def test_what_a_provider_wants_back_comes_only_with_a_whole_reply(kind: Any) -> None:
    _, session = run(kind([*say("x"), NativeDelta("p", {}), FinishDelta("stop"), wrong()]))
    assert (session.messages[-1].native, session.messages[-1].finish_reason) == (None, "interrupted")
    _, session = run(kind([*say("x"), NativeDelta("p", {}), FinishDelta("stop")]))
    assert (session.messages[-1].native, session.messages[-1].finish_reason) == (Native("p", {}), "stop")


# -- Fallback ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["threads", "loop", "mixed"])
def kinds(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The kinds of two models."""
    return {
        "threads": (Scripted, Scripted),
        "loop": (AsyncScripted, AsyncScripted),
        "mixed": (AsyncScripted, Scripted),
    }[request.param]


def test_another_model_takes_over_and_the_stream_says_so(kinds: Any) -> None:
    first = named(kinds[0]([overloaded()]), "big")
    second = named(kinds[1]([*say("Hello"), UsageDelta(3, 1)]), "small")
    events, session = run(Fallback(first, second))
    [change] = [event for event in events if isinstance(event, ModelFallback)]
    assert (change.from_model, change.to_model, change.reason) == ("big", "small", "too busy")
    assert (session.messages[-1].content, session.messages[-1].model) == ("Hello", "small")
    assert [event.model for event in events if isinstance(event, TokenUsage)] == ["small"]


def test_what_the_first_one_has_said_is_not_said_twice(kinds: Any) -> None:
    first, second = kinds[0]([*say("He"), overloaded()]), kinds[1](say("never"))
    events, session = run(Fallback(first, second))
    assert events[-1].reason == "error"
    assert (session.messages[-1].content, len(second.turns)) == ("He", 1)


@pytest.mark.parametrize("code", ["bad_request", "refused", "context_overflow"])
def test_what_is_wrong_with_the_question_is_passed_on(kinds: Any, code: Any) -> None:
    first, second = kinds[0]([ModelError(code, "no")]), kinds[1](say("never"))
    with pytest.raises(ModelError) as caught:
        deltas(Fallback(first, second))
    assert caught.value.code == code


def test_a_model_that_failed_rests(kinds: Any) -> None:
    now = [1000.0]
    first = named(kinds[0]([overloaded()], [overloaded(90.0)], say("big again")), "big")
    second = named(kinds[1](*[say("small")] * 4), "small")
    chain = Fallback(first, second, cooldown=60, clock=lambda: now[0])
    assert texts(deltas(chain)) == ["small"]
    now[0] += 59
    change, said = deltas(chain)
    assert change == FallbackDelta("big", "small", "it failed a short while ago")
    assert said == TextDelta("small")
    assert len(first.turns) == 2  # it was not asked
    now[0] += 1
    assert texts(deltas(chain)) == ["small"]  # it was, and asks for more time
    now[0] += 89
    assert texts(deltas(chain)) == ["small"]
    now[0] += 1
    assert deltas(chain) == [TextDelta("big again")]


def test_where_all_rest_all_are_tried(kinds: Any) -> None:
    first = named(kinds[0]([overloaded()], say("big")), "big")
    second = named(kinds[1]([overloaded()]), "small")
    chain = Fallback(first, second)
    with pytest.raises(ModelError):
        deltas(chain)
    assert deltas(chain) == [TextDelta("big")]


def test_a_model_that_answers_rests_no_more(kinds: Any) -> None:
    now = [1000.0]
    first = named(kinds[0]([overloaded(90.0)], say("big"), say("big")), "big")
    second = named(kinds[1]([overloaded()], say("small")), "small")
    chain = Fallback(first, second, cooldown=60, clock=lambda: now[0])
    with pytest.raises(ModelError):
        deltas(chain)
    assert deltas(chain) == [TextDelta("big")]  # all rested, so it was asked
    now[0] += 61  # the rest of the second is over, that of the first would not be
    assert deltas(chain) == [TextDelta("big")]


def test_where_none_answers_the_error_names_all(kinds: Any) -> None:
    first = named(kinds[0]([overloaded(5.0)]), "big")
    second = named(kinds[1]([ModelError("no_key", "there is no key")]), "small")
    with Runtime(Agent("a", Fallback(first, second))) as runtime, pytest.raises(RunError) as caught:
        runtime.run(Session.from_user("Hi"))
    error = caught.value.__cause__
    assert isinstance(error, ModelError)
    assert (error.code, error.retryable, error.retry_after) == ("no_key", True, 5.0)
    assert "no model answered: big: too busy; small: there is no key" in str(error)


def test_a_chain_of_one_fails_as_its_model_does(kind: Any) -> None:
    with pytest.raises(ModelError, match=r"^too busy$"):
        deltas(Fallback(kind([overloaded()])))


def test_errors_that_are_no_model_errors_count_too(kinds: Any) -> None:
    first, second = kinds[0]([LookupError()]), kinds[1](say("Hello"))
    change, _ = deltas(Fallback(first, second))
    assert change.reason == "LookupError"


def test_law_18_cancel_is_prompt_in_a_chain(kinds: Any) -> None:
    assert in_time(lambda: cancelled_in_a_chain(kinds), PROMPT)


def cancelled_in_a_chain(kinds: Any) -> float:
    with Stall() as stall:
        first = kinds[0]([overloaded()])
        second = kinds[1]([*say("x"), stall if kinds[1] is Scripted else lambda: waiting(stall)])
        runtime = Runtime(Agent("a", Fallback(first, second)))
        stream = runtime.run_stream(Session.from_user("Hi"))
        assert stall.reached.wait(10)
        started = time.monotonic()
        stream.cancel()
        list(stream)
        took = time.monotonic() - started
        stall.go_on.set()
        stream.close()
        runtime.close()
        return took


async def waiting(stall: Stall) -> None:
    """Stands still on the loop."""
    stall.reached.set()
    await asyncio.sleep(LONG)


# -- IdleTimeout -------------------------------------------------------------------------------------------------------


def stalled(kind: Any, stall: Stall, *said: Any) -> Any:
    """A model that says something and stands still."""
    return kind([*said, stall if kind is Scripted else lambda: waiting(stall)])


@pytest.mark.parametrize("said", [[], say("He")])
def test_a_model_that_stands_still_is_given_up(kind: Any, said: list[Any]) -> None:
    with Stall() as stall:
        events, session = run(IdleTimeout(stalled(kind, stall, *said), 0.3))
    [error] = [event for event in events if isinstance(event, Error)]
    assert error.code == "model_error"
    assert "has said nothing for 0.3 s" in error.error
    if said:
        assert (session.messages[-1].content, session.messages[-1].finish_reason) == ("He", "interrupted")


def test_a_model_that_stands_still_can_be_replaced(kind: Any) -> None:
    with Stall() as stall:
        chain = Fallback(IdleTimeout(stalled(kind, stall), 0.05), named(kind(say("Hello")), "other"))
        said = deltas(chain)
    assert texts(said) == ["Hello"]
    assert "has said nothing" in said[0].reason


def test_what_a_stalled_model_says_late_is_dropped() -> None:
    """However much it is: its thread ends."""
    with Stall() as stall, pytest.raises(ModelError, match="said nothing"):
        deltas(IdleTimeout(Scripted([stall, *say(*"x" * 1000)]), 0.05))


def test_the_time_of_a_slow_consumer_does_not_count() -> None:
    on_thread: Any = IdleTimeout(Scripted(say("a", "b")), 0.4).stream([], [], cancel=CancelToken())
    assert next(on_thread) == TextDelta("a")
    time.sleep(0.5)
    assert next(on_thread) == TextDelta("b")
    on_thread.close()

    async def consume() -> list[Any]:
        on_loop: Any = IdleTimeout(AsyncScripted(say("a", "b")), 0.4).stream([], [], cancel=CancelToken())
        first = await anext(on_loop)
        await asyncio.sleep(0.5)
        return [first, *[delta async for delta in on_loop]]

    assert texts(default_loop().call(consume)) == ["a", "b"]


def test_the_errors_of_the_model_are_its_own(kind: Any) -> None:
    with pytest.raises(TimeoutError, match="mine"):
        deltas(IdleTimeout(kind([*say("x"), TimeoutError("mine")]), LONG))


def test_a_model_in_time_says_all(kind: Any) -> None:
    assert texts(deltas(IdleTimeout(kind(say("a", "b")), LONG))) == ["a", "b"]


def test_law_18_cancel_is_prompt_with_a_deadline(kind: Any) -> None:
    assert in_time(lambda: cancelled_with_a_deadline(kind), PROMPT)


def cancelled_with_a_deadline(kind: Any) -> float:
    with Stall() as stall, Runtime(Agent("a", IdleTimeout(stalled(kind, stall), LONG)), grace=0.1) as runtime:
        stream = runtime.run_stream(Session.from_user("Hi"))
        assert stall.reached.wait(10)
        started = time.monotonic()
        stream.cancel()
        list(stream)
        took = time.monotonic() - started
        if kind is Scripted:  # a thread that does not listen is named, by the thread that waits for it
            with pytest.raises(StreamStuck, match="model scripted"):
                stream.close()
            stall.go_on.set()
        stream.close()
        return took


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="seconds"):
        IdleTimeout(Scripted(), 0)


# -- together ----------------------------------------------------------------------------------------------------------


def test_they_wrap_each_other(kind: Any) -> None:
    first = Retry(IdleTimeout(kind([overloaded()], [overloaded()]), LONG), attempts=2, backoff=at_once)
    assert texts(deltas(Fallback(first, Retry(kind(say("Hello")))))) == ["Hello"]


@pytest.mark.parametrize("wrap", [Retry, Fallback, lambda model: IdleTimeout(model, LONG)])
def test_what_wraps_asynchronous_models_takes_no_thread(wrap: Any) -> None:
    assert inspect.isasyncgenfunction(wrap(AsyncScripted()).stream)
    assert inspect.isgeneratorfunction(wrap(Scripted()).stream)
    assert isinstance(wrap(Scripted()), Model)
    assert "scripted" in wrap(Scripted()).id
    assert repr(wrap(Scripted())).startswith(("Retry(", "Fallback(", "IdleTimeout("))


def test_an_inner_stream_is_closed_where_the_outer_is_left() -> None:
    """A generator that is dropped would run its cleanup some time, in some thread."""
    closed: list[str] = []

    class OnThread(Scripted):
        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            try:
                yield TextDelta("x")
            finally:
                closed.append("on a thread")

    class OnLoop(AsyncScripted):
        async def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
            try:
                yield TextDelta("x")
            finally:
                closed.append("on the loop")

    def wrapped(model: Any) -> Any:
        return Retry(IdleTimeout(Fallback(model), LONG)).stream([], [], cancel=CancelToken())

    on_thread = wrapped(OnThread())
    next(on_thread)
    on_thread.close()

    async def leave() -> list[str]:
        on_loop = wrapped(OnLoop())
        await anext(on_loop)
        await on_loop.aclose()
        return list(closed)

    assert default_loop().call(leave) == ["on a thread", "on the loop"]


class Told(Scripted):
    """A synchronous model that takes the schema of the output."""

    output: Any = None

    def stream(self, messages: Any, tools: Any, *, cancel: Any, output: Any = None) -> Any:  # type: ignore[override]
        self.output = output
        return super().stream(messages, tools, cancel=cancel)


class AsyncTold(AsyncScripted):
    """The same on the loop."""

    output: Any = None

    async def stream(self, messages: Any, tools: Any, *, cancel: Any, output: Any = None) -> Any:
        self.output = output
        async for delta in super().stream(messages, tools, cancel=cancel):
            yield delta


@pytest.mark.parametrize("kind", [Told, AsyncTold])
@pytest.mark.parametrize("wrap", [Retry, Fallback, lambda model: IdleTimeout(model, LONG)])
def test_the_schema_of_the_output_reaches_the_model_that_takes_it(wrap: Any, kind: Any) -> None:
    model = kind(say("[1]"))
    with Runtime(Agent("a", wrap(wrap(model)), output_type=list[int])) as runtime:
        assert runtime.run(Session.from_user("Hi")).output == [1]
    assert isinstance(model.output, OutputSchema)
    assert model.output.schema["type"] == "array"


def test_models_of_a_chain_that_do_not_take_the_schema_are_not_given_it(kind: Any) -> None:
    last = Told(say("[1]"))
    chain = Fallback(kind([overloaded()]), last)
    with Runtime(Agent("a", chain, output_type=list[int])) as runtime:
        assert runtime.run(Session.from_user("Hi")).output == [1]
    assert last.output is not None


@pytest.mark.parametrize("wrap", [Retry, Fallback, lambda model: IdleTimeout(model, LONG)])
def test_a_wrapper_takes_as_much_as_its_model(wrap: Any) -> None:
    model: Any = Scripted()
    assert wrap(model).context_window is None
    model.context_window = 1000
    assert wrap(wrap(model)).context_window == 1000


def test_a_chain_takes_what_all_its_models_take_as_far_as_they_know() -> None:
    big, small, unknown = Scripted(), Scripted(), Scripted()
    big.context_window, small.context_window = 1000, 100  # type: ignore[attr-defined]
    assert Fallback(big, unknown, small).context_window == 100


# -- what attempts use -------------------------------------------------------------------------------------------------


def test_all_attempts_count_as_used(kind: Any) -> None:
    model = kind([UsageDelta(1000, 1), overloaded()], [UsageDelta(10), UsageDelta(1000, 5), *say("Hello")])
    _, session = run(Retry(model, backoff=at_once))
    assert (session.usage.input_tokens, session.usage.output_tokens) == (2000, 6)
    assert session.messages[-1].usage is not None
    assert session.messages[-1].usage.input_tokens == 2000


def test_what_a_model_used_is_its_own(kinds: Any) -> None:
    """Not that of the one that stands in: it is priced as the one that used it."""
    first = named(kinds[0]([UsageDelta(1000), overloaded()]), "big")
    second = named(kinds[1]([UsageDelta(100, 5), *say("Hello")]), "small")
    session = Session.from_user("Hi")
    prices = {"big": Price(1, 1), "small": Price(1000, 1000)}
    with Runtime(Agent("a", Fallback(first, second)), prices=prices) as runtime:
        events = list(runtime.run_stream(session))
    usage = session.messages[-1].usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.cost) == (100, 5, pytest.approx(0.105))
    assert session.usage.input_tokens == 1100
    assert session.usage.cost == pytest.approx(0.106)
    told = [(event.model, event.input_tokens) for event in events if isinstance(event, TokenUsage)]
    assert told == [("big", 1000), ("small", 100)]


def test_a_chain_that_is_asked_again_goes_back_to_its_first_model(kind: Any) -> None:
    first = named(kind([UsageDelta(7), overloaded()], [UsageDelta(9), *say("Hello")]), "big")
    second = named(kind([UsageDelta(5), overloaded()]), "small")
    events, session = run(Retry(Fallback(first, second, cooldown=0), backoff=at_once))
    assert session.messages[-1].model == "big"
    told = [(event.model, event.input_tokens) for event in events if isinstance(event, TokenUsage)]
    assert told == [("big", 7), ("small", 5), ("big", 9)]
