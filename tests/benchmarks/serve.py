"""What an event costs over HTTP, against a bare WSGI application that yields the same bytes under the same server.

    python tests/benchmarks/serve.py [--events N] [--rounds N] [--streams N] [--gunicorn] [--store]
        [--peers PYTHON] [--json FILE]

A server process has both applications; a client in this one reads them in turn, so that both find the machine as it is.
The bare one yields an event at a time, as a server of events is written by hand ("bare"), and as many together as ours
does where they come fast ("bare, 64 together"). ``--peers`` is a Python in which agno, uvicorn and fastapi are
installed: the same model, under AgentOS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0:1] = [str(ROOT), str(ROOT / "tests")]  # in place of this directory: other files here have names of packages

SERVER = '''
import functools, json, os, sys, time
from channels import CancelToken
from runtime import Agent
from runtime.model import TextDelta
from runtime.serve import Application
from runtime.serve._server import serve
from runtime.stores import SQLiteStore

class Talker:
    """Says as many words as it is told to, each after so many milliseconds."""
    id = "talker"
    def stream(self, messages, tools, *, cancel):
        count, pause = messages[-1].content.split()
        for _ in range(int(count)):
            if pause != "0":
                time.sleep(float(pause) / 1000)
            yield TextDelta("word ")

store = SQLiteStore(os.environ["BENCH_STORE"]) if "BENCH_STORE" in os.environ else None
served = Application(Agent("talker", Talker()), store=store, max_streams=400, max_runs=400)
HEADERS = [("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-store")]

@functools.cache
def pieces(together):
    with open(os.environ["BENCH_BYTES"], "rb") as file:
        events = [each + b"\\n\\n" for each in file.read().split(b"\\n\\n") if each]
    return [b"".join(events[i : i + together]) for i in range(0, len(events), together)]

class Body:  # a class with __next__, as ours: a generator would be no slower
    def __init__(self, given):
        self.given = iter(given)
    def __iter__(self):
        return self
    def __next__(self):
        return next(self.given)

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/bare/"):
        together, count = map(int, path[6:].split("/"))
        given = pieces(together)[: -(-count // together)]
        start_response("200 OK", HEADERS)
        return Body(given)
    return served(environ, start_response)

if __name__ == "__main__":
    ended = CancelToken()
    ready = lambda address: print(address.rpartition(":")[2].strip("/"), flush=True)
    serve(application, "127.0.0.1", 0, threads=int(sys.argv[1]), ready=ready, ended=ended, close=served.close)
'''

AGNO = """
import socket, sys, time, asyncio
from agno.agent import Agent
from agno.models.base import Model
from agno.models.response import ModelResponse
from agno.os import AgentOS
import uvicorn

class Talker(Model):
    def invoke(self, *args, **kwargs): raise NotImplementedError
    async def ainvoke(self, *args, **kwargs): raise NotImplementedError
    def invoke_stream(self, *args, **kwargs): raise NotImplementedError
    async def ainvoke_stream(self, messages, **kwargs):
        count, pause = messages[-1].content.split()
        for _ in range(int(count)):
            if pause != "0":
                await asyncio.sleep(float(pause) / 1000)
            yield ModelResponse(content="word ")
    def _parse_provider_response(self, response, **kwargs): return response
    def _parse_provider_response_delta(self, response): return response

agent = Agent(id="talker", name="talker", model=Talker(id="talker"), telemetry=False)
app = AgentOS(agents=[agent], telemetry=False).get_app()
sock = socket.socket()
sock.bind(("127.0.0.1", 0))
sock.listen(100)
print(sock.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[sock])
"""


@contextlib.contextmanager
def child(*command: str, **more: str) -> Iterator[tuple[int, int]]:
    """The port and the process of a server that prints its port first."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def gunicorn(directory: Path, threads: int, **more: str) -> Iterator[tuple[int, int]]:
    """The port of gunicorn, and the process of its one worker."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(directory), "-b", f"127.0.0.1:{port}"]
    options = ["-k", "gthread", "--threads", str(threads), "--log-level", "warning", "server:application"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    with subprocess.Popen([*command, *options], env=environment) as process:
        try:
            children: list[str] = []
            while not children and process.poll() is None:
                time.sleep(0.05)
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            while process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield port, int(children[0])
        finally:
            process.terminate()


def request(port: int, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> socket.socket:
    """A connection on which the request was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=120)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def read(connection: socket.socket, marks: list[float] | None = None) -> bytes:
    """The whole reply; ``marks`` gets the moment of its first event, and that of its end."""
    pieces: list[bytes] = []
    with connection:
        while data := connection.recv(1 << 18):
            if marks == [] and b"data:" in data:
                marks.append(time.perf_counter())
            pieces.append(data)
    if marks is not None:
        marks.append(time.perf_counter())
    return b"".join(pieces)


def body_of(reply: bytes) -> bytes:
    """The body of a reply, out of its chunks where it has any."""
    head, _, rest = reply.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 2"):
        raise RuntimeError(reply.decode())
    if b"chunked" not in head.lower():
        return rest
    said = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        said, rest = said + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return said


def our_run(port: int, words: int, pause: float = 0) -> socket.socket:
    """A connection on which the events of a run of ours come."""
    id = json.loads(body_of(read(request(port, "POST", "/api/sessions", b"{}"))))["id"]
    say = json.dumps({"messages": [{"role": "user", "content": f"{words} {pause}"}]}).encode()
    return request(port, "POST", f"/api/sessions/{id}/agent/talker", say)


