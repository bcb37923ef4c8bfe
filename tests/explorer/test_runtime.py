"""The explorer on other modules: the bridge and the questions of ``runtime``. An example of its use elsewhere."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import runtime  # noqa: F401  (its copies look their annotations up in `sys.modules`)
from interleave import CHANNELS, World, explore

MODULES = (*CHANNELS, "runtime/human/_bridge.py", "runtime/stream/_scope.py", "runtime/human/_asks.py")
PUMP = (*CHANNELS, "runtime/execution/_pump.py")
THREADS = (*CHANNELS, "runtime/execution/_threads.py")
CALLS = (*PUMP, "runtime/execution/_calls.py")
WORKERS = (*CHANNELS, "channels/_standby.py", "runtime/execution/_driver.py")
READINGS = (*WORKERS, "runtime/execution/_reading.py", "runtime/execution/_errands.py")


def streams_and_a_question(world: World) -> Callable[[], None]:
    """Two streams come and go while a question is sent to whoever is there."""
    channels, bridge_module = world.load("channels"), world.load("runtime.human._bridge")
    stream_scope = world.load("runtime.stream._scope").stream_scope
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


def _asks(world: World) -> tuple[Any, Any]:
    """The questions of a runtime, and the module; with a timer thread of this run."""
    world.load("channels._timer")._clock._reset()
    module = world.load("runtime.human._asks")
    return module.Asks(), module


def an_answer_and_an_end(world: World) -> Callable[[], None]:
    """A question is answered while its stream ends: settled once, and only one of them thinks that it did."""
    (asks, asks_module), tool = _asks(world), world.load("runtime.agent._tool")
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
        assert all(answer is settled[0] for answer in settled)  # said twice, it may be, but one of them
        assert len(refused) == (1 if settled[0].action == "accept" else 2)
        assert not asks.pending()
        assert not asks._pending

    return check


def an_answer_that_is_interrupted(world: World) -> Callable[[], None]:
    """Ctrl-C in the middle of an answer, while another thread answers too: delivered, or still pending."""
    (asks, asks_module), tool = _asks(world), world.load("runtime.agent._tool")
    settled: list[Any] = []
    refused: list[Exception] = []
    ask = asks_module.Ask("stream", "stream", "call", tool.Question("How many?"), settled.append)
    asks.register(ask, None)

    def answer() -> None:
        try:
            asks.answer(ask.id, "accept", {})
        except asks_module.NotPending as error:
            refused.append(error)

    world.spawn("A", answer, interruptible=True)
    world.spawn("B", answer, interruptible=True)

    def check() -> None:
        assert not world.stuck
        if asks.pending():
            assert not settled
            assert not ask.written
        else:
            answer()  # where it has hit both the answerer and its rescue, whoever comes next delivers
            assert settled
        assert all(answer is settled[0] for answer in settled)
        assert not asks._pending or asks.pending()

    return check


def an_answer_in_a_handler(world: World) -> Callable[[], None]:
    """A signal handler answers another call in the middle of an answer of the same thread: the worker hears of both."""
    (asks, asks_module), tool, channels = _asks(world), world.load("runtime.agent._tool"), world.load("channels")
    inbox = channels.Channel(8)
    made = [
        asks_module.Ask("stream", "stream", i, tool.Question("?"), lambda answer, i=i: inbox.try_send(i))
        for i in (0, 1)
    ]
    for ask in made:
        asks.register(ask, None)

    def answer(ask: Any) -> None:
        asks.answer(ask.id, "accept", {})

    heard: set[int] = set()

    def worker() -> None:
        while heard != {0, 1}:
            heard.add(inbox.recv())

    world.spawn("A", lambda: answer(made[0]), nested=lambda: answer(made[1]) if not made[1].written else None)
    world.spawn("W", worker, daemon=True)

    def check() -> None:
        assert 0 in heard
        assert (1 in heard) == bool(made[1].written)

    return check


def _pumping(world: World, ahead: int) -> tuple[Any, Any, list[Any], list[Any]]:
    """A model that yields three items and fails; the batches that its consumer gets, and how they ended."""
    channels, pump_module = world.load("channels"), world.load("runtime.execution._pump")
    pump = pump_module.Pump(ahead, "test")
    batches: list[Any] = []
    ended: list[Any] = []

    @contextlib.contextmanager
    def source() -> Iterator[Iterator[int]]:
        def items() -> Iterator[int]:
            yield from (1, 2, 3)
            raise ValueError("broken")

        yield items()

    def take(cancel: Any = None) -> None:
        try:
            batches.extend(pump.batches(cancel))
        except (ValueError, channels.Cancelled) as error:
            ended.append(type(error).__name__)

    world.spawn("M", lambda: pump.run(source()))
    return channels, take, batches, ended


def batches_of_a_model(world: World, ahead: int) -> Callable[[], None]:
    """However they are cut: all of it in order, nothing empty, then the end."""
    _, take, batches, ended = _pumping(world, ahead)
    world.spawn("W", take)

    def check() -> None:
        assert not world.stuck
        assert all(batches)
        assert [item for batch in batches for item in batch] == [1, 2, 3]
        assert ended == ["ValueError"]

    return check


def batches_and_a_cancel(world: World, ahead: int) -> Callable[[], None]:
    """The worker is told at its next wait. Nothing is out of order, and the model is not left parked."""
    channels, take, batches, ended = _pumping(world, ahead)
    token = channels.CancelToken()
    world.spawn("W", lambda: take(token))
    world.spawn("C", token.cancel)

    def check() -> None:
        assert not world.stuck
        assert all(batches)
        taken = [item for batch in batches for item in batch]
        assert taken == [1, 2, 3][: len(taken)]
        assert ended in (["Cancelled"], ["ValueError"])
        assert ended == ["Cancelled"] or len(taken) == 3

    return check


def waiting_for_a_call(world: World) -> Callable[[], None]:
    """Whoever waits for the end of a call makes the channel that tells of it, in the moment when the call ends too."""
    channels, module = world.load("channels"), world.load("runtime.execution._calls")
    call = module.Call("work", module.Kept())
    woken: list[str] = []

    def wait(name: str) -> None:
        try:
            call.done.recv()
        except channels.ChannelClosed:
            woken.append(name)

    world.spawn("H", lambda: call.finish("value", None))
    for name in "VW":
        world.spawn(name, lambda name=name: wait(name))

    def check() -> None:
        assert not world.stuck
        assert sorted(woken) == ["V", "W"]
        assert call.over
        assert call.inbox.outcome.value == "value"

    return check


class _Went:
    """What a worker went through, and whether it ever was on two threads at once."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.on: list[str] = []

    def __enter__(self) -> None:
        assert not self.on
        self.on.append("one")

    def __exit__(self, *_: object) -> None:
        self.on.pop()


