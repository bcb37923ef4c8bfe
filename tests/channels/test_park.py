"""How a wait begins: the processor is given away a few times, as the partner is often about to run, but not where other
programs want it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from channels import _park
from channels._park import _CROWDED, _YIELDS, StandingWaiter, Waiter


class Processor:
    """A clock, and a ``sched_yield`` that comes back after ``away`` seconds; meanwhile ``happens``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.away = 0.0
        self.yields = 0
        self.happens: Callable[[], object] = lambda: None
        monkeypatch.setattr(_park, "_yield", self.give_away)
        monkeypatch.setattr(_park, "monotonic", lambda: self.now)
        monkeypatch.setattr(_park, "_yield_from", 0.0)

    def give_away(self) -> None:
        self.yields += 1
        self.now += self.away
        self.happens()

    def wait(self) -> int:
        """A wait that is over where it parks. How often it has given the processor away."""
        before, waiter = self.yields, Waiter()
        waiter.park.release()
        assert waiter.wait(None, "recv", None)
        return self.yields - before


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Processor:
    return Processor(monkeypatch)


def test_it_is_given_away_a_few_times(processor: Processor) -> None:
    assert [processor.wait() for _ in range(3)] == [_YIELDS] * 3


def test_who_is_served_meanwhile_does_not_park(processor: Processor) -> None:
    """However long it took: the partner has had the processor, as was wanted."""
    waiter = Waiter()
    processor.away = 1.0
    processor.happens = lambda: setattr(waiter, "done", True)
    assert waiter.wait(None, "recv", None)
    assert processor.yields == 1
    processor.away = 0.0
    assert processor.wait() == _YIELDS


def test_where_others_take_it_for_long_all_waits_park_at_once_for_a_while(processor: Processor) -> None:
    """It is gone for milliseconds, each time, and would be for all of a tool call's waits."""
    processor.away = 0.003
    assert [processor.wait() for _ in range(5)] == [1, 0, 0, 0, 0]
    merge = StandingWaiter()
    merge.arm()
    merge.park.release()
    merge.collect([])
    assert processor.yields == 1
    processor.now += _CROWDED
    assert [processor.wait() for _ in range(3)] == [1, 0, 0]
    processor.now += _CROWDED
    processor.away = 0.0
    assert [processor.wait() for _ in range(2)] == [_YIELDS] * 2
