"""Usage: tokens and dollars, by message, stream and session; an unpriced model is not free."""

from __future__ import annotations

import pytest

from runtime import (
    Agent,
    Message,
    Price,
    RunError,
    Session,
    Tool,
    ToolContext,
    Usage,
    UsageDelta,
)
from runtime.events import AgentChoice, TokenUsage
from runtime.usage import BUILT_IN, Prices
from support.scripted import Scripted, Stall, approving, call, say

PRICES = {"scripted": Price(2, 10, 0.5)}


def test_messages_streams_and_sessions_are_counted() -> None:
    """Each message with its model and usage; the stream and the session with the sums."""
    turns = [
        [call("t"), UsageDelta(1000, 100), UsageDelta(1000, 200, 400, 0, 50)],
        [*say("done"), UsageDelta(2000, 300)],
    ]
    session = Session.from_user("hi")
    with (
        approving(Agent("a", Scripted(*turns), tools=[Tool("t", lambda: "")]), prices=PRICES) as runtime,
        runtime.run_stream(session) as stream,
    ):
        told = [event for event in stream if isinstance(event, TokenUsage)]
        result = stream.result()
    first = (600 * 2 + 400 * 0.5 + 200 * 10) / 1e6
    second = (2000 * 2 + 300 * 10) / 1e6
    made = [message for message in session.messages if message.role == "assistant"]
    assert [message.model for message in made] == ["scripted", "scripted"]
    assert made[0].usage == Usage(1000, 200, 400, 0, 50, pytest.approx(first))
    assert result.usage == session.usage == Usage(3000, 500, 400, 0, 50, pytest.approx(first + second))
    assert [(e.model, e.input_tokens, e.total_output_tokens) for e in told] == [
        ("scripted", 1000, 200),
        ("scripted", 2000, 500),
    ]
    assert [e.cost for e in told] == [pytest.approx(first), pytest.approx(second)]
    assert told[1].total_cost == pytest.approx(first + second)


def test_an_unpriced_model_is_not_free() -> None:
    """Its cost is unknown, and so is every total that it is part of; a model in this process costs nothing."""
    with approving(Agent("a", Scripted([*say("x"), UsageDelta(10, 10)]))) as runtime:
        assert runtime.run(Session.from_user("hi")).usage == Usage(10, 10, cost=None)
    assert (Usage(1, 1, cost=1.0) + Usage(1, 1)).cost is None
    assert Prices().priced("local/SmolLM2", Usage(5, 5)).cost == 0.0
    with approving(Agent("a", Scripted(say("nothing reported"))), prices=PRICES) as runtime:
        assert runtime.run(Session.from_user("hi")).usage == Usage(cost=None)


def test_prices_are_found() -> None:
    """Yours first, by id or pattern; then the built-in, with or without provider and date; never by resemblance."""
    prices = Prices({"openai/gpt-5": Price(1, 1), "house/*": Price(3, 3)})
    assert prices.find("openai/gpt-5") == Price(1, 1)
    assert prices.find("house/big") == Price(3, 3)
    assert prices.find("openai/gpt-5-2025-08-07") == BUILT_IN["gpt-5"]
    assert prices.find("anthropic/claude-opus-4-5-20251101") == BUILT_IN["claude-opus-4-5"]
    assert prices.find("claude-haiku-4-5") == BUILT_IN["claude-haiku-4-5"]
    assert prices.find("gpt-4o-2024-05-13") == Price(5, 15)
    for unknown in ("gpt-5-huge", "ollama/gpt-5", "scripted", ""):
        assert prices.find(unknown) is None
    assert "2 own" in repr(prices)


def test_what_a_call_costs() -> None:
    """Parts of the input have prices of their own; long prompts may have others."""
    price = Price(10, 20, 1, 12.5, above=(1000, Price(20, 30)))
    assert price.cost(Usage(1000, 100, 300, 200)) == pytest.approx((500 * 10 + 300 * 1 + 200 * 12.5 + 100 * 20) / 1e6)
    assert price.cost(Usage(1001, 100, 300)) == pytest.approx((1001 * 20 + 100 * 30) / 1e6)
    with pytest.raises(ValueError, match="0 or more, not"):
        Price(-1, 1)
    with pytest.raises(TypeError, match="must be a Price"):
        approving(Agent("a", Scripted()), prices={"x": 3})  # type: ignore[dict-item]


def test_a_turn_that_fails_counts_too() -> None:
    """Whether it left a message or not."""
    for said in ([], say("half")):
        session = Session.from_user("hi")
        model = Scripted([*said, UsageDelta(70, 7), LookupError("lost")])
        with approving(Agent("a", model), prices=PRICES) as runtime, runtime.run_stream(session) as stream:
            told = [event for event in stream if isinstance(event, TokenUsage)]
            with pytest.raises(RunError):
                stream.result()
        assert [event.input_tokens for event in told] == [70]
        assert session.usage.tokens == 77
        assert session.usage.cost is not None


def test_a_turn_that_is_cancelled_counts_too() -> None:
    """What the model had reported by then."""
    session = Session.from_user("hi")
    stall = Stall()
    agent = Agent("a", Scripted([UsageDelta(70, 7), *say("so far"), stall, *say("never")]))
    with stall, approving(agent) as runtime:
        with runtime.run_stream(session) as stream:
            next(event for event in stream if isinstance(event, AgentChoice))  # what came before has been taken, too
            stall.reached.wait(5)
            stream.cancel()
            stall.go_on.set()
            assert not [event for event in stream if isinstance(event, TokenUsage)]
        assert session.usage.tokens == 77


def test_nested_streams_count_towards_the_stream_and_not_the_session() -> None:
    """Each session has its own calls; the outer run is told, and answers for, all of them."""
    inner = Session.from_user("inner")
    child = Agent("child", Scripted([*say("inner"), UsageDelta(5, 5)]))

    def delegate(context: ToolContext) -> str:
        return context.run_agent(child, inner).text

    outer = Session.from_user("outer")
    model = Scripted([call("delegate"), UsageDelta(1, 1)], [*say("done"), UsageDelta(1, 1)])
    with (
        approving(Agent("a", model, tools=[Tool("delegate", delegate)]), prices=PRICES) as runtime,
        runtime.run_stream(outer) as stream,
    ):
        totals = [e.total_input_tokens for e in stream if isinstance(e, TokenUsage) and e.session_id == outer.id]
        assert stream.result().usage.tokens == 14
    assert totals == [1, 7]
    assert (outer.usage.tokens, inner.usage.tokens) == (4, 10)


def test_a_message_with_usage_survives_json() -> None:
    """And a session that is put together from such messages has the sums."""
    message = Message("assistant", "x", model="m", usage=Usage(3, 4, 1, cost=0.5))
    back = Message.from_dict(message.to_dict())
    assert back == message
    assert Message.from_dict(Message("assistant", usage=Usage(1)).to_dict()).usage == Usage(1)
    assert Session([back, back]).usage == Usage(6, 8, 2, cost=1.0)
