"""A dump says what each live stream waits for, and can be made while everything is stuck, also in a signal handler."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import runtime.dump
from channels import Channel, Parked, parked
from runtime import Agent, EventStream, HookInput, Runtime, Session, ToolContext, tool
from runtime.dump import Dump, StreamDump
from runtime.events import ElicitationRequest, ToolCallConfirmation
from runtime.execution import _driver
from runtime.execution._threads import Running, idle_threads, start
from runtime.execution._threads import launch as launch_now
from runtime.inspection import _look
from runtime.recording import Recording
from runtime.stores import MemoryStore
from runtime.stores._memory import MemoryJournal
from runtime.stream._core import StreamCore
from support.scripted import AsyncScripted, Scripted, Stall, approving, call, say
from support.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]
SECRET = "sk-" + "a1B2" * 8


def only(dump: Dump) -> StreamDump:
    (stream,) = dump.streams
    json.dumps(dump.to_dict())
    assert f"stream {stream.number}: agent" in str(dump)
    return stream


def until(runtime: Runtime, kind: str) -> StreamDump:
    """The dump, once the only stream waits for something of this kind."""
    assert eventually(lambda: any(wait.kind == kind for wait in only(runtime.dump()).waits)), str(runtime.dump())
    return only(runtime.dump())


@pytest.fixture
def stall() -> Iterator[Stall]:
    with Stall() as stall:
        yield stall


def test_a_runtime_without_streams_has_an_empty_dump() -> None:
    with Runtime(Agent("idle", Scripted())) as runtime:
        dump = runtime.dump()
    assert dump.streams == ()
    assert dump.process == os.getpid()
    assert str(dump).startswith(f"lockgate process {os.getpid()} at {dump.time}: 0 live streams")


def test_the_call_of_a_tool_has_its_thread_stack_and_arguments_without_secrets(stall: Stall) -> None:
    @tool(read_only=True)
    def look(query: str, api_key: str) -> str:
        stall()
        return "found"

    arguments = json.dumps({"query": f"\x1b[2Jwith {SECRET}", "api_key": "hunter2hunter2"})
    model = Scripted([call("look", arguments)], say("done"))
    session = Session.from_user("go")
    with Runtime(Agent("seeker", model, tools=[look])) as runtime, runtime.run_stream(session) as stream:
        assert stall.reached.wait(10)
        found = until(runtime, "tool")
        assert (found.agent_name, found.session_id, found.turn) == ("seeker", session.id, 1)
        assert found.session_holder == f"stream {found.number}"
        assert (found.parent, found.reason, found.interactive) == (None, "", True)
        assert found.capacity == 128
        assert found.events == len(stream._core.out) > 0
        (wait,) = found.waits
        assert (wait.kind, wait.what) == ("tool", "tool look")
        assert 0 <= wait.seconds <= found.seconds
        (made,) = found.calls
        assert made.thread_name == f"lockgate-stream-{found.number}"
        assert made.tool_call_id == "call-1"
        assert made.stack.splitlines()[0].endswith(", in look")  # what called the tool is ours, and the same for all
        assert "stall()" in made.stack
        assert made.arguments.startswith('{"query": "\\u001b[2Jwith <redacted>"')
        (thread,) = found.threads
        assert thread.name == f"lockgate-stream-{found.number}"
        assert "in look\n" in thread.stack
        text = str(runtime.dump())
        assert SECRET not in text
        assert "hunter2" not in text
        assert "\x1b" not in text
        assert "waits for tool look, for 0." in text
        stall.go_on.set()
        stream.result()
        assert stream.reason == "normal"
    assert runtime.dump().streams == ()


@pytest.mark.parametrize("model", [Scripted, AsyncScripted])
def test_a_model_that_says_nothing(model: type[Scripted], stall: Stall) -> None:
    async def wait() -> None:
        while not stall.go_on.is_set():
            stall.reached.set()
            await asyncio.sleep(0.001)

    with Runtime(Agent("slow", model([wait if model is AsyncScripted else stall, *say("x")]))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        found = until(runtime, "model")
        assert found.waits[0].what == "model scripted"
        assert [each.what for each in found.calls] == ["model scripted"]
        assert found.calls[0].stack
        stall.go_on.set()
        stream.result()


def test_a_task_has_the_stack_of_its_coroutines() -> None:
    go_on = threading.Event()

    @tool(read_only=True)
    async def wander() -> str:
        async def deeper() -> None:
            while not go_on.is_set():
                await asyncio.sleep(0.001)

        await deeper()
        return "back"

    with Runtime(Agent("a", Scripted([call("wander")], say("x")), tools=[wander])) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        found = until(runtime, "tool")
        assert found.calls[0].thread_name == "event loop"
        assert eventually(lambda: "in deeper\n" in only(runtime.dump()).calls[0].stack)
        go_on.set()
        stream.result()


def test_a_hook(stall: Stall) -> None:
    def at_start(given: HookInput) -> None:
        stall()

    with Runtime(Agent("a", Scripted(say("x")), hooks={"session_start": [at_start]})) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        found = until(runtime, "hook")
        assert "at_start" in found.waits[0].what
        assert found.turn == 0
        stall.go_on.set()
        stream.result()


def test_a_question_of_a_tool_and_a_confirmation() -> None:
    @tool
    def ask(context: ToolContext) -> str:
        return str(context.elicit(f"Is {SECRET} the key?").action)

    with Runtime(Agent("a", Scripted([call("ask")], say("x")), tools=[ask])) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        for event in stream:
            if isinstance(event, ToolCallConfirmation):
                found = until(runtime, "answer")
                assert found.questions[0].text == "may ask be called?"
                stream.approve(event)
            elif isinstance(event, ElicitationRequest):
                found = until(runtime, "answer")
                assert found.questions[0].id == event.elicitation_id
                assert found.questions[0].text == "Is <redacted> the key?"
                assert [wait.kind for wait in found.waits] == ["answer"]
                assert f"asks the user {event.elicitation_id}" in str(found)
                stream.respond(event, "decline")
        assert stream.reason == "normal"


def test_more_turns() -> None:
    model = Scripted([call("noop")], say("x"))

    @tool(read_only=True)
    def noop() -> str:
        return ""

    with Runtime(Agent("a", model, tools=[noop], max_iterations=1)) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        found = until(runtime, "answer")
        assert "more turns" in found.waits[0].what
        stream.cancel()
        stream.close()


@pytest.mark.parametrize("observed", [False, True])
def test_a_consumer_who_does_not_read(observed: bool) -> None:
    class Observer:
        def on_event(self, session: Session, event: Any) -> None: ...

    with Runtime(
        Agent("a", Scripted(say(*"many words"))), event_capacity=2, observers=[Observer()] if observed else []
    ) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        found = until(runtime, "consumer")
        assert (found.events, found.capacity) == (2, 2)
        assert "the consumer, who has 2 events to read" in found.waits[0].what
        stream.result()


def test_observers_that_do_not_come_to_an_end(stall: Stall) -> None:
    class Observer:
        def on_event(self, session: Session, event: Any) -> None:
            stall()

    with Runtime(
        Agent("a", Scripted(say(*"many words"))), event_capacity=2, observers=[Observer()], grace=10
    ) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        until(runtime, "observer")
        stall.go_on.set()
        stream.result()


def test_a_pause() -> None:
    @tool(read_only=True)
    def rest() -> str:
        runtime.pause(session)
        return ""

    session = Session.from_user("go")
    with Runtime(Agent("a", Scripted([call("rest")], say("x")), tools=[rest])) as runtime:
        stream = runtime.run_stream(session)
        found = until(runtime, "pause")
        assert found.waits[0].what == "the end of a pause"
        runtime.resume(session)
        stream.result()


def test_the_store(stall: Stall, monkeypatch: pytest.MonkeyPatch) -> None:
    append = MemoryJournal.append

    def slow(journal: MemoryJournal, *entries: Any, **settings: Any) -> None:
        stall()
        append(journal, *entries, **settings)

    @tool(read_only=True)
    def noop() -> str:
        return ""

    agent = Agent("a", Scripted([call("noop")], say("x")), tools=[noop])
    with Runtime(agent, store=MemoryStore()) as runtime:
        monkeypatch.setattr(MemoryJournal, "append", slow)
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        found = until(runtime, "store")
        assert found.waits[0].what == "the store"
        assert "in slow\n" in found.threads[0].stack
        stall.go_on.set()
        stream.result()


def test_a_nested_stream_names_its_parent(stall: Stall) -> None:
    inner = Agent("inner", Scripted([stall, *say("x")]))

    @tool(read_only=True)
    def delegate(context: ToolContext) -> str:
        return context.run_agent(inner, "go on").text

    with Runtime(Agent("outer", Scripted([call("delegate")], say("y")), tools=[delegate])) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        assert eventually(lambda: len(runtime.dump().streams) == 2)
        outer, nested = runtime.dump().streams
        assert (outer.agent_name, nested.agent_name) == ("outer", "inner")
        assert nested.parent == outer.number
        assert {each.what for each in outer.calls} == {"tool delegate", "agent inner"}
        assert f"nested in stream {outer.number}" in str(nested)
        stall.go_on.set()
        stream.result()


def test_a_call_that_has_not_begun(stall: Stall) -> None:
    """An executor of the user's that is full: the call is there, and has no thread."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(stall)
        assert stall.reached.wait(10)
        with Runtime(Agent("a", Scripted(say("x"))), executor=executor) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            found = until(runtime, "model")
            assert found.calls[0].thread_name == ""
            assert "call model scripted not begun" in str(found)
            stall.go_on.set()
            stream.result()