def agno_run(port: int, words: int, pause: float = 0) -> socket.socket:
    form = f"message={words}+{pause}&stream=true".encode()
    return request(port, "POST", "/agents/talker/runs", form, "application/x-www-form-urlencoded")


class Row:
    """The figures of one server: milliseconds to the first event; microseconds for each further one, by the clock and
    of its processor. The difference of a long run and a short one: what a run costs by itself is in both.
    """

    def __init__(self, connect: Callable[[int], socket.socket], pid: int) -> None:
        self.connect = connect
        self.pid = pid
        self.first: list[float] = []
        self.each: list[float] = []
        self.processor: list[float] = []

    def measure(self, words: int, *, count: bool = True) -> None:
        """Read two runs, one of so many events, the other of a tenth."""
        (first, short, few), (_, long, much) = self._run(words // 10), self._run(words)
        if count:
            self.first.append(first * 1e3)
            self.each.append((long - short) / (words * 0.9) * 1e6)
            self.processor.append((much - few) / (words * 0.9) * 1e6)

    def _run(self, words: int) -> tuple[float, float, float]:
        marks: list[float] = []
        before, start = self._processor(), time.perf_counter()
        reply = read(self.connect(words), marks)
        took = self._processor() - before
        if len(marks) < 2 or reply.count(b"data:") < words:
            raise RuntimeError(f"{reply.count(b'data:')} of {words} events came: {reply[-300:]!r}")
        return marks[0] - start, marks[1] - start, took

    def _processor(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def many(port: int, connect: Any, streams: int, words: int, pid: int) -> dict[str, float]:
    """So many streams at once, each of which says a word every ten milliseconds: how late they are, and what they take
    of the server.
    """

    def seen() -> dict[str, int]:
        told = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {"kilobytes": int(told["VmRSS"].split()[0]), "threads": int(told["Threads"])}

    before, peak, over = seen(), {"kilobytes": 0, "threads": 0}, threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            now = seen()
            for name in peak:
                peak[name] = max(peak[name], now[name])

    looking = threading.Thread(target=look)
    looking.start()
    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        replies = list(pool.map(lambda _: read(connect(port, words, 10)), range(streams)))
    seconds = time.perf_counter() - start
    over.set()
    looking.join()
    if any(reply.count(b"data:") < words for reply in replies):
        raise RuntimeError("events are missing")
    return {
        "seconds": seconds,
        "threads a stream": (peak["threads"] - before["threads"]) / streams,
        "kilobytes a stream": (peak["kilobytes"] - before["kilobytes"]) / streams,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--store", action="store_true", help="ours with an SQLiteStore")
    parser.add_argument("--gunicorn", action="store_true", help="under gunicorn's thread workers, not under waitress")
    parser.add_argument("--peers", metavar="PYTHON", help="a Python with agno, uvicorn and fastapi")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "server.py").write_text(SERVER)
        (directory / "agno_server.py").write_text(AGNO)
        given = directory / "bytes"
        more = {"BENCH_BYTES": str(given)}
        if args.store:
            more["BENCH_STORE"] = str(directory / "sessions.db")
        threads = args.streams + 8
        script = str(directory / "server.py")
        waitress = child(sys.executable, script, str(threads), **more)
        port, pid = stack.enter_context(gunicorn(directory, threads, **more) if args.gunicorn else waitress)
        given.write_bytes(body_of(read(our_run(port, args.events))))
        rows = {
            "bare": Row(lambda count: request(port, "GET", f"/bare/1/{count}"), pid),
            "bare, 64 together": Row(lambda count: request(port, "GET", f"/bare/64/{count}"), pid),
            "ours": Row(lambda count: our_run(port, count), pid),
        }
        if args.peers:
            agno, agno_pid = stack.enter_context(child(args.peers, str(directory / "agno_server.py")))
            rows["agno"] = Row(lambda count: agno_run(agno, count), agno_pid)
        for number in range(args.rounds + 1):
            for row in rows.values():
                row.measure(args.events, count=number > 0)  # the first time: imports, and threads
        floor = statistics.median(rows["bare"].each)
        for name, row in rows.items():
            each, processor = statistics.median(row.each), statistics.mean(row.processor)
            print(
                f"{name:18} first event {statistics.median(row.first):7.2f} ms  {each:7.2f} us an event"
                f"  {each / floor:5.2f} times  {processor:7.2f} us of the processor"
            )
        together = {"ours": many(port, our_run, args.streams, 100, pid)}
        if args.peers:
            together["agno"] = many(agno, agno_run, args.streams, 100, agno_pid)
        for name, said in together.items():
            print(
                f"{name:18} {args.streams} streams of 100 events, one every 10 ms: {said['seconds']:.2f} s,"
                f" {said['threads a stream']:.1f} threads and {said['kilobytes a stream']:.0f} KB a stream"
            )
    if args.json:
        sys.path.insert(0, str(Path(__file__).parent))
        from results import write

        write(args.json, "serve, an event", {name: row.each for name, row in rows.items()}, unit="us")
        write(args.json, "serve, first event", {name: row.first for name, row in rows.items()}, unit="ms")
        write(
            args.json,
            f"serve, {args.streams} streams",
            {f"{name}, {what}": [value] for name, said in together.items() for what, value in said.items()},
        )


if __name__ == "__main__":
    main()
