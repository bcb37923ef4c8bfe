"""Every schedule of every scenario, within bounds, is explained by the model.

The standard run goes as far as the scenarios say. ``pytest -m stress tests/explorer`` allows one preemption more, for
at most EXPLORER_SECONDS (10) a scenario.
"""

from __future__ import annotations

import os
from dataclasses import asdict

import pytest
from interleave import explore
from interleave.scenarios import INTERRUPTED, REENTERED, SCENARIOS, Scenario
from interleave.stage import staged

SECONDS = float(os.environ.get("EXPLORER_SECONDS", "10"))


def run(scenario: Scenario, seconds: float | None = None) -> None:
    explore(staged(scenario.build), name=scenario.name, seconds=seconds, **asdict(scenario.limits))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_schedules(scenario: Scenario) -> None:
    run(scenario)


@pytest.mark.parametrize("scenario", INTERRUPTED, ids=str)
def test_with_an_exception_at_every_point(scenario: Scenario) -> None:
    run(scenario)


@pytest.mark.parametrize("scenario", REENTERED, ids=str)
def test_with_a_nested_operation_at_every_point(scenario: Scenario) -> None:
    run(scenario)


@pytest.mark.stress
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("scenario", SCENARIOS + INTERRUPTED + REENTERED, ids=str)
def test_one_preemption_more(scenario: Scenario) -> None:
    run(scenario.deeper, SECONDS)
