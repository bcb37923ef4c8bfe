"""Where an asynchronous exception comes at a loop's jump back, it meets the ``try`` around the loop.

CPython looks for signals and exceptions thrown from outside when a loop jumps back, but its compiler takes that jump
for an instruction that cannot raise: where nothing else in the jump's block can, the block is left out of the exception
table, and the ``except`` around the loop does not see the exception. A value would be lost there, or a lock left held.
Such a loop goes into a function of its own: the call of that is covered.
"""

from __future__ import annotations

import dis
import importlib
import pathlib
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

import channels

# Not aio, and not the timers: no signals come to threads of our own.
MODULES = sorted({path.stem for path in pathlib.Path(channels.__file__).parent.glob("_[a-z]*.py")} - {"_timer"})


def functions(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from functions(constant)


def uncovered(code: CodeType) -> list[int]:
    """The lines of jumps back that are outside of a ``try`` in which they end up."""
    steps = {step.offset: step for step in dis.get_instructions(code)}
    entries: Any = getattr(dis, "_parse_exception_table")(code)  # noqa: B009  # of no public function
    tries = [entry for entry in entries if steps[entry.target].opname == "PUSH_EXC_INFO"]  # others tidy the stack

    def inside(offset: int) -> bool:
        return any(entry.start <= offset < entry.end for entry in tries)

    return [
        jump.positions.lineno or 0
        for jump in steps.values()
        if jump.opname == "JUMP_BACKWARD" and inside(jump.argval) and not inside(jump.offset) and jump.positions
    ]


@pytest.mark.parametrize("name", MODULES)
def test_no_jump_back_leaves_its_try(name: str) -> None:
    module = importlib.import_module(f"channels.{name}")
    source = pathlib.Path(module.__file__ or "")
    found = {
        code.co_name: lines
        for code in functions(compile(source.read_text(), str(source), "exec"))
        if not code.co_flags & 0x20  # generators: the handler is CPython's own, around all of it
        and (lines := uncovered(code))
    }
    assert found == {}


def test_it_would_be_seen() -> None:
    def loops(ready: Any) -> None:
        try:
            while None not in ready[-1:]:
                ready += [1]
        except KeyboardInterrupt:
            pass

    assert isinstance(loops, FunctionType)
    lines = uncovered(loops.__code__)
    assert lines in ([], [loops.__code__.co_firstlineno + 2])  # [] from the Python on that covers it
