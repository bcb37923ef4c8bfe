"""The explorer itself: what it finds in small wrong programs, and that its shortcuts skip nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from interleave import Failure, World, explore, replay
from interleave.model import NEVER, Op, State, Way, explained
from interleave.scenarios import SCENARIOS, Scenario
from interleave.stage import Stage, staged

TOYS = ("tests/explorer/toys.py",)


def toys(world: World) -> Any:
    return world.load("tests.explorer.toys")


def counting(method: str) -> Callable[[World], Callable[[], None]]:
    def scenario(world: World) -> Callable[[], None]:
        counter = toys(world).Counter()
        for name in "AB":
            world.spawn(name, getattr(counter, method))

        def check() -> None:
            assert counter.value == 2

        return check

    return scenario


@pytest.mark.parametrize("method", ["add", "add_in_place"])
def test_finds_a_lost_update(method: str) -> None:
    with pytest.raises(Failure) as failure:
        explore(counting(method), preemptions=1, modules=TOYS)
    assert "toys.py" in failure.value.trace
    assert failure.value.report.schedules > 1


def test_needs_a_preemption_for_it() -> None:
    assert explore(counting("add"), preemptions=0, modules=TOYS).complete


def test_accepts_a_lock() -> None:
    assert explore(counting("add_locked"), preemptions=3, modules=TOYS).complete


def test_finds_check_then_act_on_a_container() -> None:
    def scenario(world: World) -> Callable[[], None]:
        counter = toys(world).Counter()
        for item, name in enumerate("AB"):
            world.spawn(name, lambda item=item: counter.append_once(item))

        def check() -> None:
            assert len(counter.items) == 1

        return check

    with pytest.raises(Failure):
        explore(scenario, preemptions=1, modules=TOYS)


def test_finds_a_deadlock_and_replays_it() -> None:
    def scenario(world: World) -> None:
        one, two = toys(world).Account(), toys(world).Account()
        world.spawn("A", lambda: one.move(two))
        world.spawn("B", lambda: two.move(one))

    with pytest.raises(Failure, match="stuck: A, B") as failure:
        explore(scenario, preemptions=1, modules=TOYS)
    with pytest.raises(AssertionError, match="stuck: A, B"):
        replay(scenario, failure.value.schedule, preemptions=1, modules=TOYS)
    assert "acquire" in replay(scenario, [], preemptions=1, modules=TOYS)


def test_time_is_virtual() -> None:
    def scenario(world: World) -> Callable[[], None]:
        lock = toys(world).Counter().lock
        lock.acquire()
        ends: list[Any] = []
        world.spawn("A", lambda: ends.append(toys(world).wait_for(lock, 1000.0)))

        def check() -> None:
            assert ends == [(False, 1000.0)]

        return check

    assert explore(scenario, preemptions=1, modules=TOYS).seconds < 10


def test_finds_a_livelock() -> None:
    def scenario(world: World) -> None:
        counter = toys(world).Counter()
        world.spawn("A", lambda: toys(world).spin(counter))

    with pytest.raises(Failure, match="no end"):
        explore(scenario, preemptions=0, modules=TOYS)


@pytest.mark.parametrize(("method", "loses"), [("take_by_a_call", True), ("take_in_one_step", False)])
def test_throws_where_cpython_does(method: str, loses: bool) -> None:
    """After a call, before its result is stored; not between plain steps."""

    def scenario(world: World) -> Callable[[], None]:
        box = toys(world).Box(7)
        got: list[int] = []

        def take() -> None:
            got.append(getattr(box, method)())

        world.spawn("A", take, interruptible=True)

        def check() -> None:
            assert got + box.items == [7]

        return check

    if loses:
        with pytest.raises(Failure, match="KeyboardInterrupt"):
            explore(scenario, preemptions=0, interrupts=1, modules=TOYS)
    else:
        assert explore(scenario, preemptions=0, interrupts=1, modules=TOYS).thrown == 2


def outcomes(scenario: Scenario, reduce: bool) -> dict[Any, set[frozenset[Any]]]:
    """What the operations of a scenario can end like, and for each of that, what can be known to be before what."""
    seen: dict[Any, set[frozenset[Any]]] = {}

    def build(stage: Stage) -> Any:
        scenario.build(stage)

        def look() -> None:
            ops = sorted(stage.ops, key=lambda op: (op.text, op.call))
            pairs = [(i, j) for i in range(len(ops)) for j in range(len(ops))]
            returned = {("returned", i, j) for i, j in pairs if ops[i].returned < ops[j].call}
            parked = {("parked", i, j) for i, j in pairs if ops[i].parked < ops[j].call}
            seen.setdefault(tuple((op.text, op.result) for op in ops), set()).add(frozenset(returned | parked))

        return look

    name = f"{scenario.name}, {'reduced' if reduce else 'in full'}"
    explore(staged(build), preemptions=scenario.limits.preemptions - 1, reduce=reduce, name=name)
    return seen


@pytest.mark.parametrize("name", ["trying[1]", "crossed_selects[0]", "a_sender_is_not_overtaken", "default_and_close"])
def test_reduction_skips_no_outcome(name: str) -> None:
    """Nor makes it anything easier to explain: the more is known of the order, the harder that is."""
    scenario = next(one for one in SCENARIOS if one.name == name)
    full, reduced = outcomes(scenario, reduce=False), outcomes(scenario, reduce=True)
    assert full.keys() == reduced.keys()
    for results, orders in full.items():
        assert all(any(order <= other for other in reduced[results]) for order in orders), results


# -- the model ---------------------------------------------------------------------------------------------------------


def op(text: str, ways: tuple[Way | None, ...], call: int, returned: int, result: Any, parked: int = NEVER) -> Op:
    return Op(text, ways, call=call, returned=returned, result=result, parked=parked)


EMPTY = State(((),), (False,))
SEND_1, SEND_2, RECV = (Way("send", 0, 1),), (Way("send", 0, 2),), (Way("recv", 0),)
SENT, BLOCKED = ("sent", 0, None), ("blocked", None, None)


@pytest.mark.parametrize(
    ("what", "capacity", "ops", "right"),
    [
        ("meet", 0, [op("a", SEND_1, 1, 3, SENT), op("b", RECV, 2, 4, ("got", 0, 1))], True),
        ("do not meet", 0, [op("a", SEND_1, 1, 2, SENT), op("b", RECV, 3, 4, ("got", 0, 1))], False),
        ("through the buffer", 1, [op("a", SEND_1, 1, 2, SENT), op("b", RECV, 3, 4, ("got", 0, 1))], True),
        ("before it was sent", 1, [op("a", SEND_1, 3, 4, SENT), op("b", RECV, 1, 2, ("got", 0, 1))], False),
        ("nobody waits", 0, [op("a", SEND_1, 1, 2, BLOCKED), op("b", RECV, 3, NEVER, None, 4)], True),
        ("somebody waits", 0, [op("a", SEND_1, 3, 4, BLOCKED), op("b", RECV, 1, NEVER, None, 2)], False),
        ("both wait for ever", 0, [op("a", SEND_1, 1, NEVER, None, 2), op("b", RECV, 3, NEVER, None, 4)], False),
        (
            "overtaken",
            0,
            [
                op("a", SEND_1, 1, NEVER, None, 2),
                op("b", SEND_2, 3, 5, SENT, 4),
                op("c", RECV, 4, 6, ("got", 0, 2)),
            ],
            False,
        ),
        (
            "given back",
            0,
            [
                op("a", SEND_1, 1, 3, SENT),
                op("b", RECV, 2, 5, ("interrupted", None, None)),
                op("c", RECV, 4, 6, ("got", 0, 1)),
            ],
            True,
        ),
        (
            "lost",
            0,
            [
                op("a", SEND_1, 1, 3, SENT),
                op("b", RECV, 2, 5, ("interrupted", None, None)),
                op("c", RECV, 6, 7, BLOCKED),
            ],
            False,
        ),
    ],
)
def test_model(what: str, capacity: int, ops: list[Op], right: bool) -> None:
    assert explained(ops, (capacity,), EMPTY, EMPTY) is right
