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


@by_name
def test_faults(scenario: Scenario) -> None:
    """The plain faults at each point, and each time two of the exotic ones."""

    def choose(number: int, point: Point) -> Iterable[Fault]:
        start = 2 * number % len(EXOTIC)
        dear = point.name.startswith("observer") and point.number % 5  # a stalled observer takes the grace time
        return [*(fault for fault in PLAIN if not (dear and fault.kind == "stall")), *EXOTIC[start : start + 2]]

    _report(inject(scenario, choose))


@pytest.mark.stress
@pytest.mark.timeout(900)
@by_name
def test_all_faults(scenario: Scenario) -> None:
    """The whole product."""
    _report(inject(scenario, lambda number, point: [*PLAIN, *EXOTIC, *SLOW]))
