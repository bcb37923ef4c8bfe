"""Runs on engines: `runtime.remote.Remote` against the engines' own ways to bring values back, and many sessions on
several processes.

    python tests/benchmarks/engines.py [--engines processes,dask,celery,ray] [--rounds N] [--quick] [--json FILE]

All bring the same events back, as the same JSON. An engine that is not installed is left out. ``us`` is microseconds an
event on the clock, best of the rounds; "caller" is the processor time of the caller for an event. The engines' own ways
are what their manuals offer for many values of a task that runs: a queue of `multiprocessing`'s manager, Dask's
``Queue``, a list in Celery's Redis, Ray's streaming generator. "bare socket" is a worker that writes the same bytes,
each event by itself, to a TCP connection.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]
sys.path[:0] = PATHS
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, *filter(None, [os.environ.get("PYTHONPATH")])])

from results import write  # noqa: E402

from channels import ChannelClosed  # noqa: E402
from runtime import Runtime, Session  # noqa: E402
from runtime.events import AgentChoice, Event, StreamStopped, ToolCallStarted  # noqa: E402
from runtime.remote import Remote  # noqa: E402
from support import engine_agents  # noqa: E402
from support.engines import guarded  # noqa: E402

AGENT = "support.engine_agents:agent"
LENGTH = struct.Struct("!I")


def event(number: int) -> bytes:
    """An event as it is on the wire."""
    said: Any = AgentChoice(f"{number} ", agent_name="worker", session_id="0" * 32)
    return json.dumps(said.to_dict(), separators=(",", ":")).encode()


def read(body: bytes) -> Event:
    return Event.from_dict(json.loads(body))


# -- what workers run, in the ways of others ---------------------------------------------------------------------------


def to_socket(address: tuple[str, int], count: int) -> None:
    """Write the events to a connection, and wait until it is closed."""
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(count):
            body = event(number)
            connection.sendall(LENGTH.pack(len(body)) + body)
        connection.recv(1)


def to_queue(queue: Any, count: int) -> None:
    for number in range(count):
        queue.put(event(number))


def to_dask(name: str, count: int) -> None:
    from distributed import Queue, get_client

    queue = Queue(name, client=get_client())
    for number in range(count):
        queue.put(event(number))


def to_redis(address: str, name: str, count: int) -> None:
    import redis

    with redis.Redis.from_url(address) as client:
        for number in range(count):
            client.rpush(name, event(number))


# -- engines -----------------------------------------------------------------------------------------------------------


class Engine:
    """Where jobs are submitted, and the engine's own way back: a function that yields the events."""

    def __init__(self, submit: Callable[..., Any], way: str, own: Callable[[int], Iterator[Event]]) -> None:
        self.submit = submit
        self.way = way
        self.own = own


@contextlib.contextmanager
def processes() -> Iterator[Engine]:
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool, context.Manager() as manager:
        list(pool.map(time.sleep, [0.2] * 2))

        def own(count: int) -> Iterator[Event]:
            queue = manager.Queue(128)
            job = pool.submit(to_queue, queue, count)
            for _ in range(count):
                yield read(queue.get())
            job.result()

        yield Engine(pool.submit, "manager's queue", own)


@contextlib.contextmanager
def dask() -> Iterator[Engine]:
    from distributed import Client, Queue

    with guarded("dask") as address, Client(address) as client:

        def own(count: int) -> Iterator[Event]:
            name = f"events-{time.monotonic_ns()}"
            queue = Queue(name, client=client, maxsize=128)
            job = client.submit(to_dask, name, count, pure=False)
            for _ in range(count):
                yield read(queue.get())
            job.result()

        yield Engine(client.submit, "Dask Queue", own)


@contextlib.contextmanager
def celery() -> Iterator[Engine]:
    with guarded("celery") as address:
        import redis

        from support.engine_celery import app, run, tell

        app.conf.update(broker_url=address, result_backend=address)
        client = redis.Redis.from_url(address, socket_timeout=60)

        def submit(function: Any, spec: Any) -> None:
            run.apply_async((spec,), queue="prefork", ignore_result=True)

        def own(count: int) -> Iterator[Event]:
            name = f"events-{time.monotonic_ns()}"
            tell.apply_async((address, name, count), queue="prefork", ignore_result=True)
            for _ in range(count):
                yield read(client.blpop([name])[1])

        yield Engine(submit, "Redis list", own)
        client.close()
        app.close()


@contextlib.contextmanager
def ray() -> Iterator[Engine]:
    import ray as engine

    engine.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)

    @engine.remote(max_retries=0)
    def call(function: Any, spec: Any) -> Any:
        return function(spec)

    @engine.remote(max_retries=0)
    def generate(count: int) -> Iterator[bytes]:
        for number in range(count):
            yield event(number)

    def own(count: int) -> Iterator[Event]:
        for reference in generate.remote(count):
            yield read(engine.get(reference))

    try:
        yield Engine(lambda function, spec: call.remote(function, spec), "Ray generator", own)
    finally:
        engine.shutdown()


ENGINES: dict[str, tuple[str, Callable[[], Any]]] = {
    "processes": ("", processes),
    "dask": ("distributed", dask),
    "celery": ("celery", celery),
    "ray": ("ray", ray),
}


# -- measuring ---------------------------------------------------------------------------------------------------------


