"""Runs that are killed with SIGKILL and taken up by the next process, until they have ended. A program, without
threads, so that it can fork: one life is a fork of it, with everything imported.

    python -m support.kill_runs writes DIRECTORY         killed at each of its writes, before or after it
    python -m support.kill_runs moments DIRECTORY KILLS SEED    killed at random moments

It prints how many lives were killed, and ends with 1 where a law is broken.
"""

from __future__ import annotations

import collections
import itertools
import os
import pathlib
import random
import signal
import sys
import time
from typing import Any

from runtime import Runtime, Session
from runtime.stores import SQLiteStore
from support.stores import RESULTS, Strike, Watched, World, consume, results

UNSURE = "it is not known whether it took effect"


class Lives:
    """The lives of one session, in one directory."""

    def __init__(self, directory: pathlib.Path, name: str) -> None:
        self.path = directory / f"{name}.db"
        self.effects_path = directory / f"{name}.effects"
        self.session_id = name
        self.killed = 0

    def live(self, strike: Strike | None = None, after: Strike | None = None) -> int:
        """Fork; the child runs the session as far as it comes. The pid of the child."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            self._run(strike, after)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _run(self, strike: Strike | None, after: Strike | None) -> None:
        world = World()
        effects = os.open(self.effects_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        world.effect = lambda what: os.write(effects, f"{what}\n".encode())  # type: ignore[method-assign]
        with SQLiteStore(self.path) as inner:
            store = Watched(strike, inner, after)
            found = [each.id for each in inner.sessions()]
            session = inner.load(self.session_id) if found else self._begun()
            with Runtime(world.team(), store=store, titles=True) as runtime, runtime.run_stream(session) as stream:
                consume(stream, [])
                stream.result()

    def _begun(self) -> Session:
        session = Session.from_user("go")
        session.id = self.session_id
        return session

    def end(self) -> None:
        """Let the next process bring the session to its end, and look at what has happened. Raises `AssertionError`."""
        _, status = os.waitpid(self.live(), 0)
        assert status == 0, f"{self.session_id} does not come to its end: {status}"
        with SQLiteStore(self.path) as store:
            session = store.load(self.session_id)
            assert store.sessions()[0].status == "idle"
            assert store.sessions()[0].reason == "normal"
        found = results(session)
        for id, result in RESULTS.items():
            assert found.get(id) == result or UNSURE in found.get(id, ""), f"{self.session_id}: {found}"
        assert [message.content for message in session.messages][-1] == "done"
        for effect, times in collections.Counter(self.effects_path.read_text().split("\n")).items():
            if effect.startswith("pay"):
                assert times == 1, f"{self.session_id}: {effect}, {times} times"


def at_each_write(directory: pathlib.Path) -> int:
    """Kill at each write, before it or, every other time, as soon as it is durable; how many lives that were."""
    for number in itertools.count(1):
        lives = Lives(directory, f"write-{number}")

        def kill(at: int, store: Watched, number: int = number) -> None:
            if at == number:
                os.kill(os.getpid(), signal.SIGKILL)

        _, status = os.waitpid(lives.live(kill) if number % 2 else lives.live(after=kill), 0)
        lives.end()
        if not os.WIFSIGNALED(status) and number > 30:  # some writes are no entries, and have no moment after
            return number - 1
    raise AssertionError


def at_random_moments(directory: pathlib.Path, kills: int, seed: int) -> int:
    """Kill each life of a session a little later, until it has come to its end; the same again with the next."""
    chance = random.Random(seed)
    killed = session = 0
    while killed < kills:
        session += 1
        lives = Lives(directory, f"moment-{session}")
        ended = False
        while not ended and killed < kills:
            pid = lives.live()
            time.sleep(chance.uniform(0.0, 0.06))  # any moment will do
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            killed += os.WIFSIGNALED(status)
            ended = not os.WIFSIGNALED(status)
        lives.end()
    return killed


def main(what: str, directory: str, *more: Any) -> None:
    """The program."""
    where = pathlib.Path(directory)
    if what == "writes":
        print(f"{at_each_write(where)} lives were killed at a write")
    else:
        print(f"{at_random_moments(where, int(more[0]), int(more[1]))} lives were killed at random moments")


if __name__ == "__main__":
    main(*sys.argv[1:])
