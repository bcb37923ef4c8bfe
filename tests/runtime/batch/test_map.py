"""`Runtime.map`: the results of many sessions as their runs end, a few runs at a time."""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import gc
import io
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from channels import Channel
from channels.aio import default_loop
from runtime import Agent, Budget, RunError, Runtime, Session, SessionBusy, ToolContext, UsageDelta, tool
from runtime.events import ElicitationRequest, StreamStopped, ToolCallConfirmation
from runtime.recording import Recording
from runtime.stores import MemoryStore
from support.interrupts import between, press_ctrl_c
from support.scripted import Stall, approving, call, say
from support.waiting import eventually

LONG = 10.0


class Echo:
    """Says the prompt. What a prompt stands for in ``does`` is done first."""

    id = "echo"

    def __init__(self, **does: Any) -> None:
        self.does = does

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
        prompt = messages[-1].content
        if prompt in self.does:
            self.does[prompt]()
        yield from say(prompt.upper())


def fail() -> None:
    raise ValueError("no such word")


def streams() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lockgate-stream")]


def test_each_session_comes_back_with_its_result() -> None:
    """Sessions and prompts; a prompt becomes a session."""
    given = Session.from_user("a")
    with Runtime(Agent("a", Echo())) as runtime:
        pairs = list(runtime.map([given, "b", "c"], limit=2))
    assert sorted(result.text for _, result in pairs) == ["A", "B", "C"]
    for session, result in pairs:
        assert session.messages[-1].content == result.text
        assert (result.reason, result.error) == ("normal", None)
    assert any(session is given for session, _ in pairs)


def test_results_come_in_the_order_in_which_the_runs_end() -> None:
    with Stall() as first, Stall() as second, Runtime(Agent("a", Echo(a=first, b=second))) as runtime:
        order = []
        for _, result in runtime.map(["a", "b", "c"]):
            order.append(result.text)
            (second if len(order) == 1 else first).go_on.set()
    assert order == ["C", "B", "A"]


def test_a_run_that_fails_does_not_end_the_others() -> None:
    """Its result has the error that `run` would have raised, and what there was until then."""
    with Runtime(Agent("a", Echo(bad=fail))) as runtime:
        results = {session.messages[0].content: result for session, result in runtime.map(["a", "bad", "b"], limit=1)}
    assert results["a"].text == "A"
    assert results["b"].text == "B"
    error = results["bad"].error
    assert isinstance(error, RunError)
    assert (error.code, results["bad"].reason, results["bad"].text) == ("model_error", "error", "")
    assert isinstance(error.__cause__, ValueError)


def test_a_failed_run_tells_what_it_has_used() -> None:
    """Who adds up what a batch has cost would miss it."""

    class Breaks:
        id = "breaks"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            yield from say("half ")
            yield UsageDelta(input_tokens=7, output_tokens=2)
            raise ValueError("gone")

    with Runtime(Agent("a", Breaks())) as runtime:
        ((_, result),) = runtime.map(["go"])
    assert result.error is not None
    assert (result.usage.input_tokens, result.text, len(result.messages)) == (7, "half ", 1)


def test_a_session_that_cannot_be_run_does_not_end_the_others() -> None:
    with Stall() as stall, Runtime(Agent("a", Echo(busy=stall))) as runtime:
        busy = Session.from_user("busy")
        with runtime.run_stream(busy):
            pairs = list(runtime.map([busy, "b"]))
            stall.go_on.set()
    (refused,) = [result for session, result in pairs if session is busy]
    assert isinstance(refused.error, SessionBusy)
    assert refused.reason == "error"
    assert [result.text for session, result in pairs if session is not busy] == ["B"]


def test_at_most_limit_runs_at_once_and_sessions_are_taken_one_by_one() -> None:
    """Also where results are waiting to be taken: an iterator without an end is not run through."""
    running = most = 0
    lock = threading.Lock()
    together = threading.Barrier(3)

    class Counts:
        id = "counts"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            together.wait(LONG)  # three are there at once, or this breaks
            with lock:
                running -= 1
            yield from say("x")

    taken = []

    def sessions() -> Iterator[str]:
        while True:
            taken.append(len(taken))
            yield "go"

    with Runtime(Agent("a", Counts())) as runtime, runtime.map(sessions(), limit=3) as results:
        assert taken == []
        for number, _ in enumerate(results, 1):
            assert len(taken) <= number + 2
            if number == 6:
                break
    assert most == 3


