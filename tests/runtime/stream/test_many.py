"""Many streams, one thread: `select` and `merge` take a stream as they take a channel. Laws 2, 8, 18."""

from __future__ import annotations

import gc
import importlib.util
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from channels import Cancelled, CancelToken, ChannelClosed, merge, select
from runtime import Agent, ConsumerCall, Runtime, Session, tool
from runtime.events import AgentChoice, StreamStopped
from support.scripted import AsyncScripted, Scripted, Stall, call, say

ROOT = Path(__file__).resolve().parents[3]


def test_merge_brings_every_event_of_each_stream_in_its_order() -> None:
    """With the index of the stream; each ends with its own last event."""
    said: dict[int, list[str]] = {0: [], 1: [], 2: []}
    ends: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    with Runtime(Agent("a", Echo())) as runtime:
        streams = [runtime.run_stream(Session.from_user(f"{name}1 {name}2 {name}3")) for name in "abc"]
        for index, event in merge(*streams):
            assert not ends[index], "something came after the last event"
            if isinstance(event, AgentChoice):
                said[index].append(event.content)
            elif isinstance(event, StreamStopped):
                ends[index].append(event.reason)
        assert [stream.result().reason for stream in streams] == ["normal"] * 3
    assert said == {index: [f"{name}1", f"{name}2", f"{name}3"] for index, name in enumerate("abc")}
    assert ends == {0: ["normal"], 1: ["normal"], 2: ["normal"]}


class Echo:
    """Says the prompt, word by word."""

    id = "echo"

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        yield from say(*messages[-1].content.split())


def test_select_waits_for_streams_beside_a_token_and_the_clock() -> None:
    """Whatever comes first; a timeout leaves the runs as they are."""
    token = CancelToken()
    idle: list[Any] = []
    agent = Agent("a", Scripted([*say("x"), (stall := Stall()), *say("y")]))
    with stall, Runtime(agent) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        while True:
            try:
                index, _, ok, case = select(stream, token.done, timeout=0.05)
            except TimeoutError:
                idle.append(stream.reason)
                token.cancel("enough")
                continue
            if index == 1:
                break
            assert ok
            assert case is stream
        assert idle == [None]
        stall.go_on.set()
        assert stream.result().text == "xy"
        assert select(stream).ok is False


def test_law_18_a_stream_that_is_cancelled_wakes_the_select(threads: Any) -> None:
    """With its last event."""
    with Stall() as stall, Runtime(Agent("a", Scripted([*say("x"), stall]))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        while not isinstance(stream.recv(), AgentChoice):  # the last before it stands still
            pass
        selecting = threads.go(select, stream)
        threads.parked(stream, receivers=1)
        stream.cancel()
        assert isinstance(selecting.result().value, StreamStopped)
        stall.go_on.set()
        stream.close()


@pytest.mark.parametrize("how", ["break", "raise", "cancel"])
def test_law_8_leaving_the_block_ends_the_streams(how: str) -> None:
    """However the loop over them is left."""
    token = CancelToken()
    reasons = []

    def drive(runtime: Runtime) -> None:
        with runtime.run_stream(Session.from_user("one")) as one, runtime.run_stream(Session.from_user("two")) as two:
            try:
                for _, event in merge(one, two, cancel=token):
                    if isinstance(event, AgentChoice):
                        if how == "break":
                            break
                        if how == "raise":
                            raise LookupError
                        token.cancel("enough")
            finally:
                one.close()
                two.close()
                reasons.extend([one.reason, two.reason])

    with Runtime(Agent("a", AsyncScripted(*[[*say("x"), _never]] * 2))) as runtime:
        expected: Any = {"break": (), "raise": LookupError, "cancel": Cancelled}[how]
        if expected:
            with pytest.raises(expected):
                drive(runtime)
        else:
            drive(runtime)
        assert not runtime._shared.cores
    assert reasons == ["canceled", "canceled"]


async def _never() -> None:
    import asyncio

    await asyncio.Event().wait()


def test_law_8_ctrl_c_in_a_select(threads: Any, interrupt: Any) -> None:
    """It leaves the block, which ends the streams: `select` itself knows nothing of them."""
    opened: list[Any] = []
    ready = threading.Event()

    def drive(runtime: Runtime) -> None:
        with runtime.run_stream(Session.from_user("one")) as one, runtime.run_stream(Session.from_user("two")) as two:
            opened.extend([one, two])
            ready.set()
            for _ in merge(one, two):
                pass

    with Runtime(Agent("a", AsyncScripted(*[[*say("x"), _never]] * 2))) as runtime:
        driving = threads.go(drive, runtime)
        assert ready.wait(10)
        threads.parked(opened[0], receivers=1)
        threads.asleep(driving)
        interrupt(driving)
        runtime._shared.cores.copy().pop().gone.cancel("wake up")  # a thread that is parked runs no Python code
        driving.raises(KeyboardInterrupt)
        assert [stream.reason for stream in opened] == ["canceled", "canceled"]
        opened.clear()


def test_law_8_streams_that_only_a_merge_holds() -> None:
    """Dropping that drops them."""
    with Runtime(Agent("a", AsyncScripted(*[[*say("x"), _never]] * 2))) as runtime:
        merged = merge(*(runtime.run_stream(Session.from_user("go")) for _ in range(2)))
        while not isinstance(next(merged)[1], AgentChoice):
            pass
        cores = list(runtime._shared.cores)
        del merged
        gc.collect()
        for core in cores:
            with pytest.raises(ChannelClosed):
                core.over.recv(timeout=10)
            assert core.ending.reason == "canceled"


def test_a_tool_for_the_consumer_is_handed_out() -> None:
    """`select` and `merge` know nothing of tools: who uses them makes the call."""
    ran: list[int] = []

    @tool(read_only=True, on="consumer")
    def here() -> str:
        """Belongs to this thread."""
        ran.append(threading.get_ident())
        return "done"

    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted([call("here")], say("ok")), tools=[here])) as runtime:
        stream = runtime.run_stream(session)
        for _, event in merge(stream):
            if isinstance(event, ConsumerCall):
                event.run()
        assert stream.result().text == "ok"
    assert ran == [threading.get_ident()]
    assert session.messages[2].content == "done"


def test_the_race_of_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The first good answer wins, not the first; the loser is cut off, and paid for no word that it did not say."""
    spec = importlib.util.spec_from_file_location("race", ROOT / "examples" / "race.py")
    assert spec is not None
    assert spec.loader is not None
    race = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(race)
    race.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "hasty: About four hundred. "
    assert lines[2] == "The winner is careful."
    paid = {name: int(words) for name, words in re.findall(r"(\w+) is paid for (\d+) words", "\n".join(lines))}
    assert paid["hasty"] == 3
    assert paid["careful"] == 14
    assert paid["thorough"] < len(race.agents[2].model.text.split())