def test_the_redaction_of_the_record_is_the_one_that_counts(stall: Stall, tmp_path: Path) -> None:
    @tool(read_only=True)
    def look(query: str) -> str:
        stall()
        return "found"

    fails: list[bool] = []

    def redact(text: str) -> str:
        if fails:
            raise ValueError("of the user's own part")
        return text.replace("Mallory", "somebody")

    model = Scripted([call("look", '{"query": "Mallory"}')], say("done"))
    with Runtime(Agent("a", model, tools=[look])) as runtime:
        record = Recording(tmp_path / "run.jsonl", redact=redact)
        stream = runtime.run_stream(Session.from_user("go"), record=record)
        assert stall.reached.wait(10)
        assert until(runtime, "tool").calls[0].arguments == '{"query": "somebody"}'
        fails.append(True)
        assert until(runtime, "tool").calls[0].arguments == "<not shown: its redaction failed>"
        fails.clear()
        stall.go_on.set()
        stream.result()


def test_long_arguments_are_cut_after_their_secrets_are_out(stall: Stall) -> None:
    @tool(read_only=True)
    def look(text: str) -> str:
        stall()
        return ""

    text = "x" * 290 + " " + SECRET + " " + "y" * 100_000
    model = Scripted([call("look", json.dumps({"text": text}))], say("done"))
    with Runtime(Agent("a", model, tools=[look])) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        shown = until(runtime, "tool").calls[0].arguments
        assert len(shown) < 400
        assert "sk-" not in shown
        stall.go_on.set()
        stream.result()