def test_runs_go_on_while_the_consumer_is_busy() -> None:
    """With more events than a stream buffers, and with observers, too: nobody reads them meanwhile."""
    seen: list[Any] = []

    class Watches:
        def on_event(self, session: Any, event: Any) -> None:
            seen.append(event.type)

    for observers in ([], [Watches()]):
        done = threading.Event()

        class Long:
            id = "long"

            def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
                if messages[-1].content == "long":
                    first.wait(LONG)
                    yield from say(*["x"] * 50)
                    done.set()
                else:
                    yield from say("short")

        first = threading.Event()
        with Runtime(Agent("a", Long()), event_capacity=4, observers=observers) as runtime:
            results = runtime.map(["long", "short"])
            assert next(results)[1].text == "short"
            first.set()
            assert done.wait(LONG), "the run waits for somebody to read its events"
            assert next(results)[1].text == "x" * 50
    assert seen.count("agent_choice") == 51


def test_the_consumer_is_woken_by_ends_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by each of a thousand words: nobody reads them."""
    from runtime.batch import _runs

    woken = []

    def merge(*receivers: Any) -> Iterator[Any]:
        for pair in real(*receivers):
            woken.append(pair[1].type)
            yield pair

    real = _runs.merge
    monkeypatch.setattr(_runs, "merge", merge)

    class Talks:
        id = "talks"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            yield from say(*["x"] * 1000)

    with Runtime(Agent("a", Talks())) as runtime:
        assert [len(result.text) for _, result in runtime.map(["ab"] * 2)] == [1000] * 2
    assert woken == ["stream_stopped"] * 2


def test_break_cancels_the_runs_that_are_under_way() -> None:
    with Stall() as stall, Runtime(Agent("a", Echo(a=stall, b=stall)), grace=0.05) as runtime:
        sessions = [Session.from_user(text) for text in "abc"]
        for session, _ in runtime.map(sessions):
            assert session is sessions[2]
            assert eventually(lambda: len(streams()) >= 2)  # a thread takes its name when it comes to run
            break
        assert eventually(lambda: not streams())
        stall.go_on.set()
        for session in sessions:  # they are free again
            assert runtime.run(session).reason == "normal"


def test_an_exception_in_the_loop_cancels_them_too() -> None:
    with Stall() as stall, Runtime(Agent("a", Echo(a=stall)), grace=0.05) as runtime:
        with pytest.raises(KeyError, match="mine"):
            for _ in runtime.map(["a", "b"]):
                raise KeyError("mine")
        assert eventually(lambda: not streams())


def test_closing_cancels_all_at_once_and_twice_is_harmless(caplog: pytest.LogCaptureFixture) -> None:
    """What does not end in time is named in the log."""
    with Stall() as stall, Runtime(Agent("a", Echo(a=stall)), grace=0.05) as runtime:
        with runtime.map(["a", "b"]) as results:
            assert next(results)[1].text == "B"
            assert stall.reached.wait(10)
        results.close()
        assert list(results) == []
        assert eventually(lambda: not streams())
    assert "model echo" in caplog.text


def test_many_that_are_stuck_are_waited_for_together() -> None:
    """Not for as long as each may take, one after the other."""
    prompts = [f"p{number}" for number in range(6)]
    with Stall() as stall, Runtime(Agent("a", Echo(**dict.fromkeys(prompts, stall))), grace=1) as runtime:
        results = runtime.map([*prompts, "last"])
        assert next(results)[1].text == "LAST"
        began = time.monotonic()
        results.close()
        assert time.monotonic() - began < 4  # of 6
        stall.go_on.set()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c_cancels_all(threads: Any) -> None:
    """Also the one that comes while it waits for the next result."""
    with Stall() as stall, Runtime(Agent("a", Echo(a=stall, b=stall)), grace=0.05) as runtime:
        sessions = [Session.from_user(text) for text in "abc"]
        waiting = threading.Event()
        threads.go(lambda: waiting.wait(LONG) and threads.ctrl_c())
        with pytest.raises(KeyboardInterrupt):
            for _ in runtime.map(sessions):
                waiting.set()
        assert eventually(lambda: not streams())
        stall.go_on.set()
        assert [runtime.run(session).reason for session in sessions] == ["normal"] * 3


def test_an_interrupt_anywhere_leaves_no_run_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps of it: no stream goes on, and the sessions are free again."""
    number, step, runs = 0, 17, 0
    monkeypatch.setattr(sys, "unraisablehook", lambda args: None)  # in a finalizer it is lost, as everything there
    with Runtime(Agent("a", Echo())) as runtime:
        while True:
            sessions = [Session.from_user(text) for text in "abc"]
            happened = False

            def consume() -> None:
                with contextlib.suppress(KeyboardInterrupt):
                    for _ in runtime.map(sessions, limit=2):
                        pass

            happened = between(number, consume, press_ctrl_c)
            gc.collect()  # a stream that was not handed over yet is cancelled where it is dropped
            assert eventually(lambda: not runtime._shared.cores), number
            for session in sessions:
                assert runtime.run(session).reason == "normal"
            if not happened:
                break
            number += step
            runs += 1
    assert runs > 20


