"""An explorer of thread interleavings: runs a scenario under every schedule within bounds, and says which one fails.

    def scenario(world):
        channel = world.load("channels").Channel()
        world.spawn("sender", lambda: channel.send(1))
        world.spawn("receiver", lambda: got.append(channel.recv()))
        return lambda: check(got)               # called when all is quiet; raises AssertionError

    explore(scenario, preemptions=2)

`scheduler` hands the baton, `seam` loads private copies of packages with controlled locks, threads, time and chance, and
`instrument` puts schedule points into them. `model`, `scenarios` and `mutants` are about ``channels``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

from .scheduler import EVERYWHERE, Limits, Path, Schedule, Task, Uncontrolled
from .seam import Patches, Universe

__all__ = ["CHANNELS", "Failure", "Limits", "Report", "Uncontrolled", "World", "explore", "replay", "reports", "universe"]

ROOT = File(__file__).resolve().parents[3]
CHANNELS = ("channels/_park.py", "channels/_channel.py", "channels/_select.py", "channels/_cancel.py", "channels/_timer.py")
# Attributes of channels that never change once another thread can see them; `__init__`s are before that.
CONSTANTS = ("_lock", "_capacity", "_epoch", "name", "_channel", "park", "ticket")

reports: list[Report] = []  # of every exploration so far, for the summary
_universes: dict[Any, Universe] = {}


def universe(modules: Sequence[str] = CHANNELS, patches: Patches | None = None) -> Universe:
    """The private copy of the packages of ``modules`` (paths in the repository), with schedule points in those."""
    key = (tuple(modules), repr(patches))
    if key not in _universes:
        packages = {path.partition("/")[0] for path in modules} | {"channels"}
        fewer_yields = {"channels/_park.py": [("_YIELDS = 10", "_YIELDS = 1"), *(patches or {}).get("channels/_park.py", ())]}
        all_patches = {**(patches or {}), **fewer_yields}
        _universes[key] = Universe(ROOT, sorted(packages), modules, all_patches, CONSTANTS)
    return _universes[key]


@dataclass
class Report:
    """What an exploration did."""

    name: str
    limits: Limits
    schedules: int = 0
    pruned: int = 0  # of those, cut short since the rest was known
    steps: int = 0
    thrown: int = 0
    nested: int = 0
    seconds: float = 0.0
    complete: bool = True  # within the limits; False: there was no time for more

    def __str__(self) -> str:
        limits = self.limits
        text = f"{self.name}: {self.schedules} schedules ({self.pruned} cut short), {limits.preemptions} preemptions"
        if limits.interrupts:
            text += f", {self.thrown} exceptions thrown"
        if limits.nested:
            text += f", {self.nested} nested operations"
        return f"{text}, {self.seconds:.1f} s{'' if self.complete else ', NOT COMPLETE'}"


class Failure(AssertionError):
    """A schedule under which the scenario fails, for `replay`."""

    def __init__(self, report: Report, error: BaseException, schedule: Schedule, trace: str) -> None:
        super().__init__(
            f"{report.name}: {type(error).__name__}: {error}\n"
            f"after {report.schedules} schedules with {report.limits}; replay with\n{schedule}\n{trace}"
        )
        self.error = error
        self.schedule = schedule
        self.trace = trace


class World:
    """What a scenario sees of one run."""

    def __init__(self, universe: Universe) -> None:
        self.universe = universe
        self.scheduler = universe.scheduler

    def load(self, name: str) -> Any:
        """The explored copy of a module."""
        return self.universe.load(name)

    def spawn(
        self, name: str, run: Callable[[], object], *, interruptible: bool = False, nested: Any = None, daemon: bool = False
    ) -> Task:
        """A thread. Asynchronous exceptions hit ``interruptible`` ones; ``nested()`` may run in the middle of others. A
        ``daemon`` need not finish."""
        return self.scheduler.add(name, run, interruptible=interruptible, nested=nested, daemon=daemon)

    @property
    def stuck(self) -> list[Task]:
        """After the run: the threads that wait for ever."""
        return [task for task in self.scheduler.stuck if not task.daemon]


Scenario = Callable[[World], "Callable[[], object] | None"]


def explore(
    scenario: Scenario,
    *,
    preemptions: int = 2,
    interrupts: int = 0,
    nested: int = 0,
    modules: Sequence[str] = CHANNELS,
    patches: Patches | None = None,
    seconds: float | None = None,
    reduce: bool = True,
    name: str | None = None,
) -> Report:
    """Run the scenario under every schedule within the limits. Raises `Failure` at the first that fails.

    What the scenario returns is called after each run to judge it. Without that, every thread has to finish, without an
    exception other than the ones thrown at it. ``seconds`` ends the exploration early; the report then says so.
    """
    world = World(universe(modules, patches))
    limits = Limits(preemptions, interrupts, nested)
    report = Report(name or getattr(scenario, "__name__", "scenario"), limits)
    began = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # a finalizer in the middle of a run could not be repeated
    try:
        path: Path = []
        seen: dict[Any, int] | None = {} if reduce else None
        scheduler = world.scheduler
        scheduler.hot = set() if reduce else EVERYWHERE
        while True:
            hot = len(scheduler.hot)
            error = _run(world, scenario, path, limits, seen, None)
            report.schedules += 1
            report.pruned += scheduler.pruned
            report.steps += scheduler.steps_made
            report.thrown += scheduler.thrown
            report.nested += scheduler.nestings
            report.seconds = time.perf_counter() - began
            if error is not None:
                if isinstance(error, Uncontrolled):
                    raise error
                schedule = [(step, kind, pick) for pick, _, step, kind in path if pick]
                _run(world, scenario, [], limits, None, schedule)
                raise Failure(report, error, schedule, _trace(world))
            if len(scheduler.hot) > hot:  # there are more places to switch at
                path, seen = [], {}
                continue
            while path and path[-1][0] + 1 >= path[-1][1]:
                path.pop()
            if not path:
                break
            path[-1][0] += 1
            if seconds is not None and report.seconds > seconds:
                report.complete = False
                break
            if report.schedules % 500 == 0:
                gc.collect()
    finally:
        if collecting:
            gc.enable()
    reports.append(report)
    return report


def replay(
    scenario: Scenario,
    schedule: Schedule,
    *,
    preemptions: int = 2,
    interrupts: int = 0,
    nested: int = 0,
    modules: Sequence[str] = CHANNELS,
    patches: Patches | None = None,
) -> str:
    """Run the scenario under one schedule: its trace. Raises what it fails with."""
    world = World(universe(modules, patches))
    limits = Limits(preemptions, interrupts, nested)
    error = _run(world, scenario, [], limits, None, schedule)
    if error is not None:
        raise error
    return _trace(world)


def _run(
    world: World,
    scenario: Scenario,
    path: Path,
    limits: Limits,
    seen: dict[Any, int] | None,
    schedule: Schedule | None,
) -> BaseException | None:
    """One schedule: what it failed with."""
    scheduler = world.scheduler
    world.universe.fresh()
    scheduler.reset(path, limits, seen, schedule)
    check = scenario(world)
    try:
        scheduler.go()
        if scheduler.failure is not None or scheduler.pruned:
            return scheduler.failure
        if check is not None:
            check()
        else:
            for task in scheduler.tasks:
                if task.error is not None and not isinstance(task.error, KeyboardInterrupt):
                    raise task.error
            if world.stuck:
                raise AssertionError(f"stuck: {', '.join(task.name for task in world.stuck)}")
    except AssertionError as error:
        return error
    finally:
        scheduler.finish()
    return None


def _trace(world: World) -> str:
    """The steps of the last run, one a line; every thread has its column."""
    places = world.universe.places
    names = [task.name for task in world.scheduler.tasks]
    lines = []
    last = None
    for name, where in world.scheduler.trace or ():
        text = where if isinstance(where, str) else str(places[where])
        if (name, text) != last:
            lines.append(f"{'    ' * names.index(name)}{name}  {text}")
        last = (name, text)
    return "\n".join(lines)
