"""Faults at every step of every scenario; the laws hold after each."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from support.fault_scenarios import SCENARIOS
from support.faults import EXOTIC, PLAIN, SLOW, Fault, Point, Scenario, inject

by_name = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


def _report(wrong: list[str]) -> None:
    if wrong:
        pytest.fail(f"{len(wrong)} laws broken:\n" + "\n".join(wrong), pytrace=False)


@pytest.mark.timeout(300)  # of hundreds of streams, on a machine that may be busy
@by_name
def test_faults(scenario: Scenario) -> None:
    """At each point a share of the faults, another at the next: every fault meets every kind of point."""
    first = len(scenario.name)  # another share in each scenario, the same in each run

    def choose(number: int, point: Point) -> Iterable[Fault]:
        dear = point.name.startswith("observer") and point.number % 5  # a stalled observer takes the grace time
        plain = [PLAIN[(first + 3 * number + k) % len(PLAIN)] for k in range(3)]
        return [
            *(fault for fault in plain if not (dear and fault.kind == "stall")),
            EXOTIC[(first + number) % len(EXOTIC)],
        ]

    _report(inject(scenario, choose))


@pytest.mark.stress
@pytest.mark.timeout(900)
@by_name
def test_all_faults(scenario: Scenario) -> None:
    """The whole product."""
    _report(inject(scenario, lambda number, point: [*PLAIN, *EXOTIC, *SLOW]))