def a_worker_that_is_taken_over(world: World, interrupted: bool = False) -> Callable[[], None]:
    """Whoever wants the worker while its thread is away, it goes on, on one thread at a time, step after step."""
    driver_module, channels = world.load("runtime.execution._driver"), world.load("channels")
    world.load("channels._timer")._clock._reset()
    went = _Went()

    class Away:
        call = None

        def __init__(self, number: int) -> None:
            self.number = number

        def run(self, carrier: Any) -> Any:
            carrier.leave()
            return self.number if carrier.is_back() else None

        def taken_over(self) -> Any:
            return self.number

    def worker() -> Any:
        try:
            for number in (1, 2):
                with went:
                    went.steps.append(number)
                assert driver_module.thrown((yield Away(number))) == number
            with went:
                went.steps.append(3)
        finally:
            with went:
                went.steps.append("end")

    class Helpers:
        def adopt(self, running: Any) -> None: ...

    token, threads = channels.CancelToken(), ["the first"]
    context = contextvars.copy_context()
    driver = driver_module.Driver("worker", worker(), context, threads, Helpers(), token)

    def take_over() -> None:
        if (found := driver.rest) is not None:
            carrier = driver_module.Carrier(driver)
            carrier.running = "another"
            carrier.take_over(found[0])

    world.spawn("T", driver_module.Carrier(driver).begin, interruptible=interrupted)
    world.spawn("R", take_over)
    world.spawn("S", take_over)

    def check() -> None:
        assert not world.stuck
        if interrupted and not went.steps:
            return  # before the first line of its thread
        assert went.steps[-1] == "end"
        assert went.steps.count("end") == 1
        assert went.steps[:-1] == [1, 2, 3][: len(went.steps) - 1]
        assert interrupted or len(went.steps) == 4

    return check


