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
    """The first two calls of a name get three faults each, later ones, which differ little from them, one: every fault
    meets nearly every kind of call in a third of the runs that four at each call would take.
    """
    first = SCENARIOS.index(scenario)  # another share in each scenario, the same in each run

    def choose(point: Point) -> Iterable[Fault]:
        turn = first + point.number
        if point.number < 2:
            chosen = [*(PLAIN[(2 * turn + k) % len(PLAIN)] for k in range(2)), EXOTIC[turn % len(EXOTIC)]]
        else:
            every = [*PLAIN, *EXOTIC]
            chosen = [every[turn % len(every)]]
        dear = point.name.startswith("observer") and point.number % 5  # a stalled observer takes the grace time
        return [fault for fault in chosen if not (dear and fault.kind == "stall")]

    _report(inject(scenario, choose))


@pytest.mark.stress
@pytest.mark.timeout(900)
@by_name
def test_all_faults(scenario: Scenario) -> None:
    """The whole product."""
    _report(inject(scenario, lambda point: [*PLAIN, *EXOTIC, *SLOW]))
