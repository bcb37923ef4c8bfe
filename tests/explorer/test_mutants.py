"""Each seeded mistake is caught, so that silence of the explorer means something."""

from __future__ import annotations

import pytest

from interleave import Failure
from interleave.mutants import MUTANTS, Mutant
from interleave.scenarios import INTERRUPTED, REENTERED, SCENARIOS


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_is_caught(mutant: Mutant) -> None:
    patches = {mutant.file: [(mutant.function, mutant.old, mutant.new)]}
    for scenario in SCENARIOS + INTERRUPTED + REENTERED:
        if scenario.name.startswith(mutant.caught_by):
            try:
                scenario.explore(patches=patches)
            except Failure:
                return
    pytest.fail(f"not caught by {', '.join(mutant.caught_by)}")