def test_channels_are_there_with_who_is_parked(threads: Any) -> None:
    channel: Channel[int] = Channel(3, name="of the user")
    channel.send(1)
    channel.recv()
    task = threads.go(channel.recv)
    threads.parked(channel, receivers=1)

    def found() -> list[Any]:
        return [each for each in runtime.dump.dump().channels if "of the user" in each.name]

    assert eventually(found)
    (one,) = found()
    assert (one.buffered, one.capacity, one.closed) == (0, 3, False)
    assert one.parked[0].startswith(f"{task.thread.name}: recv, for ")
    assert "of the user" in str(runtime.dump.dump())
    channel.close()
    with pytest.raises(Exception, match="receive from"):
        task.result()


def test_idle_threads_are_counted() -> None:
    """Hundreds of them are left by a burst of streams, and say nothing."""
    with Runtime(Agent("a", Scripted(say("x")))) as runtime:
        runtime.run(Session.from_user("go"))
        assert eventually(lambda: runtime.dump().idle_threads > 0)
        lines = str(runtime.dump()).splitlines()
    assert any(line.endswith(("idle thread", "idle threads")) for line in lines)
    assert not any("lockgate-idle" in line for line in lines)


def test_all_runtimes_of_the_process(stall: Stall) -> None:
    with (
        Runtime(Agent("one", Scripted([stall]))) as first,
        Runtime(Agent("two", Scripted([stall]))) as second,
    ):
        streams = [each.run_stream(Session.from_user("go")) for each in (first, second)]
        assert {stream.agent_name for stream in runtime.dump.dump().streams} >= {"one", "two"}
        assert [stream.agent_name for stream in first.dump().streams] == ["one"]
        stall.go_on.set()
        for stream in streams:
            stream.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no such timer")