def a_reading_that_is_taken_over(world: World, cancels: bool, fails: bool) -> Callable[[], None]:
    """The worker has every item once, in order, whichever thread it has them from; then the end."""
    channels, timer = world.load("channels"), world.load("channels._timer")
    driver_module, reading_module = world.load("runtime.execution._driver"), world.load("runtime.execution._reading")
    calls_module, helpers_module = world.load("runtime.execution._calls"), world.load("runtime.execution._helpers")
    timer._clock._reset()
    token, context = channels.CancelToken(), contextvars.copy_context()
    helpers = helpers_module.HelperPool()
    calls = calls_module.Calls(token, helpers, None, context)
    got: list[Any] = []
    ended: list[str] = []

    def items() -> Iterator[int]:
        yield from (1, 2)
        if fails:
            raise ValueError("broken")

    def worker() -> Any:
        reading = reading_module.read(calls, "model", items)
        reading.take = got.append
        try:
            driver_module.thrown((yield reading))
            reading.raise_failure()
            for batch in reading.batches:
                got.extend(batch)
            ended.append("all")
        except (ValueError, channels.Cancelled) as error:
            ended.append(type(error).__name__)
        finally:
            reading.close()

    class Threads(list[Any]):
        """Their names do not matter."""

    class Helpers:
        def adopt(self, running: Any) -> None: ...

    driver = driver_module.Driver("worker", worker(), context, Threads(["the first"]), Helpers(), token)

    def take_over() -> None:
        if (found := driver.rest) is not None:
            carrier = driver_module.Carrier(driver)
            carrier.running = "another"
            carrier.take_over(found[0])

    world.spawn("T", driver_module.Carrier(driver).begin)
    world.spawn("R", take_over)
    if cancels:
        world.spawn("C", lambda: (token.cancel(), take_over()))

    def check() -> None:
        assert not world.stuck
        assert got == [1, 2][: len(got)]
        assert len(ended) == 1
        assert ended[0] == "Cancelled" if cancels and len(got) < 2 else True
        assert cancels or (got, ended) == ([1, 2], ["ValueError" if fails else "all"])

    return check


def a_call_that_stands_still(world: World, kind: str) -> Callable[[], None]:
    """A cancel finds the worker at rest, or its thread finds the cancel before it leaves: what it calls then stands
    still until the worker has come to its end.
    """
    channels, timer = world.load("channels"), world.load("channels._timer")
    driver_module, reading_module = world.load("runtime.execution._driver"), world.load("runtime.execution._reading")
    errands_module = world.load("runtime.execution._errands")
    calls_module, helpers_module = world.load("runtime.execution._calls"), world.load("runtime.execution._helpers")
    timer._clock._reset()
    token, context = channels.CancelToken(), contextvars.copy_context()
    calls = calls_module.Calls(token, helpers_module.HelperPool(), None, context)
    gate, inbox = channels.Channel(), channels.Channel(8)
    ended: list[str] = []

    def stand_still() -> None:
        with contextlib.suppress(channels.ChannelClosed):
            gate.recv()

    def items() -> Iterator[int]:
        yield 1
        stand_still()

    def call() -> Any:
        if kind == "reading":
            reading = reading_module.read(calls, "model", items)
            reading.take = lambda item: None
            driver_module.thrown((yield reading))
            list(reading.batches)
        elif kind == "awaited":
            yield from errands_module.call_here(calls, "call", stand_still)
        else:
            driver_module.thrown((yield errands_module.Held(calls, "tool", inbox, stand_still)))
            inbox.recv(cancel=token)

    def worker() -> Any:
        try:
            yield from call()
        except channels.Cancelled:
            ended.append("cancelled")
        finally:
            gate.close()

    class Helpers:
        def adopt(self, running: Any) -> None: ...

    driver = driver_module.Driver("worker", worker(), context, ["the first"], Helpers(), token)

    def cancel() -> None:
        token.cancel()
        if (found := driver.rest) is not None:
            carrier = driver_module.Carrier(driver)
            carrier.running = "another"
            carrier.take_over(found[0])

    world.spawn("T", driver_module.Carrier(driver).begin)
    world.spawn("C", cancel)

    def check() -> None:
        assert not world.stuck
        assert ended == ["cancelled"]

    return check


