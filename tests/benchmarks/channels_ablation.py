"""Where the time of a send and a receive goes: what is left of it as one guard after the other is taken away.

    python tests/benchmarks/channels_ablation.py [--rounds N]

The variants are made from the source of `Channel` itself, so they cannot fall behind it: a guard whose lines are no
longer there is an error. They take turns, pinned to one processor, and each figure is the lowest of its rounds; where
the code lies in memory alone makes 10 ns. The steps of the interpreter are counted without a clock. Each variant but
the first breaks a law of channels; it is there to show what keeping the law costs.
"""

from __future__ import annotations

import argparse
import gc
import os
import queue
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # instead of this directory, which has a file with the name of the package

from channels import _channel  # noqa: E402

PAIRS = 20_000

# What each guard is for; its lines in `send` and `recv` (a pattern), and what they become.
STEPS: list[tuple[str, str | None, str]] = [
    ("a close that came meanwhile is completed", r" +if self\._attention:\n +self\._attend\(\)\n", ""),
    ("a forked child forgets the threads that are gone", r" +if forked and .*\n +self\._refresh\(\)\n", ""),
    ("timeout= and cancel= are looked at", r" +if timeout is not cancel:(.*\n)+? +_look_at\(cancel\)\n", ""),
    ("who waits on the other side: a sender", r" +if self\._senders:\n +self\._refill\(\)\n", ""),
    ("room, open, and no receiver that waits", r"if len\(buffer\) < self\._room:", "if True:"),
    ("what to undo is known", r" +(entry: Any|value: T|waiter) = (None|NOTHING).*\n", ""),
    ("exceptions and Ctrl-C are undone", None, ""),
    ("a value is not taken by a call", r"value = buffer\[0\]\n +buffer\.popleft\(\)", "value = buffer.popleft()"),
    ("an operation in a signal handler finds it busy", r" +if lock\._is_owned\(\):\n +raise self\._re.*\n", ""),
    ("the lock", r"(?m)^ {8,16}lock(\.acquire\(\)|\.release\(\)| = self\._lock)\n", ""),
]


def without_try(source: str) -> str:
    """The body of the ``try``, in a block that costs nothing, and the rest of its handler never reached."""
    assert re.search(r"^        try:\n", source, re.M)
    source = re.sub(r"^        try:\n", "        if True:\n", source, flags=re.M)
    return re.sub(r"^        except BaseException:\n", "        else:\n", source, flags=re.M)


def variants() -> dict[str, type]:
    text = Path(_channel.__file__).read_text()
    found = re.findall(r"(?ms)^    def (?:send|recv)\(.*?(?=^    @final)", text)
    methods = dict(zip(found, found, strict=True))  # as they are in the text, and what is left of them
    made = {"as it is": _built(text)}
    for what, pattern, instead in STEPS:
        left = {
            whole: without_try(method) if pattern is None else re.sub(pattern, instead, method)
            for whole, method in methods.items()
        }
        if left == methods:
            raise SystemExit(f"{what}: its lines are not in Channel.send or recv any more")
        methods = left
        variant = text
        for whole, method in methods.items():
            variant = variant.replace(whole, method)
        made[what] = _built(variant)
    return made


def _built(text: str) -> type:
    module = types.ModuleType("channels._variant")
    module.__package__ = "channels"
    exec(compile(text, "variant", "exec"), vars(module))
    channel: type = module.Channel
    return channel


def pair(send: Callable[[Any], object], recv: Callable[[], object]) -> float:
    """Nanoseconds of one send and one receive."""
    began = perf_counter()
    for _ in range(PAIRS):
        send(1)
        recv()
    return (perf_counter() - began) / PAIRS * 1e9


def steps(channel: Any) -> int:
    """Of the interpreter, in one send and one receive."""
    counted = 0

    def trace(frame: types.FrameType, event: str, _: object) -> Any:
        nonlocal counted
        frame.f_trace_opcodes = True
        counted += event == "opcode"
        return trace

    for _ in range(3):  # CPython 3.12 and later count from the second time on
        counted = 0
        sys.settrace(trace)
        channel.send(1)
        channel.recv()
        sys.settrace(None)
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    made = variants()
    # A function of its own for each: CPython fits a loop to what it calls.
    loops = {name: types.FunctionType(pair.__code__.replace(), globals()) for name in ["queue.Queue", *made]}
    found: dict[str, list[float]] = {name: [] for name in loops}
    gc.disable()
    for _ in range(rounds):
        floor = queue.Queue[int](128)
        found["queue.Queue"].append(loops["queue.Queue"](floor.put, floor.get))
        for name, channel in made.items():
            one = channel(128)
            found[name].append(loops[name](one.send, one.recv))
    counts = {name: steps(channel(128)) for name, channel in made.items()}
    lowest = {name: min(times) for name, times in found.items()}
    print(f"CPython {sys.version.split()[0]}, nanoseconds of a send and a receive, the lowest of {rounds} rounds\n")
    left = lowest["as it is"]
    for name, took in lowest.items():
        saved = "" if name in ("queue.Queue", "as it is") else f"{took - left:+5.0f}"
        left = took
        said = name if not saved else f"without: {name}"
        ratio = took / lowest["queue.Queue"]
        print(f"  {said:60s} {took:6.0f} {saved:5s} {ratio:.2f} of queue.Queue, {counts.get(name, '-')} steps")


if __name__ == "__main__":
    main()