def test_one_thread_iterates(threads: Any) -> None:
    """Another one, and a function that is called from within, are told so."""
    with Stall() as stall, Runtime(Agent("a", Echo(a=stall))) as runtime:
        runs = runtime.map(["a"])
        waiting = threads.go(next, runs)
        assert stall.reached.wait(10)
        for act in (lambda: next(runs), runs.close):
            with pytest.raises(RuntimeError, match="one thread iterates"):
                act()
        stall.go_on.set()
        assert waiting.result()[1].reason == "normal"
        assert list(runs) == []


def test_nothing_starts_before_the_first_result_is_asked_for() -> None:
    def sessions() -> Iterator[str]:
        raise AssertionError("nobody has asked")
        yield ""

    with Runtime(Agent("a", Echo())) as runtime:
        runtime.map(sessions())
        with runtime.map(sessions()):
            pass


def test_an_exception_of_the_sessions_cancels_all_and_is_raised() -> None:
    def sessions() -> Iterator[str]:
        yield "a"
        raise OSError("the file is gone")

    with Stall() as stall, Runtime(Agent("a", Echo(a=stall)), grace=0.05) as runtime:
        with pytest.raises(OSError, match="gone"):
            list(runtime.map(sessions()))
        assert eventually(lambda: not streams())


def test_sessions_from_a_channel_are_waited_for_together_with_the_runs(threads: Any) -> None:
    """A result does not wait for the next session, nor a session for a result."""
    prompts: Channel[str] = Channel()
    results: Channel[str] = Channel()
    with Stall() as stall, Runtime(Agent("a", Echo(a=stall))) as runtime:

        def consume() -> None:
            with results:
                for _, result in runtime.map(prompts.receiver, limit=2):
                    results.send(result.text)

        task = threads.go(consume)
        prompts.send("a", LONG)
        prompts.send("b", LONG)
        assert results.recv(LONG) == "B"  # while "a" goes on, and nobody sends
        prompts.send("c", LONG)
        assert results.recv(LONG) == "C"
        stall.go_on.set()
        assert results.recv(LONG) == "A"
        prompts.close()
        assert list(results) == []
        task.result()


def test_a_channel_of_sessions_is_read_only_where_there_is_room(threads: Any) -> None:
    prompts: Channel[str] = Channel(8)
    for text in "abc":
        prompts.send(text)
    prompts.close()
    with Stall() as stall, Runtime(Agent("a", Echo(a=stall))) as runtime:
        task = threads.go(lambda: [result.text for _, result in runtime.map(prompts, limit=1)])
        assert stall.reached.wait(LONG)
        assert len(prompts) == 2
        stall.go_on.set()
        assert task.result() == ["A", "B", "C"]