def test_a_signal_handler_makes_a_dump_while_its_thread_reads_a_stuck_stream(stall: Stall) -> None:
    seen: list[Dump] = []

    with Runtime(Agent("a", Scripted([stall, *say("x")]))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)

        def look(*_: object) -> None:
            dump = runtime.dump()
            if any(who.startswith(f"{reader}: recv") for channel in dump.channels for who in channel.parked):
                seen.append(dump)  # the first signals may come before it has parked
                stall.go_on.set()

        reader = threading.current_thread().name
        before = signal.signal(signal.SIGALRM, look)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            stream.result()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    found = only(seen[0])
    assert found.waits[0].kind == "model"


def test_dumps_are_made_while_streams_come_and_go(threads: Any, switching: None) -> None:
    @tool(read_only=True)
    def noop() -> str:
        return ""

    with approving(Agent("a", Scripted(*([call("noop")], say("x")) * 40), tools=[noop])) as runtime:
        done = threading.Event()

        def run() -> None:
            for _ in range(20):
                runtime.run(Session.from_user("go"))
            done.set()

        task = threads.go(run)
        while not done.is_set() and task.running:
            str(runtime.dump())
        task.result()


class Between:
    """Does something once, between two steps of a dump: before or when it was read what threads are parked in."""

    def __init__(
        self, patch: pytest.MonkeyPatch, when: Callable[[], object], before: Callable[[], object] | None = None
    ) -> None:
        self._when, self._before = [when], [before] if before is not None else []
        patch.setattr(_look, "parked", self)

    def __call__(self) -> list[Parked]:
        while self._before:
            self._before.pop()()
        found = parked()
        while self._when:
            self._when.pop()()
        return found


