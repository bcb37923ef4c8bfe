"""A program that kills processes which write one store, at random moments, and checks what is in it then.

    python tests/support/store_kills.py PATH ROUNDS SEED        # or the connection string of a PostgreSQL database

Each round forks two writers. Each of these has threads that write sessions of their own, call by call, and one that
takes turns with the other process on a session that both want. What was acknowledged goes into a pipe, and has to be in
the store once both were killed with SIGKILL. The next round takes the sessions over from the dead.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runtime import Message, Session, SessionBusy, ToolCall
from runtime._errors import SessionChanged, SessionNotFound
from runtime.session._journal import Began, Ended, Said
from runtime.stores import SQLiteStore

WRITERS = 2
THREADS = 3  # with a session of its own, in each writer
GENERATION = 40  # rounds after which new sessions are begun: loading them shall not take all the time
SHARED = "shared"


def opened(path: str) -> Any:
    """The store, of which each process makes its own."""
    if "=" not in path:
        return SQLiteStore(path)
    from runtime.stores.postgres import PostgresStore

    return PostgresStore(path)


def loaded(store: Any, id: str) -> Session:
    try:
        return store.load(id)
    except SessionNotFound:
        return Session([Message("user", "go")], id=id)


def write_own(store: Any, id: str, round: int, acknowledge: Callable[[str], None]) -> None:
    """Calls, one after the other, with each of their states."""
    session = loaded(store, id)
    journal = store.open(session)
    assert session._unfinished is not None
    for call_id in session._unfinished.calls:  # in doubt since the last round
        journal.append(Ended(Message("tool", "not known", tool_call_id=call_id)))
    for n in itertools.count():
        name = f"{round}.{n}"
        journal.append(Said(Message("assistant", name, tool_calls=(ToolCall(name, "pay"),))))
        acknowledge(f"{id} open {name}")
        journal.append(Began(name, "{}"))
        acknowledge(f"{id} began {name}")
        journal.append(Ended(Message("tool", "paid", tool_call_id=name)))
        acknowledge(f"{id} ended {name}")


def write_shared(store: Any, id: str, round: int, acknowledge: Callable[[str], None]) -> None:
    """A session that another process wants too: whoever has it writes a few messages and gives it back."""
    for n in itertools.count():
        try:
            journal = store.open(loaded(store, id))
        except (SessionBusy, SessionChanged):
            time.sleep(0.0005)
            continue
        for k in range(3):
            name = f"{round}.{os.getpid()}.{n}.{k}"
            journal.append(Said(Message("assistant", name)))
            acknowledge(f"{id} shared {name}")
        journal.release("idle")


def writer(path: str, round: int, which: int, out: int) -> None:
    """One process, until it is killed."""

    def acknowledge(what: str) -> None:
        os.write(out, f"{what}\n".encode())  # in one piece

    def go(function: Callable[..., None], id: str) -> None:
        try:
            function(store, id, round, acknowledge)
        except BaseException:
            os.write(out, f"failed: {traceback.format_exc()!r}\n".encode())

    store = opened(path)
    generation = round // GENERATION
    jobs = [(write_own, f"own-{generation}-{which}-{n}") for n in range(THREADS)]
    jobs.append((write_shared, f"{SHARED}-{generation}"))
    for each in jobs:
        threading.Thread(target=go, args=each, daemon=True).start()
    signal.pause()


def check(path: str, acknowledged: list[str]) -> None:
    """What was acknowledged is there, once, in its order; and the calls are in the state that they are in."""
    wanted: dict[str, dict[str, str]] = {}
    for line in acknowledged:
        assert not line.startswith("failed"), line
        id, state, name = line.split()
        wanted.setdefault(id, {})[name] = state  # the last one counts
    with opened(path) as store:
        for id, states in wanted.items():
            session = store.load(id)
            said = [message.content for message in session.messages if message.role == "assistant"]
            twice = [name for name, count in Counter(said).items() if count > 1]
            assert not twice, f"{id}: {twice} is there twice"
            missing = set(states) - set(said)
            assert not missing, f"{id}: {missing} was acknowledged, and is not there"
            if id.startswith(SHARED):
                continue
            order = [tuple(map(int, name.split("."))) for name in said]
            assert order == sorted(order), f"{id}: out of order"
            results = Counter(message.tool_call_id for message in session.messages if message.role == "tool")
            assert all(count == 1 for count in results.values()), f"{id}: two results of one call"
            assert session._unfinished is not None
            calls = session._unfinished.calls
            assert len(calls) <= 1
            assert set(calls) | set(results) == set(said)
            for name, state in states.items():
                is_now = "ended" if name in results else calls[name].phase
                allowed = {"open": ("open", "began", "ended"), "began": ("began", "ended"), "ended": ("ended",)}
                # One step may have been written whose acknowledgement was cut off.
                assert is_now in allowed[state][:2], f"{id}: {name} was {state}, and is {is_now}"
        for info in store.sessions(limit=1000):
            assert info.status in ("idle", "interrupted"), info


def in_child(function: Callable[[], None]) -> int:
    """The process of a child that calls the function."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def kill_round(path: str, round: int, rng: random.Random) -> int:
    """How many entries were acknowledged."""
    reading, writing = os.pipe()
    children = [in_child(lambda which=which: writer(path, round, which, writing)) for which in range(WRITERS)]
    os.close(writing)
    said = b""
    try:
        said = os.read(reading, 65536)  # it has begun
        until = time.monotonic() + rng.uniform(0.0, 0.03)
        os.set_blocking(reading, False)
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                said += os.read(reading, 65536)
            time.sleep(0.0005)
    finally:
        rng.shuffle(children)
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
    os.set_blocking(reading, True)
    while piece := os.read(reading, 65536):
        said += piece
    os.close(reading)
    lines = said.decode().splitlines()
    status = os.waitpid(in_child(lambda: check(path, lines)), 0)[1]
    if status:
        raise SystemExit(f"round {round} failed")
    return len(lines)


def main() -> None:
    path, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    acknowledged = sum(kill_round(path, round, rng) for round in range(rounds))
    if "=" not in path:
        with contextlib.closing(sqlite3.connect(path)) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    print(f"{WRITERS * rounds} processes killed, {acknowledged} entries acknowledged, none lost")


if __name__ == "__main__":
    main()
