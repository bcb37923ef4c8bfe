"""What a stream costs, against the floor: a bare thread and a `queue.Queue(128)` that hand over the same events.

    python tests/benchmarks/runtime.py [--rounds N] [--json FILE] [--peers]

Floor and runtime take turns in one process; the figures are medians. Ratios mean something on any machine,
microseconds only on an idle one. With ``--peers``, the libraries of `agent_peers.py` that are installed take turns with
them. `ablation.py` says what the time is spent on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import queue
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

ROOT = Path(__file__).resolve().parents[2]
# In this order: this file has the name of a package.
sys.path[0:1] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

from agent_peers import AgentPeer, installed  # noqa: E402
from results import write  # noqa: E402

from runtime import Agent, Runtime, Session, TextDelta, tool  # noqa: E402
from runtime.events import AgentChoice, Event, StreamStopped  # noqa: E402
from runtime.otel import instrument  # noqa: E402
from support.scripted import AsyncScripted, Scripted, Stall, call  # noqa: E402

DELTAS = 2000
TURNS = 100
PACED = 100
PACE = 0.002  # seconds
STREAMS = 100
MODELS = {"sync": Scripted, "async": AsyncScripted}


def floor_events(count: int = DELTAS) -> float:
    """Microseconds per event: made in a thread, handed over by a queue."""
    events: queue.Queue[Event | None] = queue.Queue(128)

    def produce() -> None:
        for _ in range(count):
            events.put(AgentChoice("word ", agent_name="a", session_id="s"))
        events.put(None)

    start = time.perf_counter()
    thread = threading.Thread(target=produce)
    thread.start()
    while events.get() is not None:
        pass
    took = time.perf_counter() - start
    thread.join()
    return took / count * 1e6


def stream_events(model: type[Scripted], count: int = DELTAS) -> float:
    """Microseconds per event of a stream."""
    with Runtime(Agent("a", model([TextDelta("word ")] * count))) as runtime:
        start = time.perf_counter()
        for _ in runtime.run_stream(Session.from_user("go")):
            pass
        return (time.perf_counter() - start) / count * 1e6


def floor_first() -> float:
    """Milliseconds to the first event: start a thread, wait for what it puts."""
    events: queue.Queue[Event] = queue.Queue(128)
    start = time.perf_counter()
    thread = threading.Thread(target=lambda: events.put(AgentChoice("x")))
    thread.start()
    events.get()
    took = time.perf_counter() - start
    thread.join()
    return took * 1e3


def stream_first(runtime: Runtime) -> tuple[float, float]:
    """Milliseconds to the first event, and to the first text."""
    start = time.perf_counter()
    with runtime.run_stream(Session.from_user("go")) as stream:
        next(stream)
        first = time.perf_counter() - start
        for event in stream:
            if isinstance(event, AgentChoice):
                break
        return first * 1e3, (time.perf_counter() - start) * 1e3


def tool_turns(
    instrument: Callable[[Runtime], object] = lambda runtime: None,
    stall_after: float | None = None,
    *,
    model: type[Scripted] = Scripted,
    reads: bool = True,
) -> float:
    """Milliseconds per turn with one tool call. A consumer ``reads`` the events, or waits for the result."""

    @tool(read_only=True)
    def nothing(n: int) -> str:
        """Does nothing."""
        return "ok"

    turns = [[call("nothing", f'{{"n": {n}}}', id=f"call-{n}")] for n in range(TURNS)]
    agent = Agent("a", model(*turns, [TextDelta("done")]), tools=[nothing], max_iterations=200)
    with Runtime(agent, stall_after=stall_after) as runtime:
        instrument(runtime)
        start = time.perf_counter()
        if reads:
            for _ in runtime.run_stream(Session.from_user("go")):
                pass
        else:
            runtime.run(Session.from_user("go"))
        return (time.perf_counter() - start) / TURNS * 1e3


def telemetry() -> dict[str, dict[str, Any]]:
    """Providers to instrument a runtime with: of no SDK, of one that exports to nobody, and of those that export all
    but nobody keeps it."""
    try:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
        from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
    except ImportError:
        return {}

    class Away(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    def exporting(*sampler: Sampler) -> dict[str, Any]:
        tracers = TracerProvider(*sampler)
        tracers.add_span_processor(BatchSpanProcessor(Away()))
        return {"tracer_provider": tracers, "meter_provider": MeterProvider([InMemoryMetricReader()])}

    return {
        "no SDK": {},
        "SDK": {"tracer_provider": TracerProvider(), "meter_provider": MeterProvider()},
        "sampled out": exporting(ALWAYS_OFF),
        "exported": exporting(),
    }


def turns_by_hand(tracer_provider: TracerProvider, meter_provider: MeterProvider) -> float:
    """Milliseconds that the SDK takes for the spans and metrics of a turn, made by hand."""
    from opentelemetry.trace import set_span_in_context

    tracer = tracer_provider.get_tracer("by hand")
    histogram = meter_provider.get_meter("by hand").create_histogram("duration")
    run = {"gen_ai.conversation.id": "s", "gen_ai.agent.name": "a"}
    model = {"gen_ai.provider.name": "scripted", "gen_ai.request.model": "scripted", "gen_ai.operation.name": "chat"}
    asked = {**run, **model, "gen_ai.request.stream": True}
    answered = {"gen_ai.response.time_to_first_chunk": 0.1, "gen_ai.response.model": "scripted"}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "nothing"}
    made = {**run, **tool, "gen_ai.tool.call.id": "1", "gen_ai.tool.type": "function", "gen_ai.tool.description": "x"}
    parent = set_span_in_context(tracer.start_span("run"))
    start = time.perf_counter()
    for _ in range(TURNS):
        chat = tracer.start_span("chat", parent, attributes=asked)
        chat.set_attributes(answered)
        chat.end()
        histogram.record(0.1, {**model, "gen_ai.response.model": "scripted"})
        histogram.record(0.1, {**model, "gen_ai.response.model": "scripted"})
        tracer.start_span("execute_tool", parent, attributes=made).end()
        histogram.record(0.1, tool)
    return (time.perf_counter() - start) / TURNS * 1e3


def paced(model: type[Scripted] | None) -> float:
    """Microseconds from making a delta to having its event, one delta every 2 ms; without a model, the floor."""
    made: list[float] = []
    taken: list[float] = []
    if model is None:
        events: queue.Queue[Event | None] = queue.Queue(128)

        def produce() -> None:
            for _ in range(PACED):
                time.sleep(PACE)
                made.append(time.perf_counter())
                events.put(AgentChoice("x"))
            events.put(None)

        thread = threading.Thread(target=produce)
        thread.start()
        while events.get() is not None:
            taken.append(time.perf_counter())
        thread.join()
    else:

        def wait() -> object:
            if model is AsyncScripted:
                return asyncio.sleep(PACE)
            time.sleep(PACE)
            return None

        def note() -> None:
            made.append(time.perf_counter())

        steps = [step for _ in range(PACED) for step in (wait, note, TextDelta("x"))]
        with Runtime(Agent("a", model(steps))) as runtime:
            for event in runtime.run_stream(Session.from_user("go")):
                if isinstance(event, AgentChoice):
                    taken.append(time.perf_counter())
    return statistics.median(b - a for a, b in zip(made, taken, strict=True)) * 1e6


def many_streams(model: type[Scripted]) -> tuple[float, float, int]:
    """100 streams open at once: seconds to open and end them, MiB they add, threads they have."""
    with contextlib.ExitStack() as stack:
        stall = Stall()

        def wait() -> object:
            return asyncio.to_thread(stall) if model is AsyncScripted else stall()

        with Runtime(Agent("a", model([TextDelta("x")]))) as first:  # imports what a stream needs
            first.run(Session.from_user("go"))
        before, threads = _resident(), threading.active_count()
        start = time.perf_counter()
        step = _until(stall) if model is AsyncScripted else wait
        runtime = stack.enter_context(Runtime(Agent("a", model(*[[TextDelta("x"), step] for _ in range(STREAMS)]))))
        streams = [runtime.run_stream(Session.from_user("go")) for _ in range(STREAMS)]
        for stream in streams:
            while not isinstance(next(stream), AgentChoice):
                pass
        added, threads = _resident() - before, threading.active_count() - threads
        stall.go_on.set()
        for stream in streams:
            assert any(isinstance(event, StreamStopped) for event in stream)
        return time.perf_counter() - start, added, threads


def show_many_streams(kind: str) -> None:
    """In a process of its own."""
    wall, added, threads = many_streams(MODELS[kind])
    print(f"{STREAMS} streams, {kind:5s} {wall * 1e3:6.0f} ms wall, {added:.1f} MiB, {threads} threads")


def peer_events(peer: AgentPeer, count: int = DELTAS) -> float:
    """`stream_events` of a peer."""
    start = time.perf_counter()
    texts = sum(1 for _ in peer.stream([["word "] * count]))
    took = time.perf_counter() - start
    assert texts >= count
    return took / count * 1e6


def peer_first(peer: AgentPeer) -> float:
    """Milliseconds to the first text."""
    start = time.perf_counter()
    texts = peer.stream([["x"]])
    next(texts)
    took = time.perf_counter() - start
    assert sum(1 for _ in texts) <= 1
    return took * 1e3


def peer_turns(peer: AgentPeer) -> float:
    """`tool_turns` of a peer."""
    start = time.perf_counter()
    texts = list(peer.stream([*([n] for n in range(TURNS)), ["done"]]))
    took = time.perf_counter() - start
    assert texts[-1] == "done"
    return took / TURNS * 1e3


def peer_paced(peer: AgentPeer) -> float:
    """`paced` of a peer."""
    made: list[float] = []

    def wait() -> None:
        time.sleep(PACE)
        made.append(time.perf_counter())

    taken = [time.perf_counter() for _ in peer.stream([[step for _ in range(PACED) for step in (wait, "x")]])]
    return statistics.median(b - a for a, b in zip(made, taken, strict=False)) * 1e6


def peer_many(peer: AgentPeer) -> tuple[float, int]:
    """100 streams open at once: MiB they add, threads they have."""
    before, threads = _resident(), threading.active_count()
    go_on = threading.Event()
    streams = [peer.stream([["x", go_on.wait]]) for _ in range(STREAMS)]
    for stream in streams:
        next(stream)
    added, threads = _resident() - before, threading.active_count() - threads
    go_on.set()
    for stream in streams:
        for _ in stream:
            pass
    return added, threads


def dump_of_many() -> tuple[float, float]:
    """Milliseconds that a dump of 100 streams takes whose models say nothing, and with its text."""
    with Stall() as stall, Runtime(Agent("a", Scripted(*[[stall]] * STREAMS))) as runtime:
        streams = [runtime.run_stream(Session.from_user("go")) for _ in range(STREAMS)]
        while sum(wait.kind == "model" for stream in runtime.dump().streams for wait in stream.waits) < STREAMS:
            time.sleep(0.01)
        start = time.perf_counter()
        dump = runtime.dump()
        made = time.perf_counter() - start
        str(dump)
        shown = time.perf_counter() - start
        stall.go_on.set()
        for stream in streams:
            stream.close()
    return made * 1e3, shown * 1e3


def _until(stall: Stall) -> Callable[[], object]:
    async def wait() -> None:
        while not stall.go_on.is_set():
            await asyncio.sleep(0.01)

    return wait


def _resident() -> float:
    """MiB resident now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