def a_message_for_a_tool(world: World) -> Callable[[], None]:
    """It finds the worker at rest, or its thread finds the message when it has left: the tool stands still until the
    worker has it.
    """
    channels, timer = world.load("channels"), world.load("channels._timer")
    standby_module, driver_module = world.load("channels._standby"), world.load("runtime.execution._driver")
    errands_module = world.load("runtime.execution._errands")
    calls_module, helpers_module = world.load("runtime.execution._calls"), world.load("runtime.execution._helpers")
    token, context = channels.CancelToken(), contextvars.copy_context()
    calls = calls_module.Calls(token, helpers_module.HelperPool(), None, context)
    gate, inbox, bell = channels.Channel(), channels.Channel(8), channels.Channel(8)
    got: list[Any] = []

    def ring(wanted: Any = None) -> None:
        with contextlib.suppress(channels.ChannelClosed):
            bell.try_send(None)

    timer.ringing, timer.call_soon = lambda wanted: ring, ring

    def stand_still() -> None:
        with contextlib.suppress(channels.ChannelClosed):
            gate.recv()

    def worker() -> Any:
        sent = driver_module.thrown((yield errands_module.Held(calls, "tool", inbox, stand_still)))
        got.append(inbox.recv() if sent is standby_module.NOTHING else sent)
        gate.close()
        bell.close()

    class Helpers:
        def adopt(self, running: Any) -> None: ...

    driver = driver_module.Driver("worker", worker(), context, ["the first"], Helpers(), token)

    def clock() -> None:
        for _ in bell:
            if (found := driver.rest) is not None:
                carrier = driver_module.Carrier(driver)
                carrier.running = "another"
                carrier.take_over(found[0])

    world.spawn("T", driver_module.Carrier(driver).begin)
    world.spawn("K", clock)
    world.spawn("M", lambda: inbox.try_send("said"))

    def check() -> None:
        assert not world.stuck
        assert got == ["said"]

    return check


def a_look_at_a_worker(world: World) -> Callable[[], None]:
    """Whoever looks at a worker while it comes and goes is told of a rest and of the call that is made in that."""
    driver_module, channels = world.load("runtime.execution._driver"), world.load("channels")
    world.load("channels._timer")._clock._reset()
    rests: list[Any] = []
    looked: list[Any] = []

    class Away:
        def __init__(self, number: int) -> None:
            self.call = number

        def run(self, carrier: Any) -> None:
            carrier.leave()
            rests.append((carrier._rest, self.call))
            carrier.is_back()

        def taken_over(self) -> None: ...

    class Helpers:
        def adopt(self, running: Any) -> None: ...

    def worker() -> Any:
        for number in (1, 2):
            yield Away(number)
        driver.settle()

    context, token = contextvars.copy_context(), channels.CancelToken()
    driver = driver_module.Driver("worker", worker(), context, ["the first"], Helpers(), token)

    def look() -> None:
        looked.extend((driver.rest, driver.rest))
        if (found := driver.rest) is not None:
            carrier = driver_module.Carrier(driver)
            carrier.running = "another"
            carrier.take_over(found[0])

    world.spawn("T", driver_module.Carrier(driver).begin)
    world.spawn("L", look)

    def check() -> None:
        assert not world.stuck
        told = [(id(rest), call) for rest, call in rests]
        assert all(found is None or (id(found[0]), found[1]) in told for found in looked)
        assert driver.rest is None

    return check