def test_questions_are_answered_in_the_thread_that_iterates() -> None:
    @tool(read_only=True)
    def ask(context: ToolContext) -> str:
        """Asks."""
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        return str(context.elicit("How many?", schema).content["n"])

    @tool
    def write() -> str:
        """Writes."""
        return "written"

    class Asks:
        id = "asks"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            last = messages[-1]
            yield from [call(last.content)] if last.role == "user" else say(last.content)

    asked = []

    def answer(event: Any) -> Any:
        asked.append((event.type, event.session_id, threading.current_thread()))
        return {"n": 4} if isinstance(event, ElicitationRequest) else isinstance(event, ToolCallConfirmation)

    with Runtime(Agent("a", Asks(), tools=[ask, write])) as runtime:
        pairs = list(runtime.map(["ask", "write"], on_request=answer))
        assert sorted(result.text for _, result in pairs) == ["4", "written"]
        assert {session for _, session, _ in asked} == {session.id for session, _ in pairs}
        assert {thread for *_, thread in asked} == {threading.current_thread()}
        ((_, result),) = runtime.map(["ask"])  # nobody to ask: declined at once
        assert "decline" in result.messages[1].content or result.messages[1].is_error


def test_an_exception_of_on_request_cancels_all_and_is_raised() -> None:
    @tool
    def write() -> str:
        """Writes."""
        return "written"

    class Asks:
        id = "asks"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            yield call("write")

    with Runtime(Agent("a", Asks(), tools=[write])) as runtime:
        with pytest.raises(ZeroDivisionError):
            list(runtime.map(["a", "b"], on_request=lambda event: 1 / 0))
        assert streams() == []


def test_tools_for_the_consumer_run_in_the_thread_that_iterates() -> None:
    ran = []

    @tool(on="consumer")
    def here() -> str:
        """Runs here."""
        ran.append(threading.current_thread())
        return "here"

    class Calls:
        id = "calls"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            yield from [call("here")] if messages[-1].role == "user" else say("done")

    with approving(Agent("a", Calls(), tools=[here])) as runtime:
        assert [result.text for _, result in runtime.map(["a", "b"])] == ["done"] * 2
    assert ran == [threading.current_thread()] * 2


def test_context_variables_of_the_caller_are_seen() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")

    class Says:
        id = "says"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            yield from say(variable.get())

    variable.set("mine")
    with Runtime(Agent("a", Says())) as runtime:
        assert [result.text for _, result in runtime.map(["a"])] == ["mine"]


def test_output_types_and_budgets_are_for_each_run() -> None:
    class Numbers:
        id = "numbers"

        def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Iterator[Any]:
            yield UsageDelta(input_tokens=6, output_tokens=1)
            yield from say(messages[-1].content)

    with Runtime(Agent("a", Numbers())) as runtime:
        pairs = list(runtime.map(["1", "2", "3"], output_type=int, budget=Budget(tokens=10)))
    assert sorted(result.output for _, result in pairs) == [1, 2, 3]


def test_each_run_has_a_record_of_its_own_where_one_is_asked_for(tmp_path: Path) -> None:
    def record(session: Session) -> Path | None:
        asked.append(threading.current_thread())
        return None if session.messages[0].content == "b" else tmp_path / f"{session.id}.jsonl"

    asked: list[threading.Thread] = []
    with Runtime(Agent("a", Echo(c=fail))) as runtime:
        results = dict(runtime.map(list("abc"), limit=2, record=record))
    assert asked == [threading.current_thread()] * 3
    recorded = {session.messages[0].content: tmp_path / f"{session.id}.jsonl" for session in results}
    assert [recorded[prompt].exists() for prompt in "abc"] == [True, False, True]
    for prompt, reason in (("a", "normal"), ("c", "error")):
        last = list(Recording(recorded[prompt]).events())[-1]
        assert isinstance(last, StreamStopped)
        assert last.reason == reason


