"""What a run on a worker costs, against a bare TCP socket that carries the same frames.

    python tests/benchmarks/remote.py [--rounds N] [--words N] [--json FILE]

Both run the same agent in the same pool of processes, warm, and take turns; the figures are medians. On the bare socket
the worker sends each event with one `sendall`, with nothing that holds it to a bound, a key, or a heartbeat, and a
thread of it reads what the caller wants.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0:1] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

import results  # noqa: E402

from runtime import Agent, FinishDelta, Runtime, Session, TextDelta, ToolCallDelta, ToolContext, tool  # noqa: E402
from runtime.events import AgentChoice, ElicitationRequest, Event, StreamStopped, ToolCallResponse  # noqa: E402
from runtime.remote import Remote  # noqa: E402

WORDS = 2000
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class Words:
    id = "words"

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        count = int(messages[-1].content)
        for _ in range(count):
            yield TextDelta("word ")
        yield FinishDelta("stop")


class Waits:
    id = "waits"

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        yield TextDelta("begun")
        cancel.done.recv(timeout=60)


@tool(read_only=True)
def ask(context: ToolContext) -> str:
    """Ask how many."""
    return str(context.elicit("How many?", SCHEMA).content["n"])


class Asks:
    id = "asks"

    def stream(self, messages: Any, tools: Any, *, cancel: Any) -> Any:
        if messages[-1].role == "user":
            yield ToolCallDelta(0, "call-1", "ask", {})
        else:
            yield TextDelta(messages[-1].content)


words, waits, asks = Agent("words", Words()), Agent("waits", Waits()), Agent("asks", Asks(), tools=[ask])


# -- the floor ---------------------------------------------------------------------------------------------------------


def bare(port: int, name: str, text: str) -> None:
    """In the worker: run the agent, and send its events."""
    with socket.create_connection(("127.0.0.1", port)) as sock, Runtime(globals()[name]) as runtime:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with runtime.run_stream(Session.from_user(text)) as stream:

            def obey() -> None:
                with sock.makefile("rb") as lines:
                    for line in lines:
                        said = json.loads(line)
                        if said["do"] == "cancel":
                            stream.cancel()
                        else:
                            stream.respond(said["id"], "accept", {"n": 3})

            thread = threading.Thread(target=obey)
            thread.start()
            for event in stream:
                data = json.dumps(event.to_dict()).encode()
                sock.sendall(struct.pack("!I", len(data)) + data)
            thread.join()


class Bare:
    """In the caller: a stream of events that came over a bare socket."""

    def __init__(self, pool: ProcessPoolExecutor, name: str, text: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._job = pool.submit(bare, server.getsockname()[1], name, text)
            self._sock, _ = server.accept()
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._sock.makefile("rb", 65536)

    def __iter__(self) -> Iterator[Event]:
        while True:
            (size,) = struct.unpack("!I", self._file.read(4))
            event = Event.from_dict(json.loads(self._file.read(size)))
            yield event
            if isinstance(event, StreamStopped):
                return

    def _say(self, said: dict[str, str]) -> None:
        self._sock.sendall(json.dumps(said).encode() + b"\n")

    def cancel(self) -> None:
        self._say({"do": "cancel"})

    def respond(self, request: ElicitationRequest, action: str, content: dict[str, Any]) -> None:
        self._say({"do": "respond", "id": request.elicitation_id})

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *args: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._sock.close()
        self._job.result()


# -- what is measured --------------------------------------------------------------------------------------------------

Open = Callable[[str, str], Any]
FIGURES = ("an event", "the first event", "an answer", "a cancel")


def measure(open: Open, count: int) -> dict[str, float]:
    """Microseconds."""
    began = time.perf_counter()
    with open("words", str(count)) as stream:
        events = iter(stream)
        next(events)
        first = time.perf_counter()
        number = 1 + sum(1 for _ in events)
        last = time.perf_counter()
    with open("asks", "go") as stream:
        for event in stream:
            if isinstance(event, ElicitationRequest):
                asked = time.perf_counter()
                stream.respond(event, "accept", {"n": 3})
            elif isinstance(event, ToolCallResponse):
                answered = time.perf_counter()
    with open("waits", "go") as stream:
        for event in stream:
            if isinstance(event, AgentChoice):
                time.sleep(0.01)  # it waits by then
                cancelled = time.perf_counter()
                stream.cancel()
        ended = time.perf_counter()
    seconds = ((last - first) / (number - 1), first - began, answered - asked, ended - cancelled)
    return {name: 1e6 * value for name, value in zip(FIGURES, seconds, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--words", type=int, default=WORDS)
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    args = parser.parse_args()
    ways: dict[str, Open] = {}
    found: dict[str, list[float]] = {}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        remotes = {name: Remote(pool.submit, f"{_module_name()}:{name}") for name in ("words", "waits", "asks")}
        ways["Remote"] = lambda name, text: remotes[name].run_stream(Session.from_user(text))
        ways["bare socket"] = lambda name, text: Bare(pool, name, text)
        for number in range(args.rounds + 2):
            for way, open in ways.items():
                for name, value in measure(open, args.words).items():
                    if number >= 2:  # warm
                        found.setdefault(f"{name}, {way}", []).append(value)
        for remote in remotes.values():
            remote.close()
    print(f"{'microseconds':<18}{'Remote':>12}{'bare socket':>14}{'times':>8}")
    for name in FIGURES:
        ours, floor = (statistics.median(found[f"{name}, {way}"]) for way in ways)
        print(f"{name:<18}{ours:>12.1f}{floor:>14.1f}{ours / floor:>8.2f}")
    if args.json is not None:
        results.write(args.json, "remote", found, unit="us")


def _module_name() -> str:
    """Under which a worker imports this file: `__main__` is something else there."""
    return Path(__file__).stem


if __name__ == "__main__":
    main()