#: What only runs need is imported with the first of them.
FIRST_RUNTIME = (
    "from types import SimpleNamespace as M; import channels, runtime;"
    " runtime.Runtime(runtime.Agent('a', M(id='m', stream=print)))"
)


def import_times(more: Sequence[str] = (), rounds: int = 9) -> dict[str, float]:
    """Milliseconds of importing beyond a bare interpreter, in fresh processes that take turns; the best of each.

    From compiled files, as where it is installed, also where the environment forbids to write them.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    with tempfile.TemporaryDirectory() as cache:
        environment["PYTHONPYCACHEPREFIX"] = cache

        def run(program: str) -> float:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
            return time.perf_counter() - start

        programs = ("pass", "import asyncio", "import channels", "import channels, runtime", FIRST_RUNTIME, *more)
        for program in programs:
            run(program)
        took = [[run(program) for program in programs] for _ in range(rounds)]
        bare, *best = (min(column) for column in zip(*took, strict=True))
        return {program: (each - bare) * 1e3 for program, each in zip(programs[1:], best, strict=True)}


def extras_loaded() -> Iterator[str]:
    """Extras that the import pulls in; there should be none."""
    program = "import channels, runtime, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    extras = ("mcp", "pydantic", "openai", "janus", "asyncio", "xllamacpp", "opentelemetry")
    return (name for name in extras if name in loaded.split())


def of_floor(runs: dict[str, list[float]], name: str) -> list[float]:
    """The ratios to the floor of the row, round by round; none for the floor itself, and for what has none."""
    floor = runs.get(f"floor {name.split(' ', 1)[1]}", [])
    return [] if name.startswith("floor") else [one / base for one, base in zip(runs[name], floor, strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="the figures, and those that have a floor as ratios: for compare.py")
    parser.add_argument("--streams", choices=MODELS, help="only what many streams take")
    parser.add_argument("--peers", action="store_true", help="also the other libraries that are installed")
    options = parser.parse_args()
    if options.streams:
        show_many_streams(options.streams)
        return
    peers = list(installed()) if options.peers else []
    rounds = options.rounds
    runs: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        runs.setdefault(name, []).append(value)

    traced = telemetry()
    with Runtime(Agent("a", Scripted(*[[TextDelta("x")]] * rounds))) as runtime:
        for _ in range(rounds):
            note("floor us/event", floor_events())
            note("sync us/event", stream_events(Scripted))
            note("async us/event", stream_events(AsyncScripted))
            note("floor first ms", floor_first())
            first, text = stream_first(runtime)
            note("first event ms", first)
            note("first text ms", text)
            note("tool turn ms", tool_turns())
            note("  with run() ms", tool_turns(reads=False))
            note("  async model ms", tool_turns(model=AsyncScripted))
            note("  watched ms", tool_turns(stall_after=60.0))
            for name, providers in traced.items():
                note(f"  {name} ms", tool_turns(functools.partial(instrument, **providers)))
                if providers:
                    note(f"  {name} by hand", turns_by_hand(**providers))
            note("floor paced us", paced(None))
            note("sync paced us", paced(Scripted))
            note("async paced us", paced(AsyncScripted))
            for peer in peers:
                note(f"{peer.name} us/event", peer_events(peer))
                note(f"{peer.name} first ms", peer_first(peer))
                note(f"{peer.name} tool turn ms", peer_turns(peer))
                note(f"{peer.name} paced us", peer_paced(peer))
    median = {name: statistics.median(values) for name, values in runs.items()}
    print(f"CPython {sys.version.split()[0]}, medians of {rounds} rounds (lowest to highest)\n")
    for name, values in runs.items():
        base = median.get(f"floor {name.split(' ', 1)[1]}")
        ratio = f"  {median[name] / base:5.2f} x floor" if base and not name.startswith("floor") else ""
        if name.startswith("  "):  # which were measured one after the other in each round
            turns = zip(values, runs["tool turn ms"], strict=True)
            ratio = f"  {statistics.median(value / turn for value, turn in turns):5.2f} x a tool turn"
        print(f"{name:18s} {median[name]:9.3f}  ({min(values):.3f} to {max(values):.3f}){ratio}")
    if options.json:
        write(options.json, "runtime", runs)
        ratios = {name: of_floor(runs, name) for name in runs}
        write(options.json, "runtime, of the floor", {name: values for name, values in ratios.items() if values})
    for kind in MODELS:  # in a process of its own: memory and threads that others have left would be used again
        program = [sys.executable, __file__, "--streams", kind]
        print(subprocess.run(program, capture_output=True, text=True, check=True).stdout.rstrip())
    for peer in peers:
        added, threads = peer_many(peer)
        print(f"{STREAMS} streams, {peer.name:14s} {added:.1f} MiB, {threads} threads")
    made, shown = (statistics.median(each) for each in zip(*(dump_of_many() for _ in range(rounds)), strict=True))
    print(f"dump of {STREAMS} streams {made:6.1f} ms, {shown:.1f} ms with its text")
    imports = import_times([f"import {peer.module}.{peer.imported}" for peer in peers])
    imports["and a first Runtime"] = imports.pop(FIRST_RUNTIME)
    for program, took in imports.items():
        print(f"{program:24s} {took:6.1f} ms  {took / imports['import asyncio']:5.2f} x import asyncio")
    print(f"extras loaded: {', '.join(extras_loaded()) or 'none'}")
    if options.json:
        ratios = {program: [took / imports["import asyncio"]] for program, took in imports.items()}
        write(options.json, "import, of asyncio", ratios)


if __name__ == "__main__":
    main()
