"""The explorer on other modules: the bridge and the questions of ``runtime``. An example of its use elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interleave import CHANNELS, World, explore

MODULES = (*CHANNELS, "runtime/bridge.py", "runtime/_scope.py", "runtime/_asks.py")


def streams_and_a_question(world: World) -> Callable[[], None]:
    """Two streams come and go while a question is sent to whoever is there."""
    channels, bridge_module = world.load("channels"), world.load("runtime.bridge")
    stream_scope = world.load("runtime._scope").stream_scope
    bridge = bridge_module.ElicitationBridge()
    streams = [channels.Channel(4), channels.Channel(4)]
    sent: list[bool] = []

    def stream(channel: Any) -> None:
        with stream_scope(bridge, channel, final=lambda: "last"):
            pass

    def ask() -> None:
        try:
            bridge.send("question")
            sent.append(True)
        except channels.ChannelClosed:
            sent.append(False)

    for name, channel in zip("AB", streams, strict=True):
        world.spawn(name, lambda channel=channel: stream(channel))
    world.spawn("Q", ask)

    def check() -> None:
        assert not world.stuck
        assert len(bridge) == 0
        assert bridge.current is None
        got = [list(channel) for channel in streams]
        assert [values[-1] for values in got] == ["last", "last"]
        assert sum(values.count("question") for values in got) == sent[0]

    return check


def an_answer_and_an_end(world: World) -> Callable[[], None]:
    """A question is answered while its stream ends: settled once, and only one of them thinks that it did."""
    asks_module, tool = world.load("runtime._asks"), world.load("runtime.tool")
    asks = asks_module.Asks()
    settled: list[Any] = []
    refused: list[Exception] = []
    ask = asks_module.Ask("stream", "stream", "call", tool.Question("How many?"), settled.append)
    asks.register(ask, None)

    def answer() -> None:
        try:
            asks.answer(None, "accept", {})
        except asks_module.NotPending as error:
            refused.append(error)

    world.spawn("A", answer)
    world.spawn("B", answer)
    world.spawn("E", lambda: asks.withdraw("stream", "the stream has ended"))

    def check() -> None:
        assert not world.stuck
        assert len(settled) == 1
        assert len(refused) == (1 if settled[0].action == "accept" else 2)
        assert not asks.pending()

    return check


def test_bridge() -> None:
    assert explore(streams_and_a_question, preemptions=1, modules=MODULES).complete


def test_asks() -> None:
    assert explore(an_answer_and_an_end, preemptions=2, modules=MODULES).complete
