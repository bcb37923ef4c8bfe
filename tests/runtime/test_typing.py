"""What the type checker promises: the output of a run is of the type that it was started for.

Every line of `PROGRAM` that ends in ``# error: code`` must be refused for that reason, and no other line.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

PROGRAM = """
from dataclasses import dataclass
from typing import Any, TypedDict, assert_type
from runtime import Agent, Model, RunResult, Runtime, Session

@dataclass
class Table:
    people: int

class Place(TypedDict):
    stars: int

def program(model: Model, session: Session) -> None:
    with Runtime(Agent("a", model, output_type=Table)) as runtime:
        table = runtime.run(session, output_type=Table)
        assert_type(table, RunResult[Table])
        assert_type(table.output.people, int)
        table.output.stars  # error: attr-defined
        assert_type(runtime.run(session, output_type=Place).output["stars"], int)
        assert_type(runtime.run(session, output_type=list[int]).output, list[int])
        assert_type(runtime.run(session).output, Any)
        assert_type(table.text, str)
        runtime.run(session, record=3)  # error: call-overload
        with runtime.run_stream(session, output_type=Table) as stream:
            assert_type(stream.result(), RunResult[Any])
        for mapped, done in runtime.map(["hello", session], output_type=Table):
            assert_type((mapped, done.output.people), tuple[Session, int])
        runtime.map([1, 2])  # error: list-item
"""


@pytest.mark.timeout(180)  # mypy reads everything, on a busy machine and without a cache
def test_types(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """mypy --strict agrees, line by line."""
    root = pytestconfig.rootpath
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "--no-pretty"),
            *(f"--cache-dir={root / '.mypy_cache' / 'tests'}", str(path)),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert run.stderr == ""
    found = {
        (int(line), code)
        for line, code in re.findall(r"program\.py:(\d+): error: .*\[([a-z-]+)\]$", run.stdout, re.MULTILINE)
    }
    expected = {
        (number, match[1])
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if (match := re.search(r"# error: ([a-z-]+)$", line))
    }
    assert found == expected, run.stdout
