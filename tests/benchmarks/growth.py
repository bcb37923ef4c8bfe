"""What a unit costs where there are many of them: each row is to be flat, from the smallest number to the largest.

    python tests/benchmarks/growth.py [--rounds N] [--quick] [--json FILE]

A figure is in microseconds of processor time of the whole process, the best of the rounds, in which the numbers take
turns; the last column is the largest number's against the smallest's. `tests/runtime/test_growth.py` counts what is
done where this measures how long it takes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
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


@tool(read_only=True)
def nothing(n: int) -> str:
    """Does nothing."""
    return "ok"


class Turns:
    """A model that asks for a tool call so many times. ``window`` is its context window in tokens."""

    id = "turns"

    def __init__(self, turns: int, window: int | None = None) -> None:
        self.left = turns
        if window is not None:
            self.context_window = window

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> Iterator[Delta]:
        self.left -= 1
        if self.left < 0:
            yield TextDelta("done")
        else:
            yield ToolCallDelta(0, f"call-{self.left}", "nothing", f'{{"n": {self.left}}}')


class Arguments:
    """A model that writes the arguments of a call in so many deltas."""

    id = "arguments"

    def __init__(self, deltas: int) -> None:
        self.deltas = deltas

    def stream(
        self, messages: Sequence[Message], tools: Sequence[ToolDefinition], *, cancel: CancelToken
    ) -> Iterator[Delta]:
        deltas, self.deltas = self.deltas, 0
        if not deltas:
            yield TextDelta("done")
            return
        yield ToolCallDelta(0, "call", "nothing", '{"n": 1')
        for _ in range(deltas):
            yield ToolCallDelta(0, "", "", " ")
        yield ToolCallDelta(0, "", "", "}")


class Observer:
    def on_event(self, session: Session, event: Any) -> None:
        pass


def run(model: Any, session: Session, *, recorded: bool = False, observed: bool = False, turns: int = 10) -> None:
    agent = Agent("a", model, tools=[nothing], max_iterations=turns + 5)
    observers = [Observer()] if observed else []
    with tempfile.TemporaryDirectory() as folder, Runtime(agent, observers=observers) as runtime:
        more: dict[str, Any] = {"record": os.path.join(folder, "run.jsonl")} if recorded else {}
        for _ in runtime.run_stream(session, **more):
            pass


def turns(n: int, window: int | None = None, **how: bool) -> None:
    run(Turns(n, window), Session.from_user("go"), turns=n, **how)


def arguments(n: int, **how: bool) -> None:
    run(Arguments(n), Session.from_user("go"), **how)


def long_session(n: int) -> Session:
    said = [Message("assistant" if i % 2 else "user", f"message {i}") for i in range(n - 1)]
    return Session([*said, Message("user", "go")])


def streams(n: int, count: int = 20) -> Callable[[], None]:
    """So many streams, one after the other, on a session of ``n`` messages."""
    session = long_session(n)
    run(Turns(0, window=1 << 40), session)

    def work() -> None:
        for _ in range(count):
            session.add_user("go on")
            run(Turns(0, window=1 << 40), session)

    return work


#: Of each row: the numbers, the units that one run has, and what makes the run.
Row = tuple[Sequence[int], Callable[[int], int], Callable[[int], Callable[[], None]]]
ROWS: dict[str, Row] = {
    "turn": ((250, 2000), lambda n: n, lambda n: lambda: turns(n)),
    "turn, known window": ((250, 2000), lambda n: n, lambda n: lambda: turns(n, 1 << 40)),
    "turn, recorded": ((125, 1000), lambda n: n, lambda n: lambda: turns(n, recorded=True)),
    "turn, observed": ((125, 1000), lambda n: n, lambda n: lambda: turns(n, observed=True)),
    "argument delta": ((12_500, 100_000), lambda n: n, lambda n: lambda: arguments(n)),
    "argument delta, recorded": ((1500, 12_000), lambda n: n, lambda n: lambda: arguments(n, recorded=True)),
    "stream on a session of": ((1250, 10_000), lambda n: 20, streams),
}


def measure(rounds: int, divide: int) -> dict[str, list[float]]:
    """Microseconds of each row and number, of each round."""
    figures: dict[str, list[float]] = {}
    for name, (numbers, units, prepare) in ROWS.items():
        works = {}
        for number in numbers:
            number = number if prepare is streams else max(number // divide, 8)
            works[number] = prepare(number)
        for _ in range(rounds):
            for number, work in works.items():
                begin = time.process_time()
                work()
                took = (time.process_time() - begin) / units(number) * 1e6
                figures.setdefault(f"{name} {number}", []).append(took)
        columns = [(number, min(figures[f"{name} {number}"])) for number in works]
        said = "".join(f"{number:>9}: {best:8.1f} us" for number, best in columns)
        print(f"{name:26}{said}   x {columns[-1][1] / columns[0][1]:.2f}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a fifth of the numbers, two rounds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(2 if options.quick else options.rounds, 5 if options.quick else 1)
    if options.json:
        write(options.json, "growth", figures, unit="us")


if __name__ == "__main__":
    main()
