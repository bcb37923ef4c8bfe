"""An explorer of thread interleavings: runs a scenario under every schedule within bounds, and says which one fails.

    def scenario(world):
        channel = world.load("channels").Channel()
        world.spawn("sender", lambda: channel.send(1))
        world.spawn("receiver", lambda: got.append(channel.recv()))
        return lambda: check(got)               # called when all is quiet; raises AssertionError

    explore(scenario, preemptions=2)

`scheduler` hands the baton; `seam` loads private copies of packages, with controlled locks, threads, time and chance;
`instrument` puts schedule points into them. `stage`, `model`, `scenarios` and `mutants` are about ``channels``.
To explore other modules, name them: ``explore(scenario, modules=[*CHANNELS, "runtime/human/_bridge.py"])``.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

from .scheduler import BETWEEN, EVERYWHERE, Abandoned, Limits, Path, Schedule, Scheduler, Task, Uncontrolled
from .seam import Patches, Universe

__all__ = ["CHANNELS", "Failure", "Limits", "Report", "World", "explore", "replay", "reports"]

ROOT = File(__file__).resolve().parents[3]
CHANNELS = tuple(f"channels/_{name}.py" for name in ("park", "rescue", "channel", "select", "merge", "cancel", "timer"))
# Attributes that never change once another thread can see them.
CONSTANTS = ("_lock", "_capacity", "_epoch", "name", "_channel", "park", "ticket")

reports: list[Report] = []  # of every exploration so far, for the summary
_universes: dict[Any, Universe] = {}


def universe(modules: Sequence[str] = CHANNELS, patches: Patches | None = None) -> Universe:
    """The private copy of the packages of ``modules`` (paths in the repository), with schedule points in those."""
    key = (tuple(modules), repr(patches))
    if key not in _universes:
        packages = {path.partition("/")[0] for path in modules} | {"channels"}
        all_patches = {path: list(pairs) for path, pairs in (patches or {}).items()}
        park = all_patches.setdefault("channels/_park.py", [])
        park.append(("", "_YIELDS = 10", "_YIELDS = 1"))
        park.append(("", "= _own_clock()", "= time.monotonic"))
        park.append(("", "_GONE: Final = 0.0002", "_GONE: Final = float('inf')"))  # a hint, which lasts from run to run
        made = _universes[key] = Universe(ROOT, sorted(packages), modules, all_patches, CONSTANTS)
        for path in modules:  # also what is imported when it is first used: that would be in the middle of a run
            made.load(path.removesuffix(".py").replace("/", "."))
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
    complete: bool = True  # within the limits; False: it was ended before

    def add(self, scheduler: Scheduler, seconds: float) -> None:
        """What one run did."""
        self.schedules += 1
        self.pruned += scheduler.pruned
        self.steps += scheduler.steps_made
        self.thrown += scheduler.thrown
        self.nested += scheduler.nestings
        self.seconds += seconds

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

    def __init__(self, report: Report, limits: Limits, error: BaseException, schedule: Schedule, trace: str) -> None:
        super().__init__(
            f"{report.name}: {type(error).__name__}: {error}\n"
            f"schedule {report.schedules}, with {limits}: replay {schedule}\n{trace}"
        )
        self.report = report
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
        self,
        name: str,
        run: Callable[[], object],
        *,
        interruptible: bool = False,
        nested: Callable[[], object] | None = None,
        daemon: bool = False,
    ) -> Task:
        """A thread. `KeyboardInterrupt` may hit it if it is ``interruptible``; ``nested`` may be called in the middle
        of its steps, as by a signal handler; a ``daemon`` need not finish."""
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
    schedules: int | None = None,
    reduce: bool = True,
    name: str | None = None,
) -> Report:
    """Run the scenario under every schedule within the limits. Raises `Failure` at the first that fails.

    What the scenario returns is called after each run to judge it; without that, every thread has to finish. No thread
    may raise anything but what is thrown at it, nor log. ``modules`` (paths) are those with schedule points; their
    packages are loaded anew. ``seconds`` and ``schedules`` end the exploration early; the report then says so.
    ``reduce=False`` also runs schedules that are known to lead where others did.
    """
    world = World(universe(modules, patches))
    report = Report(name or getattr(scenario, "__name__", "scenario"), Limits(preemptions, interrupts, nested))
    collecting, unraisable = gc.isenabled(), sys.unraisablehook
    gc.disable()  # a finalizer in the middle of a run could not be repeated
    # A thread may be sent home in the middle of a callback whose exceptions nobody gets.
    sys.unraisablehook = lambda info: None if isinstance(info.exc_value, Abandoned) else unraisable(info)
    try:
        world.scheduler.hot = {BETWEEN} if reduce else EVERYWHERE
        seen: dict[Any, int] | None = {} if reduce else None
        for bound in range(preemptions + 1):  # the schedule that fails shall be as simple as can be
            if report.complete:
                _search(world, scenario, Limits(bound, interrupts, nested), seen, report, seconds, schedules)
    finally:
        sys.unraisablehook = unraisable
        if collecting:
            gc.enable()
    reports.append(report)
    return report


def _search(
    world: World,
    scenario: Scenario,
    limits: Limits,
    seen: dict[Any, int] | None,
    report: Report,
    seconds: float | None,
    schedules: int | None,
) -> None:
    """Every schedule within the limits that is not known by now."""
    scheduler = world.scheduler
    path: Path = []
    while True:
        began = time.perf_counter()
        hot = len(scheduler.hot)
        error = _run(world, scenario, path, limits, seen, None)
        report.add(scheduler, time.perf_counter() - began)
        if isinstance(error, Uncontrolled):
            raise error
        if error is not None:
            schedule = [(step, kind, pick) for pick, _, step, kind in path if pick]
            _run(world, scenario, [], limits, None, schedule)
            raise Failure(report, limits, error, schedule, _trace(world))
        if len(scheduler.hot) > hot:  # there are more places to switch at: begin again
            path = []
            if seen is not None:
                seen.clear()
            continue
        while path and path[-1][0] + 1 >= path[-1][1]:
            path.pop()
        if not path:
            return
        path[-1][0] += 1
        if (seconds is not None and report.seconds > seconds) or report.schedules == schedules:
            report.complete = False
            return
        if report.schedules % 500 == 0:
            gc.collect()


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
        elif world.stuck:
            raise AssertionError(f"stuck: {', '.join(task.name for task in world.stuck)}")
        for task in scheduler.tasks:
            if task.error is not None and not isinstance(task.error, KeyboardInterrupt):
                raise AssertionError(f"{task.name} raised {task.error!r}") from task.error
        if scheduler.logged:
            raise AssertionError(f"logged: {scheduler.logged}")
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
