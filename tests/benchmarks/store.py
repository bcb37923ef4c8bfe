"""What it costs that sessions last: `SQLiteStore` against bare SQLite, and streams with a store against those without.

    python tests/benchmarks/store.py [--directory DIR] [--rounds N] [--quick] [--json FILE]

Each figure and the one that it is held against take turns in one process. Where threads wait for each other a figure
is the time on the clock, the median of the rounds; elsewhere it is processor time, the best of the rounds, which says
the same on a busy machine. It has no waiting for the disk in it: with ``--durability power``, and on a slow disk, the
clock says more, and ``--clock`` shows it.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]

from results import write  # noqa: E402

from channels import CancelToken  # noqa: E402
from runtime import (  # noqa: E402
    Agent,
    Delta,
    Message,
    Runtime,
    Session,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
    tool,
)
from runtime.session._journal import Said  # noqa: E402
from runtime.stores import MemoryStore, SQLiteStore  # noqa: E402

TEXT = "A message of about two hundred characters, as models and tools write them. " * 3
THREADS = 64

now = time.process_time


class Bare:
    """What an append has to do at least: a row, and a row that is changed, in a transaction of its own."""

    def __init__(self, path: Path, durability: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
        self.connection.execute("CREATE TABLE IF NOT EXISTS heads (id INTEGER PRIMARY KEY, messages INTEGER)")
        self.connection.execute("CREATE TABLE IF NOT EXISTS items (id INTEGER, seq INTEGER, data TEXT)")
        self.seq = 0

    def append(self, id: int) -> None:
        self.seq += 1
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        data = json.dumps(Message("assistant", TEXT).to_dict(), ensure_ascii=False)
        execute("INSERT INTO items VALUES (?, ?, ?)", (id, self.seq, data))
        execute(
            "INSERT INTO heads VALUES (?, ?) ON CONFLICT DO UPDATE SET messages = excluded.messages", (id, self.seq)
        )
        execute("COMMIT")


def timed(work: Callable[[], object], count: int) -> float:
    """Microseconds of one of ``count`` calls."""
    begin = now()
    for _ in range(count):
        work()
    return (now() - begin) / count * 1e6


def appends(directory: Path, durability: Any, count: int) -> dict[str, float]:
    """Microseconds of an append by the only thread."""
    bare = Bare(directory / "bare.db", durability)
    with SQLiteStore(directory / "store.db", durability=durability) as store:
        journal, memory = store.open(Session()), MemoryStore().open(Session())
        found = {
            "bare SQLite": timed(lambda: bare.append(0), count),
            "SQLiteStore": timed(lambda: journal.append(Said(Message("assistant", TEXT))), count),
            "MemoryStore": timed(lambda: memory.append(Said(Message("assistant", TEXT))), count),
        }
        journal.release("idle")
    bare.connection.close()
    return found


def together(append: Sequence[Callable[[], object]], count: int) -> list[float]:
    """Milliseconds of each append, of so many threads at once."""
    took: list[float] = []
    line = threading.Barrier(len(append))

    def work(each: Callable[[], object]) -> None:
        line.wait()
        for _ in range(count):
            begin = time.perf_counter()
            each()
            took.append((time.perf_counter() - begin) * 1e3)

    threads = [threading.Thread(target=work, args=(each,)) for each in append]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(took)


def many(directory: Path, durability: Any, count: int) -> dict[str, list[float]]:
    """Milliseconds of an append, of 64 threads at once: one writer, and a connection for each thread."""
    with SQLiteStore(directory / "many.db", durability=durability) as store:
        journals = [store.open(Session()) for _ in range(THREADS)]
        one = together(
            [lambda journal=journal: journal.append(Said(Message("assistant", TEXT))) for journal in journals], count
        )
        for journal in journals:
            journal.release("idle")
    bare = [Bare(directory / "many-bare.db", durability) for _ in range(THREADS)]
    own = together([lambda n=n: bare[n].append(n) for n in range(THREADS)], count)
    for each in bare:
        each.connection.close()
    return {"own connections": own, "SQLiteStore": one}


def loads(directory: Path, messages: int) -> dict[str, float]:
    """Milliseconds to read a session of so many messages, and to make one of JSON that is in memory."""
    session = Session([Message("assistant" if n % 2 else "user", TEXT) for n in range(messages)])
    text = json.dumps(session.to_dict())
    with SQLiteStore(directory / "load.db") as store:
        store.open(session).release("idle")
        found = {
            f"from_dict {messages}": timed(lambda: Session.from_dict(json.loads(text)), 3) / 1e3,
            f"load {messages}": timed(lambda: store.load(session.id), 3) / 1e3,
        }
        loaded = store.load(session.id)
        found[f"open {messages}"] = timed(lambda: store.open(loaded).release("idle"), 20) / 1e3
        found[f"list {messages}"] = timed(lambda: store.sessions(), 20) / 1e3
    return found


def growth(directory: Path, lengths: Sequence[int], count: int) -> dict[str, float]:
    """Microseconds of an append to a session that has so many messages."""
    found = {}
    with SQLiteStore(directory / "growth.db") as store:
        for length in lengths:
            session = Session([Message("user", TEXT) for _ in range(length)])
            journal = store.open(session)
            found[f"append behind {length}"] = timed(lambda: journal.append(Said(Message("assistant", TEXT))), count)
            journal.release("idle")
    return found


@tool(read_only=True)
def nothing(n: int) -> str:
    """Does nothing."""
    return "ok"


@tool
def something(n: int) -> str:
    """May do something, so it is written down that it has begun."""
    return "ok"


class Turns:
    """A model that asks for a tool call so many times, then says so many deltas."""

    id = "turns"

    def __init__(self, turns: int, name: str, deltas: int) -> None:
        self.left, self.name, self.deltas = turns, name, deltas

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> Iterator[Delta]:
        self.left -= 1
        if self.left >= 0:
            yield ToolCallDelta(0, f"call-{self.left}", self.name, f'{{"n": {self.left}}}')
        else:
            for _ in range(self.deltas):
                yield TextDelta("word ")


def stream(store: Any, turns: int, name: str, deltas: int) -> float:
    """Seconds of a stream."""
    from runtime import Permissions

    agent = Agent("a", Turns(turns, name, deltas), tools=[nothing, something], max_iterations=turns + 5)
    with Runtime(agent, store=store, permissions=Permissions(approve_all=True)) as runtime:
        begin = now()
        for _ in runtime.run_stream(Session.from_user("go")):
            pass
        return now() - begin


def streams(directory: Path, durability: Any, turns: int, deltas: int) -> dict[str, float]:
    """Microseconds per tool turn and per delta, with and without a store."""
    found = {}
    with SQLiteStore(directory / "streams.db", durability=durability) as store:
        for name, each in (("none", None), ("memory", MemoryStore()), ("sqlite", store)):
            found[f"turn, {name}"] = stream(each, turns, "something", 1) / turns * 1e6
            found[f"read-only turn, {name}"] = stream(each, turns, "nothing", 1) / turns * 1e6
            found[f"delta, {name}"] = stream(each, 0, "", deltas) / deltas * 1e6
    return found


def percentile(values: Sequence[float], share: float) -> float:
    return values[min(int(len(values) * share), len(values) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--durability", choices=("process", "power"), default="process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the numbers, two rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--clock", action="store_true", help="the time on the clock everywhere")
    options = parser.parse_args()
    if options.clock:
        global now
        now = time.perf_counter
    rounds, divide = (2, 10) if options.quick else (options.rounds, 1)
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=options.directory) as folder:
            where, durability = Path(folder), options.durability
            found = appends(where, durability, 2000 // divide)
            found |= growth(where, (10, 10_000 // divide), 500 // divide)
            found |= loads(where, 10_000 // divide)
            found |= streams(where, durability, 300 // divide, 20_000 // divide)
            for name, values in many(where, durability, 50 // divide).items():
                for share, said in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")):
                    found[f"{THREADS} threads, {name}, {said}"] = percentile(values, share)
            for name, value in found.items():
                figures.setdefault(name, []).append(value)
    said = {
        name: statistics.median(values) if name.startswith(str(THREADS)) else min(values)
        for name, values in figures.items()
    }
    for name, value in said.items():
        unit = "ms" if name.startswith(("load", "open", "list", "from_dict", str(THREADS))) else "us"
        print(f"{name:44}{value:12.2f} {unit}")
    small, large = (value for name, value in said.items() if name.startswith("append behind"))
    print()
    print(f"an append, of bare SQLite's:      {said['SQLiteStore'] / said['bare SQLite']:.2f}")
    print(f"the same in a long session:       {large / small:.2f}")
    print(f"a tool turn more with a store:    {said['turn, sqlite'] - said['turn, none']:.0f} us")
    print(f"a delta, of one without a store:  {said['delta, sqlite'] / said['delta, none']:.2f}")
    if options.json:
        write(options.json, "store", figures)


if __name__ == "__main__":
    main()