@pytest.mark.parametrize("error", [KeyError("no file for it"), FileNotFoundError("no folder")])
def test_a_record_that_cannot_be_made_cancels_all_and_is_raised(tmp_path: Path, error: Exception) -> None:
    def record(session: Session) -> Path:
        if session.messages[0].content == "wait":
            return tmp_path / "record.jsonl"
        if isinstance(error, KeyError):
            raise error
        return tmp_path / "nowhere" / "record.jsonl"

    session = Session.from_user("wait")
    with Stall() as stall, Runtime(Agent("a", Echo(wait=stall)), grace=1) as runtime:
        with pytest.raises(type(error)):
            list(runtime.map([session, "b"], limit=2, record=record))
        assert eventually(lambda: not streams())
    assert session._lease is None
    assert list(Recording(tmp_path / "record.jsonl").events())[-1].type == "stream_stopped"


def test_with_a_store_the_sessions_are_in_it() -> None:
    store = MemoryStore()
    with Runtime(Agent("a", Echo()), store=store) as runtime:
        ids = [session.id for session, _ in runtime.map(["a", "b"])]
        assert {store.load(id).messages[-1].content for id in ids} == {"A", "B"}
        again = [store.load(id) for id in ids]
        for session in again:
            session.add_user("c")
        assert [result.text for _, result in runtime.map(again)] == ["C", "C"]


@pytest.mark.parametrize(
    ("sessions", "more", "says"),
    [
        ("hello", {}, "many sessions"),
        (Session.from_user("hello"), {}, "many sessions"),
        (7, {}, "many sessions"),
        (["a"], {"limit": 0}, "limit must be a whole number"),
        (["a"], {"limit": True}, "limit must be a whole number"),
        (["a"], {"budget": 10}, "budget"),
        (["a"], {"on_request": 10}, "on_request"),
        (["a"], {"record": "runs"}, "record must be a function that gets a session"),
        ([7], {}, "each item of map"),
    ],
)
def test_wrong_arguments_are_named(sessions: Any, more: Any, says: str) -> None:
    with Runtime(Agent("a", Echo())) as runtime, pytest.raises((TypeError, ValueError), match=says):
        list(runtime.map(sessions, **more))


def test_a_coroutine_on_our_own_loop_is_told_to_use_a_thread() -> None:
    """It would hold up every asynchronous tool and model."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"Runtime\.map.*to_thread"):
            runtime.map(["a"])

    with Runtime(Agent("a", Echo())) as runtime:
        default_loop().call(main)


def test_a_closed_runtime_maps_nothing() -> None:
    runtime = Runtime(Agent("a", Echo()))
    runtime.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(runtime.map(["a"]))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `rich`; it has no thread, and is complete at the end."""
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    before = threading.active_count()
    with Runtime(Agent("a", Echo(b=fail))) as runtime:
        for _ in runtime.map(["a", "b"], limit=1, progress=True):
            pass
    assert threading.active_count() <= before + 2  # of the runtime, idle
    assert "2/2" in terminal.getvalue()
    assert "1 failed" in terminal.getvalue()


@pytest.mark.parametrize("file", [Terminal, io.StringIO])
def test_progress_without_rich_is_a_line(monkeypatch: pytest.MonkeyPatch, file: Any) -> None:
    """Written anew on a terminal, and once into a file."""

    def without(name: str, *more: Any) -> Any:
        if name.startswith("rich"):
            raise ImportError(name)
        return real(name, *more)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(sys, "stderr", written := file())
    with Runtime(Agent("a", Echo(b=fail))) as runtime:
        list(runtime.map(iter(["a", "b"]), limit=1, progress=True))
        list(runtime.map(["a"], progress=True))
    if isinstance(written, Terminal):
        assert written.getvalue() == (
            "\r1 runs ended\r2 runs ended, 1 failed\r2 runs ended, 1 failed\n\r1 of 1 runs ended\r1 of 1 runs ended\n"
        )
    else:
        assert written.getvalue() == "2 runs ended, 1 failed\n1 of 1 runs ended\n"


def test_progress_does_not_end_the_runs_where_nobody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without standard error, as under pythonw, and with one that is closed."""
    with Runtime(Agent("a", Echo())) as runtime:
        monkeypatch.setattr(sys, "stderr", None)
        assert len(list(runtime.map(["a"], progress=True))) == 1
        closed = io.StringIO()
        monkeypatch.setattr(sys, "stderr", closed)
        results = runtime.map(["a", "b"], progress=True)
        closed.write("")
        next(results)
        closed.close()
        assert len(list(results)) == 1