def timed(events: Iterator[Any], count: int) -> tuple[float, float, float]:
    """Milliseconds to the first event; microseconds an event after it, on the clock, and of this process."""
    began = time.perf_counter()
    next(events)
    first, busy = time.perf_counter(), time.process_time()
    rest = sum(1 for _ in events)
    assert rest >= count - 1, (rest, count)
    return (
        (first - began) * 1e3,
        (time.perf_counter() - first) / rest * 1e6,
        (time.process_time() - busy) / rest * 1e6,
    )


def bare(count: int, pool: Any) -> tuple[float, float, float]:
    """The same, of a bare socket."""

    def events() -> Iterator[Event]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            job = pool(to_socket, server.getsockname(), count)
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as file:
                for _ in range(count):
                    yield read(file.read(LENGTH.unpack(file.read(4))[0]))
            job.result()

    return timed(events(), count)


def of_remote(remote: Remote, count: int) -> tuple[float, float, float]:
    with remote.run_stream(Session.from_user(f"say {count}")) as stream:
        return timed(iter(stream), count)


def of_cancel(remote: Remote, folder: str) -> float:
    """Milliseconds from a cancel to the last event."""
    with remote.run_stream(Session.from_user(f"hang {folder}")) as stream:
        for each in stream:
            if isinstance(each, ToolCallStarted):
                break
        time.sleep(0.05)  # until the tool waits
        began = time.perf_counter()
        stream.cancel()
        with contextlib.suppress(ChannelClosed):
            while not isinstance(stream.recv(timeout=10), StreamStopped):
                pass
        return (time.perf_counter() - began) * 1e3


def of_engine(name: str, rounds: int, count: int, few: int) -> dict[str, list[float]]:
    """The figures of an engine, by row."""
    found: dict[str, list[float]] = {}

    def add(row: str, value: float) -> None:
        found.setdefault(f"{name}: {row}", []).append(value)

    with (
        ENGINES[name][1]() as engine,
        Remote(engine.submit, AGENT) as remote,
        tempfile.TemporaryDirectory() as folder,
    ):
        remote.run(Session.from_user("say 1"))  # the worker imports the agent
        for _ in range(rounds):
            first, each, mine = of_remote(remote, count)
            add("first event, ms", first)
            add("an event, us", each)
            add("an event, us of the caller", mine)
            _, own, _ = timed(engine.own(few), few)
            add(f"an event by its {engine.way}, us", own)
            add("cancel, ms", of_cancel(remote, folder))
            if name == "processes":
                _, each, mine = bare(count, engine.submit)
                add("an event by a bare socket, us", each)
                add("an event by a bare socket, us of the caller", mine)
    return found


def of_sessions(sessions: int, rounds: int, workers: int) -> dict[str, list[float]]:
    """Sessions a second in one process and on several, as many at once; and what a session costs the caller."""
    from concurrent.futures import ProcessPoolExecutor

    found: dict[str, list[float]] = {}
    kinds = {"computes 10 ms": "compute 10", "waits 50 ms": "wait 50", "says 200 words": "say 200"}

    def add(row: str, map: Any, prompt: str, limit: int) -> None:
        began, busy = time.perf_counter(), time.process_time()
        count = sum(result.error is None for _, result in map([prompt] * sessions, limit=limit))
        assert count == sessions
        found.setdefault(f"{row}, ms", []).append((time.perf_counter() - began) / sessions * 1e3)
        found.setdefault(f"{row}, ms of the caller", []).append((time.process_time() - busy) / sessions * 1e3)

    context = multiprocessing.get_context("spawn")
    with (
        Runtime(engine_agents.agent) as runtime,
        ProcessPoolExecutor(workers, context) as pool,
        Remote(pool.submit, AGENT) as remote,
    ):
        list(remote.map(["wait 200"] * workers, limit=workers))  # the workers import the agent
        for _ in range(rounds):
            for kind, prompt in kinds.items():
                add(f"a session that {kind}: one process", runtime.map, prompt, workers)
                add(f"a session that {kind}: {workers} processes", remote.map, prompt, 2 * workers)
    return found


def installed(name: str) -> bool:
    module = ENGINES[name][0]
    if module and importlib.util.find_spec(module) is None:
        return False
    return name != "celery" or shutil.which("redis-server") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="two rounds, a tenth of the numbers, processes only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds, divide = (2, 10) if options.quick else (options.rounds, 1)
    names = ["processes"] if options.quick else [name for name in options.engines.split(",") if name]
    logging.disable(logging.CRITICAL)
    figures: dict[str, list[float]] = {}
    for name in names:
        if not installed(name):
            print(f"{name} is not installed")
            continue
        figures |= of_engine(name, rounds, 20_000 // divide, 1000 // divide)
    figures |= of_sessions(options.sessions // divide, min(rounds, 3), 4)
    said = {row: statistics.median(each) if "cancel" in row else min(each) for row, each in figures.items()}
    for row, value in said.items():
        print(f"{row:64}{value:12.2f}")
    if "processes: an event, us" in said:
        print()
        ratio = said["processes: an event, us"] / said["processes: an event by a bare socket, us"]
        print(f"an event, of one by a bare socket: {ratio:.2f}")
    if options.json:
        write(options.json, "engines", figures)


if __name__ == "__main__":
    main()