def an_errand_that_is_wanted(
    world: World, kind: str, wants: str, lost: int = 0, interrupted: int = 0
) -> Callable[[], None]:
    """The worker is wanted while its thread makes a call: by messages ("m") and cancels ("c"), with the timer thread
    and the threads that take it over as they are, where the system has no thread at first (``lost``) too. It comes to
    its end once, on one thread at a time, and has every message once. ``interrupted`` is the number of the thread into
    which an exception is thrown.
    """
    channels, timer = world.load("channels"), world.load("channels._timer")
    driver_module, reading_module = world.load("runtime.execution._driver"), world.load("runtime.execution._reading")
    errands_module = world.load("runtime.execution._errands")
    calls_module, helpers_module = world.load("runtime.execution._calls"), world.load("runtime.execution._helpers")
    timer._clock._reset()
    timer.ringing = lambda wanted: partial(timer._clock._inbox.put, wanted)  # as they are: others have put theirs there
    timer.call_soon = timer._clock.put
    none = [None] * lost
    launched: list[Any] = []

    def launch(running: Any) -> None:
        if launched and none:
            none.pop()
            raise RuntimeError("can't start new thread")
        launched.append(running)
        number = len(launched)
        world.spawn(f"T{number}", running._function, interruptible=number == interrupted, daemon=number > 1)

    class Helpers(helpers_module.HelperPool):  # type: ignore[name-defined, misc]
        def adopt(self, running: Any) -> None: ...

    driver_module.launch = launch
    token, helpers = channels.CancelToken(), Helpers()
    calls = calls_module.Calls(token, helpers, None, contextvars.copy_context())
    inbox = channels.Channel(8)
    went = _Went()
    began: list[str] = []
    sent: list[str] = []
    got: list[str] = []
    ended: list[str] = []

    def take(item: str) -> None:
        with went:
            got.append(item)

    def items() -> Iterator[str]:
        yield from "12"
        if kind == "broken":
            raise ValueError

    def read() -> Any:
        reading = reading_module.read(calls, "model", items)
        reading.take = take
        try:
            driver_module.thrown((yield reading))
            reading.raise_failure()
            while batch := reading.next_batch():
                got.extend(batch)
        finally:
            reading.close()

    def wait() -> Any:
        take((yield from errands_module.call_here(calls, "call", lambda: "1")))

    def hear() -> Any:
        message = driver_module.thrown((yield errands_module.Held(calls, "tool", inbox, lambda: "1")))
        if message is world.load("channels._park").NOTHING:
            message = inbox.recv(None, token)
        while isinstance(message, str):
            take(message)
            message = inbox.recv(None, token)
        take(message.value)

    def worker() -> Any:
        began.append("one")
        try:
            yield from {"awaited": wait, "held": hear}.get(kind, read)()
            ended.append("normal")
        except channels.Cancelled:
            ended.append("cancelled")
        except ValueError:
            ended.append("failed")
        except (KeyboardInterrupt, channels.ChannelClosed, RuntimeError):
            assert interrupted
            ended.append("interrupted")
        finally:
            driver.settle()

    driver = driver_module.Driver("worker", worker(), contextvars.copy_context(), [], helpers, token)

    def say() -> None:
        try:
            inbox.try_send("said")
            sent.append("said")
        except channels.ChannelClosed:
            assert interrupted

    driver.start()
    for number, want in enumerate(wants):
        world.spawn(f"{want}{number}", say if want == "m" else token.cancel)

    def check() -> None:
        if interrupted and not began:
            return  # before the first line of its thread
        assert not world.stuck
        assert len(ended) == 1
        assert ended[0] != "cancelled" or token.cancelled
        assert kind != "broken" or ended != ["normal"]
        if ended == ["normal"]:
            assert "".join(got).replace("said", "") == {"reading": "12"}.get(kind, "1")
            assert got.count("said") + sum(inbox.try_recv() == "said" for _ in range(len(inbox))) == len(sent)
        assert not calls._live

    return check


def idle_threads(world: World, ends: bool) -> Callable[[], None]:
    """What is given to an idle thread is run by it, once, also where it leaves in that moment, is told to end, or is
    hit by an exception that was meant for what it has run; or whoever gives it knows that nobody takes it.
    """
    module = world.load("runtime.execution._threads")
    idle = module._Idle()
    given: dict[str, bool] = {}
    got: list[str] = []
    ended: list[str] = []

    def sit(name: str) -> None:
        running = idle.wait(name)
        if running is None:
            ended.append(name)
        else:
            got.append(running)

    def end() -> None:
        for seat in list(idle.waiting):
            with contextlib.suppress(ValueError):
                idle.waiting.remove(seat)
                seat.give(None)

    world.spawn("T", lambda: sit("T"), interruptible=True)
    world.spawn("A", lambda: given.update(A=idle.give("A")))
    if ends:
        world.spawn("E", end)
    else:
        world.spawn("U", lambda: sit("U"))
        world.spawn("B", lambda: given.update(B=idle.give("B")))

    def check() -> None:
        assert not world.stuck
        assert sorted(got) == sorted(name for name, taken in given.items() if taken)
        assert not [seat for seat in idle.waiting if seat.free]

    return check


@pytest.mark.parametrize("ends", [False, True])
def test_idle_threads(ends: bool) -> None:
    """They wait for so long and no longer."""
    scenario = partial(idle_threads, ends=ends)
    assert explore(scenario, preemptions=1, modules=THREADS, schedules=2000).schedules
    report = explore(scenario, preemptions=0, interrupts=1, modules=THREADS, schedules=2000)
    assert report.thrown


