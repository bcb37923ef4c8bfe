"""Holds two files of figures (``--json``) against each other: what has become slower, by more than the figures vary.

    python tests/benchmarks/compare.py before.json after.json [--all]

A row has the median of each file, the lowest and highest round, and the ratio of the medians. It is marked where every
round of one file lies above every round of the other, and the medians are more than 5 % apart: with the spread that a
row has on that machine, anything else may be chance. Nothing is judged: the exit status is 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

APART = 0.05  # of the median


class Row(NamedTuple):
    """A row of both files."""

    name: str
    unit: str
    before: Sequence[float]
    after: Sequence[float]

    @property
    def ratio(self) -> float:
        before, after = statistics.median(self.before), statistics.median(self.after)
        return after / before if before else 1.0

    @property
    def verdict(self) -> str:
        if abs(self.ratio - 1) <= APART:
            return ""
        if min(self.after) > max(self.before):
            return "slower"
        return "faster" if max(self.after) < min(self.before) else ""


def rows(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Row]:
    """Those that both files have, in the order of the second."""
    for benchmark, found in after["rows"].items():
        known = before["rows"].get(benchmark, {})
        for name, figures in found.items():
            if name in known and known[name]["values"] and figures["values"]:
                yield Row(f"{benchmark}: {name}", figures["unit"], known[name]["values"], figures["values"])


def missing(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """The rows that only one file has."""
    names = [{(part, row) for part, found in each["rows"].items() for row in found} for each in (before, after)]
    for part, row in sorted(names[0] ^ names[1]):
        yield f"{part}: {row} is only in the {'first' if (part, row) in names[0] else 'second'} file"


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):10.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--all", action="store_true", help="the rows that have not changed, too")
    options = parser.parse_args()
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (options.before, options.after))
    if before.get("machine") != after.get("machine"):
        print(f"not the same machine or Python: {before.get('machine')} and {after.get('machine')}\n")
    found = list(rows(before, after))
    for row in found:
        if options.all or row.verdict:
            print(f"{row.verdict:7}{row.ratio:6.2f} x  {row.name}, {row.unit}".rstrip(" ,"))
            print(f"{'':17}{spread(row.before)}  ->{spread(row.after)}")
    marked = [row.verdict for row in found if row.verdict]
    print(f"{len(found)} rows: {marked.count('slower')} slower, {marked.count('faster')} faster, the others as before")
    print(*missing(before, after), sep="\n", end="\n")


if __name__ == "__main__":
    main()