@pytest.mark.parametrize("worker", ["rested", "rested and rests again", "came to rest meanwhile"])
def test_what_a_tool_was_parked_in_is_not_said_of_its_worker(
    worker: str, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is the same, and the worker waits for its consumer by now."""
    inbox: Channel[int] = Channel(name="inbox of a tool")

    @tool(read_only=True)
    def wait() -> str:
        return str(inbox.recv())

    def agent() -> Agent:
        model = Scripted([call("wait")], say(*"many words"))
        return Agent("a", model, tools=[wait], hooks={"pre_tool_use": [hook]} if worker.startswith("came") else {})

    def hook(_: HookInput) -> None:
        stall()

    def begin() -> None:
        stall.go_on.set()
        assert eventually(lambda: is_parked_in(inbox))

    def go_on() -> None:
        inbox.send(1)
        assert eventually(lambda: core.events.statistics().waiting_to_send == 1)

    with approving(agent()) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        begin()
        capacity = len(stream._core.events)
        inbox.send(1)
        stall.go_on.clear()
    if worker.endswith("again"):
        capacity += 4
    with approving(agent(), event_capacity=capacity) as runtime, runtime.run_stream(Session.from_user("go")) as stream:
        core = stream._core
        if worker.startswith("came"):
            until(runtime, "hook")
            Between(monkeypatch, go_on, begin)
        else:
            begin()
            until(runtime, "tool")
            Between(monkeypatch, go_on)
        found = only(runtime.dump())
        assert [wait.kind for wait in found.waits] == ["running"]
        left = [("model scripted", "")] if worker.endswith("again") else []
        assert [(each.what, each.stack) for each in found.calls] == left
        until(runtime, "consumer")


def is_parked_in(channel: Channel[Any]) -> bool:
    return any(case.channel is channel for wait in parked() for case in wait.cases)


def test_what_a_thread_was_parked_in_before_it_had_the_worker_is_not_said_of_it(
    threads: Any, monkeypatch: pytest.MonkeyPatch, cold: None
) -> None:
    inbox: Channel[int] = Channel(name="inbox of a job")
    looked = threading.Event()

    def launch(running: Running) -> None:
        assert looked.wait(10)
        launch_now(running)

    def go_on() -> None:
        inbox.send(1)
        assert eventually(lambda: idle_threads() == 1)
        looked.set()
        assert eventually(lambda: only_core().events.statistics().waiting_to_send == 1)

    def only_core() -> StreamCore:
        [core] = runtime._shared.cores
        return core

    monkeypatch.setattr(_driver, "launch", launch)
    start(inbox.recv)
    with Runtime(Agent("a", Scripted(say("x"))), event_capacity=1) as runtime:
        opening = threads.go(runtime.run_stream, Session.from_user("go"))
        assert eventually(lambda: is_parked_in(inbox))
        assert eventually(lambda: runtime._shared.cores and only_core().threads)
        Between(monkeypatch, go_on)
        found = only(runtime.dump())
        assert ([wait.kind for wait in found.waits], found.threads[0].parked) == (["running"], "")
        until(runtime, "consumer")
        opening.result().result()


def test_a_thread_that_runs_another_stream_by_now_is_not_shown(monkeypatch: pytest.MonkeyPatch, cold: None) -> None:
    """Nor what it does there: the stream that it has run is over."""
    with Stall() as one, Stall() as two, Runtime(Agent("a", Scripted([one], [two]))) as runtime:
        first = runtime.run_stream(Session.from_user("go"))
        assert one.reached.wait(10)

        def go_on() -> None:
            one.go_on.set()
            first.result()
            assert eventually(lambda: idle_threads() == 1)
            streams.append(runtime.run_stream(Session.from_user("go")))
            assert two.reached.wait(10)

        streams: list[EventStream] = []
        Between(monkeypatch, go_on)
        (found,) = runtime.dump().streams
        assert [wait.kind for wait in found.waits] == ["none"]
        assert not any("__call__" in thread.stack for thread in found.threads)
        two.go_on.set()
        streams[0].result()


def test_a_stream_that_cannot_be_started_after_all_has_no_worker(monkeypatch: pytest.MonkeyPatch, stall: Stall) -> None:
    """It has lost its thread while it was looked at."""
    with Runtime(Agent("a", Scripted([stall]))) as runtime:
        stream = runtime.run_stream(Session.from_user("go"))
        assert stall.reached.wait(10)
        worker = list(stream._core.threads)
        Between(monkeypatch, stream._core.threads.clear)
        monkeypatch.setattr(stream._core, "driver", None)
        found = only(runtime.dump())
        assert ([wait.kind for wait in found.waits], found.threads) == (["none"], ())
        monkeypatch.undo()
        stream._core.threads[:] = worker
        stall.go_on.set()
        stream.result()


def test_a_call_that_has_begun_meanwhile_has_no_stack_yet_and_is_of_no_age(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its thread did something else when that was read."""
    with Stall() as one, Stall() as two:
        asked = tool(name="asked", read_only=True)(lambda: two() or "")
        with approving(Agent("a", Scripted([one, call("asked")], say("x")), tools=[asked])) as runtime:
            stream = runtime.run_stream(Session.from_user("go"))
            assert one.reached.wait(10)

            def go_on() -> None:
                one.go_on.set()
                assert two.reached.wait(10)

            monkeypatch.setattr(_look, "monotonic", lambda: 0.0)
            Between(monkeypatch, go_on)
            (made,) = only(runtime.dump()).calls
            assert (made.what, made.stack, made.seconds) == ("tool asked", "", 0.0)
            monkeypatch.undo()
            (made,) = only(runtime.dump()).calls
            assert "__call__" in made.stack
            two.go_on.set()
            stream.result()


# -- other processes ---------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, threading
import runtime.dump
from runtime import Agent, Runtime, Session, TextDelta

class Slow:
    id = "slow"
    def stream(self, messages, tools, *, cancel):
        cancel.done.recv(timeout=60)
        yield TextDelta("never")

listener = runtime.dump.listen()
with Runtime(Agent("far away", Slow())) as runtime_:
    stream = runtime_.run_stream(Session.from_user("go"))
    print(listener.path, flush=True)
    sys.stdin.readline()
    stream.cancel()
    stream.close()
listener.close()
listener.close()
"""


def ask(pid: int, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime.dump", str(pid), *more],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


pytestmark_unix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="the system has no Unix sockets")


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which processes listen, of this test alone."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    return directory / "lockgate"


@pytestmark_unix
def test_a_process_that_listens_is_asked(private: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        path = Path(process.stdout.readline().strip())
        assert path == private / f"dump-{process.pid}"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        said = ask(process.pid)
        assert said.returncode == 0, said.stderr
        assert "agent far away" in said.stdout
        assert "waits for model slow" in said.stdout
        assert said.stderr == ""
        data = json.loads(ask(process.pid, "--json").stdout)
        assert data["process"] == process.pid
        assert data["streams"][0]["agent_name"] == "far away"
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(20) == 0
    assert not path.exists()
    gone = ask(process.pid)
    assert gone.returncode == 1
    assert gone.stderr == f"error: there is no process {process.pid}\n"


@pytestmark_unix
def test_a_process_that_does_not_answer_is_told_from_one_that_cannot(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def why(process: int) -> str:
        with pytest.raises(runtime.dump.NotListening) as caught:
            runtime.inspection._listen.ask(process)
        return str(caught.value)

    assert why(os.getpid()) == (
        f"process {os.getpid()} does not listen: it has to call runtime.dump.listen(), with the same XDG_RUNTIME_DIR"
        " and TMPDIR as here"
    )
    assert why(0) == why(-5) == "the number of a process is positive"
    assert why(2**40) == f"there is no process {2**40}"

    def refused(process: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert why(1) == "process 1 is run by another user, and only its own user can ask it"


@pytestmark_unix
def test_a_directory_that_others_may_enter_is_refused(private: Path) -> None:
    private.mkdir(mode=0o755)
    private.chmod(0o755)
    with pytest.raises(PermissionError, match="mode 700"):
        runtime.dump.listen()
    refused = ask(os.getpid())
    assert refused.returncode == 1
    assert "mode 700" in refused.stderr
    private.rmdir()
    private.symlink_to("/tmp")
    with pytest.raises(PermissionError, match="has to be a directory of this user"):
        runtime.dump.listen()


@pytestmark_unix
def test_listening_twice_is_an_error_and_closing_ends_the_thread(private: Path) -> None:
    with runtime.dump.listen() as listener:
        with pytest.raises(RuntimeError, match="listens already"):
            runtime.dump.listen()
        assert str(listener.path) in repr(listener)
    assert not any(thread.name == "lockgate-dump" for thread in threading.enumerate())
    with runtime.dump.listen():  # and again
        assert ask(os.getpid()).returncode == 0


@pytestmark_unix
def test_nothing_is_left_of_processes_that_have_ended(private: Path, script: Any) -> None:
    """One that ends without closing takes its socket along; those of processes that were killed go with the next."""
    script("import runtime.dump; runtime.dump.listen()")
    assert list(private.iterdir()) == []
    (private / "dump-999999999").touch()
    (private / f"dump-{os.getppid()}").touch()
    (private / "notes").touch()
    with runtime.dump.listen() as listener:
        assert {path.name for path in private.iterdir()} == {listener.path.name, f"dump-{os.getppid()}", "notes"}


@pytestmark_unix
def test_one_who_connects_and_says_nothing_keeps_others_waiting_for_a_bounded_time(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr("runtime.inspection._listen.PATIENCE", 0.2)
    with runtime.dump.listen() as listener, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(listener.path))
        assert ask(os.getpid()).returncode == 0


@pytestmark_unix
def test_a_forked_child_does_not_listen(private: Path, script: Any) -> None:
    said = script(
        """
import os, warnings
import runtime.dump
warnings.simplefilter("ignore")  # Python warns of any fork with threads
with runtime.dump.listen() as listener:
    pid = os.fork()
    if pid == 0:
        with runtime.dump.listen() as own:
            print(own.path != listener.path, own.path.exists(), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    print(listener.path.exists())
"""
    )
    assert said.splitlines() == ["True True", "True"]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="the system has no SIGUSR1")
def test_the_command_prints_a_dump_on_sigusr1_and_goes_on(tmp_path: Path) -> None:
    agent = tmp_path / "agent.py"
    agent.write_text(
        """
import pathlib, time
from runtime import Agent, TextDelta
class Slow:
    id = "slow"
    def stream(self, messages, tools, *, cancel):
        pathlib.Path("reached").touch()
        while not pathlib.Path("go-on").exists():
            time.sleep(0.01)
        yield TextDelta("there it is")
agent = Agent("sloth", Slow())
"""
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.cli", "run", "agent.py", "go"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert eventually((tmp_path / "reached").exists, 20)
        time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        assert process.stderr is not None
        lines: list[str] = []
        while not any(line.endswith("in stream\n") for line in lines):
            line = process.stderr.readline()
            assert line, lines
            lines.append(line)
        (tmp_path / "go-on").touch()
        said, rest = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    assert "there it is" in said
    assert any(line.startswith(f"lockgate process {process.pid} at ") for line in lines)
    assert "  waits for model slow, for " in "".join(lines)
