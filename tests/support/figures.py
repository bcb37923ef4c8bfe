"""What tests count and measure, printed at the end of the run; also where they ran in other processes (pytest-xdist).

Each process collects its own. A worker of pytest-xdist hands them over as it ends, and the process that prints adds
them up. The hooks are in `tests/conftest.py`: of the conftest files further down, that process loads none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

FAULTS = "faults injected"
INTERLEAVINGS = "interleavings"
MEASURED = "measured"

counted: defaultdict[str, Counter[str]] = defaultdict(Counter)  # section -> what -> how many
lines: defaultdict[str, list[str]] = defaultdict(list)  # section -> lines to print as they are
details: defaultdict[str, list[str]] = defaultdict(list)  # the same, for ``pytest -v`` only

_IN_A_SENTENCE = {
    INTERLEAVINGS: "explored {schedules} schedules of {scenarios} scenarios ({unfinished} not to their end), "
    "{thrown} exceptions thrown, {nested} operations nested, {steps} steps, {seconds:.0f} s"
}


def packed() -> dict[str, Any]:
    """All of it in plain values, as they are sent to another process."""
    return {
        "counted": {section: dict(counter) for section, counter in counted.items()},
        "lines": dict(lines),
        "details": dict(details),
    }


def add(other: dict[str, Any]) -> None:
    """Add what another process has `packed`."""
    for section, counter in other["counted"].items():
        counted[section].update(counter)
    for mine, theirs in ((lines, other["lines"]), (details, other["details"])):
        for section, more in theirs.items():
            mine[section] += more


def write(reporter: Any) -> None:
    """Print what there is."""
    for section in (FAULTS, INTERLEAVINGS, MEASURED):
        counter = counted[section]
        told = [*(details[section] if reporter.verbosity > 0 else ()), *lines[section]]
        if counter and section in _IN_A_SENTENCE:
            told.append(_IN_A_SENTENCE[section].format_map(counter))
        elif counter:
            told += [f"{number:6} {name}" for name, number in sorted(counter.items())]
            told.append(f"{counter.total():6} in all")
        if told:
            reporter.section(section)
            for line in told:
                reporter.write_line(line)
