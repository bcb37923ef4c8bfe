"""The files of benchmark figures: written, and held against each other."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "tests" / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compared(*arguments: object) -> str:
    program = [sys.executable, str(BENCHMARKS / "compare.py"), *map(str, arguments)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_row_is_marked_where_its_rounds_do_not_meet(tmp_path: Path) -> None:
    write = load("results").write
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    rows = {"steady": [1.0, 1.1], "worse": [1.0, 1.1], "noisy": [1.0, 5.0], "better": [2.0, 2.1], "gone": [1.0]}
    write(before, "part", rows, unit="us")
    write(
        after, "part", {"steady": [1.02], "worse": [1.2, 1.3], "noisy": [4.9], "better": [1.0], "new": [1.0]}, unit="us"
    )
    write(after, "another", {"a": [1.0]})
    said = compared(before, after)
    assert [line.split()[0] for line in said.splitlines() if " x " in line] == ["slower", "faster"]
    assert "part: worse, us" in said
    assert "4 rows: 1 slower, 1 faster" in said
    assert "part: gone is only in the first file" in said
    assert "another: a is only in the second file" in said
    assert "steady" in compared(before, after, "--all")


def test_figures_of_two_machines_are_said_to_be_so(tmp_path: Path) -> None:
    write = load("results").write
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    write(before, "part", {"a": [1.0]})
    after.write_text(before.read_text().replace('"python": "3.', '"python": "2.'))
    assert "not the same machine or Python" in compared(before, after)
    assert "not the same machine or Python" not in compared(before, before)


def test_the_benchmark_of_growth_runs_and_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    growth = load("growth")
    figures = growth.measure(1, 10)
    load("results").write(file, "growth", figures)
    assert all(values and min(values) >= 0 for values in figures.values())
    assert len(figures) == 2 * len(growth.ROWS)
    assert "faster, the others as before" in compared(file, file)


def test_the_benchmark_of_serving_runs_and_writes_its_figures(tmp_path: Path) -> None:
    pytest.importorskip("waitress", reason="the extra serve is not installed")
    file = tmp_path / "figures.json"
    program = [sys.executable, str(BENCHMARKS / "serve.py"), "--events", "200", "--rounds", "1", "--streams", "2"]
    done = subprocess.run([*program, "--json", str(file)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert set(rows["serve, an event"]) == {"bare", "bare, 64 together", "ours"}
    assert rows["serve, 2 streams"]["ours, threads a stream"]["values"] > [0]