def test_waiting_for_a_call() -> None:
    assert explore(waiting_for_a_call, preemptions=1, modules=CALLS).complete


def test_a_worker_that_is_taken_over() -> None:
    assert explore(a_worker_that_is_taken_over, preemptions=2, modules=WORKERS).complete
    interrupted = partial(a_worker_that_is_taken_over, interrupted=True)
    assert explore(interrupted, preemptions=1, interrupts=1, modules=WORKERS).thrown


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("cancels", [False, True])
def test_a_reading_that_is_taken_over(cancels: bool, fails: bool) -> None:
    scenario = partial(a_reading_that_is_taken_over, cancels=cancels, fails=fails)
    assert explore(scenario, preemptions=1 if cancels else 2, modules=READINGS, schedules=4000).schedules


@pytest.mark.parametrize("kind", ["reading", "awaited", "held"])
def test_a_call_that_stands_still(kind: str) -> None:
    scenario = partial(a_call_that_stands_still, kind=kind)
    assert explore(scenario, preemptions=1, modules=READINGS, schedules=1500).schedules


def test_a_message_for_a_tool() -> None:
    assert explore(a_message_for_a_tool, preemptions=1, modules=READINGS, schedules=1500).schedules


def test_a_look_at_a_worker() -> None:
    assert explore(a_look_at_a_worker, preemptions=3, modules=WORKERS).complete


WANTED = [
    *(("held", wants, lost) for wants in ("m", "mc", "mm", "cc") for lost in (0, 1)),
    *((kind, wants, lost) for kind in ("awaited", "reading", "broken") for wants in ("c", "cc") for lost in (0, 1)),
]


@pytest.mark.parametrize(("kind", "wants", "lost"), [("held", "mc", 0), ("held", "mm", 1), ("reading", "cc", 1)])
def test_an_errand_that_is_wanted(kind: str, wants: str, lost: int) -> None:
    scenario = partial(an_errand_that_is_wanted, kind=kind, wants=wants, lost=lost)
    assert explore(scenario, preemptions=1, modules=READINGS, schedules=600).schedules


def test_an_exception_in_a_thread_that_takes_a_worker_over() -> None:
    scenario = partial(an_errand_that_is_wanted, kind="awaited", wants="c", interrupted=2)
    assert explore(scenario, preemptions=1, interrupts=1, modules=READINGS, schedules=600).thrown


@pytest.mark.stress
@pytest.mark.parametrize("interrupted", [0, 1, 2])
@pytest.mark.parametrize(("kind", "wants", "lost"), WANTED)
def test_all_of_an_errand_that_is_wanted(kind: str, wants: str, lost: int, interrupted: int) -> None:
    scenario = partial(an_errand_that_is_wanted, kind=kind, wants=wants, lost=lost, interrupted=interrupted)
    limits = {"preemptions": 1, "interrupts": 1} if interrupted else {"preemptions": 2}
    assert explore(scenario, modules=READINGS, seconds=10, **limits).schedules  # type: ignore[arg-type]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_batches_of_a_model(ahead: int) -> None:
    assert explore(partial(batches_of_a_model, ahead=ahead), preemptions=1, modules=PUMP).complete


@pytest.mark.parametrize("ahead", [0, 2])
def test_batches_of_a_model_and_a_cancel(ahead: int) -> None:
    """As far as half a second goes: the whole takes ten."""
    assert explore(partial(batches_and_a_cancel, ahead=ahead), preemptions=1, schedules=500, modules=PUMP).schedules


def test_bridge() -> None:
    assert explore(streams_and_a_question, preemptions=1, modules=MODULES).complete


def test_asks() -> None:
    assert explore(an_answer_and_an_end, preemptions=2, modules=MODULES).complete


def test_an_interrupted_answer_is_delivered_or_pending() -> None:
    report = explore(an_answer_that_is_interrupted, preemptions=1, interrupts=1, modules=MODULES)
    assert report.complete
    assert report.thrown
    assert explore(an_answer_that_is_interrupted, preemptions=0, interrupts=2, modules=MODULES).complete


def test_an_answer_in_a_handler_is_delivered() -> None:
    report = explore(an_answer_in_a_handler, preemptions=0, nested=1, modules=MODULES)
    assert report.complete
    assert report.nested
