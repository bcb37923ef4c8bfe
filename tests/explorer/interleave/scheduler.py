"""One baton, handed around among real threads: a thread runs until its next schedule point; every switch is a choice.

A run follows a list of choices and takes the first option where the list ends; `explore` varies the list until there is
nothing left to vary (stateless depth-first search). What a schedule may cost is bounded, as in CHESS (Musuvathi and
Qadeer, 2007): leaving a thread that could go on is a preemption, and few of those find most bugs. Leaving one that is
blocked or has finished costs nothing.

Two orders of steps that do not touch the same variable lead to the same state. So every thread carries a hash of its
causal past, made of its steps and of the last writes to what they touched. Where all threads have a past that was met
before, with as much left to spend, the rest of the run is known. Calls and returns of operations count as steps too,
since their order is what a history is judged by. For the same reason only places where threads met on a variable, in
this run or an earlier one, are worth a switch (`hot`; when there is a new one, `explore` begins again).
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Path = list[list[Any]]  # [pick, number of options, step, kind] of each choice so far
Schedule = Sequence[tuple[int, str, int]]  # the choices that were not the first option: (step, kind, pick)

BETWEEN, YIELD, ACQUIRE, RELEASE, OTHER = range(5)  # where primitives make their steps; all other places come after
EVERYWHERE: frozenset[int] = frozenset()
FUSE = 20_000  # steps in one run: more is a livelock
PATIENCE = 30.0  # seconds without a sign of life: a thread waits for something that is not under control


class Abandoned(BaseException):
    """Thrown into threads of a run that is over."""


class Livelock(AssertionError):
    """Threads went on and on."""


class Uncontrolled(Exception):
    """The scenario does something that the scheduler cannot decide or repeat."""


@dataclass(frozen=True)
class Limits:
    """What a schedule may spend."""

    preemptions: int = 2
    interrupts: int = 0  # asynchronous exceptions
    nested: int = 0  # operations run in the middle of others, as a signal handler or finalizer does


@dataclass(eq=False)
class Task:
    """A thread of the scenario."""

    index: int
    name: str
    run: Callable[[], object]
    interruptible: bool = False
    nested: Callable[[], object] | None = None
    daemon: bool = False  # need not finish
    on_wait: Callable[[], object] | None = None  # called whenever it is about to wait for a plain lock
    started: bool = False
    done: bool = False
    in_nested: bool = False
    waits_for: Any = None  # a lock, with `free_for(task)`
    deadline: float | None = None  # of the wait, which may time out as the scheduler likes
    patient: bool = False  # ... but only when nothing else can go on
    wake: str = ""  # how the wait ended: "", "timeout" or "interrupt"
    past: int = 0  # hash of all that may have influenced it
    steps: int = 0
    error: BaseException | None = None
    worker: Worker = field(init=False)


class Worker:
    """A real thread, used for one task after another."""

    idle: list[Worker] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.gate = _thread.allocate_lock()
        self.gate.acquire()
        self.work: tuple[Scheduler, int] | None = None  # which task to run
        threading.Thread(target=self._main, name="explored", daemon=True).start()

    def _main(self) -> None:
        while True:
            self.gate.acquire()
            assert self.work is not None
            Scheduler.run_task(*self.work)

    @classmethod
    def get(cls) -> Worker:
        return cls.idle.pop() if cls.idle else cls()


class Scheduler:
    """The state of one run, and the steps that tasks make in it."""

    def __init__(self) -> None:
        self.main = _thread.allocate_lock()
        self.main.acquire()
        self.current: Task | None = None
        self.hot: set[int] | frozenset[int] = EVERYWHERE
        self.reset([], Limits(), None, None)

    def reset(self, path: Path, limits: Limits, seen: dict[Any, int] | None, schedule: Schedule | None) -> None:
        self.path = path
        self.depth = 0
        self.everywhere = schedule is not None or self.hot is EVERYWHERE
        self.schedule = None if schedule is None else {(step, kind): pick for step, kind, pick in schedule}
        self.preemptions, self.interrupts, self.nested = limits.preemptions, limits.interrupts, limits.nested
        self.surprises = bool(limits.interrupts or limits.nested)
        self.seen = seen  # causal pasts met so far: what was left to spend there
        self.trace: list[tuple[str, Any]] | None = None if schedule is None else []
        self.tasks: list[Task] = []
        self.current = None
        self.dead = False
        self.pruned = False
        self.steps = 0
        self.now = 1000.0
        self.thrown = 0
        self.nestings = 0
        self.failure: BaseException | None = None
        # By id and name: [hash of the last write, sum of the reads since, who touched it, was it written, where]. Where
        # a new object has the id of a dead one, the hashes say more than they need to.
        self.variables: dict[tuple[int, str | None], list[Any]] = {}
        self.logged: list[str] = []
        self.events = 0
        self.returns = 0

    # -- from the outside ----------------------------------------------------------------------------------------------

    def add(self, name: str, run: Callable[[], object], **options: Any) -> Task:
        """A new task, at the beginning or while the run is on."""
        task = Task(len(self.tasks), name, run, **options)
        task.past = hash((task.index, 0 if self.current is None else self.current.past))
        task.worker = Worker.get()
        task.worker.work = self, task.index
        self.tasks.append(task)
        return task

    def go(self) -> None:
        """Run the tasks until none can go on. `stuck` has those that have not finished."""
        try:
            first = self._pick(None)
        except Abandoned:
            first = None
        if first is not None:
            self.current = first
            first.worker.gate.release()
            self._await_main()
        self.stuck = [task for task in self.tasks if not task.done]
        self.current = None
        self.steps_made = self.steps
        if self.hot is not EVERYWHERE:
            for _, _, tasks, written, places in self.variables.values():
                if written and tasks & (tasks - 1):
                    self.hot |= places

    def finish(self) -> None:
        """Send the tasks home that have not finished."""
        self.dead = True
        for task in self.tasks:
            if not task.done:
                self.current = task
                self.steps = 0
                if task.started:
                    task.worker.gate.release()
                    self._await_main()
            Worker.idle.append(task.worker)
        self.current = None

    def _await_main(self) -> None:
        if not self.main.acquire(True, PATIENCE):
            raise Uncontrolled(f"{self.current} waits for something that is not under control")

    def run_task(self, index: int) -> None:
        """What a worker does."""
        task = self.tasks[index]
        task.started = True
        try:
            task.run()
        except Abandoned:
            pass
        except BaseException as error:
            task.error = error
        task.done = True
        gate = self.main
        if not self.dead:
            task.past = hash((task.past, "end"))
            try:
                following = self._pick(None)
            except Abandoned:
                following = None
            if following is not None:
                self.current = following
                gate = following.worker.gate
            del following
        del task  # what the run leaves behind is for the main thread to drop: finalizers shall not run here
        gate.release()

    # -- from a task: what may happen before and after its steps -------------------------------------------------------

    def access(self, thing: object, name: str | None, write: bool, where: int) -> None:
        """The task is about to read or write a variable: the attribute ``name`` of ``thing``, or its contents."""
        self.point(where)
        if not self.dead:
            self.touch(thing, name, write, where)

    def touch(self, thing: object, name: str | None = None, write: bool = True, where: int = 0) -> None:
        """The task has touched a variable, at a moment that is no choice."""
        task = self.current
        if task is None:
            return
        key = (id(thing), name)
        variable = self.variables.get(key)
        if variable is None:
            variable = self.variables[key] = [0, 0, 0, False, set()]
        variable[2] |= 1 << task.index
        variable[4].add(where)
        if write:
            variable[3] = True
            task.past = variable[0] = hash((task.past, where, variable[0], variable[1]))
            variable[1] = 0
        else:
            task.past = past = hash((task.past, where, variable[0]))
            variable[1] += past

    def point(self, where: int) -> None:
        """A schedule point: another thread may run here."""
        task = self.current
        if task is None:
            return
        task.steps += 1
        self.steps += 1
        if self.dead or self.steps > FUSE:
            self._ends()
            return
        if self.trace is not None:
            self.trace.append((task.name, where))
        if self.nested:
            self._nest(task)
        if self.preemptions and (where in self.hot or self.everywhere):
            others = self._others(task)
            if others:
                pick = self._choose(1 + len(others), "switch")
                if pick:
                    self.preemptions -= 1
                    self._switch(task, others[pick - 1])

    def interruption(self, where: int) -> None:
        """CPython looks for signals here: an asynchronous exception may come."""
        task = self.current
        if not self.surprises or task is None or self._over():
            return
        if self.interrupts and task.interruptible:
            if self._choose(2, "throw"):
                self._throw(task)
        elif self.nested:
            self._nest(task)

    def yield_(self) -> None:
        """The thread gives the processor away."""
        task = self.current
        if task is None or self._over():
            return
        if task.on_wait is not None:
            task.on_wait()
        self.point(YIELD)

    def wait(self, lock: Any, timeout: float | None, patient: bool = False) -> bool:
        """Wait until the lock is free: True. False if the wait timed out."""
        task = self.current
        assert task is not None
        if self._over():
            return True
        if task.on_wait is not None and not patient:
            task.on_wait()
        task.deadline = None if timeout is None else self.now + timeout
        task.waits_for, task.patient, task.wake = lock, patient, ""
        self._switch(task, self._pick(task))
        task.waits_for = None
        if task.wake == "interrupt":
            self._throw(task)
        return task.wake != "timeout"

    def monotonic(self) -> float:
        task = self.current
        if task is not None:
            task.past = hash((task.past, self.now))
        return self.now

    def choose(self, options: int, label: str) -> int:
        """A choice that has nothing to do with threads, such as a random number."""
        task = self.current
        if task is None or self._over():
            return 0
        pick = self._choose(options, label)
        task.past = hash((task.past, pick))
        return pick

    def tick(self, start: bool) -> int:
        """The number of an event in the history. A start comes after all the events before it; those commute."""
        if start:
            self.point(BETWEEN)
        self.events += 1
        task = self.current
        if task is not None:
            task.past = hash((task.past, start, self.returns if start else 0))
            if not start:
                self.returns += task.past
        return self.events

    def note(self, text: str) -> None:
        if self.trace is not None and self.current is not None:
            self.trace.append((self.current.name, text))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        """Count a step; whether the run is over."""
        task = self.current
        if task is not None:
            task.steps += 1
        self.steps += 1
        if self.dead or self.steps > FUSE:
            self._ends()
            return True
        return False

    def _ends(self) -> None:
        if not self.dead:
            self._end(Livelock(f"{FUSE} steps and no end"))
        if self.steps % 500 == 0:  # not each time: cleanup that ignores exceptions shall come to its end, too
            raise Abandoned

    def _others(self, task: Task | None) -> list[tuple[Task, str]]:
        """Who could run instead, and what would wake them."""
        options = []
        for other in self.tasks:
            if other is task or other.done:
                continue
            lock = other.waits_for
            if lock is None or lock.free_for(other):
                options.append((other, ""))
            elif self.interrupts or other.deadline is not None:
                if other.deadline is not None and not other.patient:
                    options.append((other, "timeout"))
                if self.interrupts and other.interruptible:
                    options.append((other, "interrupt"))
        return options

    def _pick(self, task: Task | None) -> Any:
        """Who runs next, since ``task`` cannot; None: nobody can."""
        self.steps += 1
        options = self._others(None)
        if not any(wake == "" or wake == "timeout" for _, wake in options):
            patient = [task for task in self.tasks if task.patient and task.waits_for is not None]
            options += [(other, "timeout") for other in patient if other.deadline is not None]
        if not options:
            return None if task is None else (None, "")
        chosen = options[self._choose(len(options), "next") if len(options) > 1 else 0]
        if task is None:
            self._wake(*chosen)
            return chosen[0]
        return chosen

    def _wake(self, task: Task, wake: str) -> None:
        task.wake = wake
        if wake == "timeout":
            assert task.deadline is not None
            self.now = max(self.now, task.deadline)
            task.past = hash((task.past, "timeout"))

    def _switch(self, task: Task, target: tuple[Task | None, str]) -> None:
        other, wake = target
        if other is None:
            self._stop(task)
            return
        self._wake(other, wake)
        if other is task:
            return
        self.current = other
        other.worker.gate.release()
        task.worker.gate.acquire()
        if self.dead:
            raise Abandoned

    def _stop(self, task: Task | None) -> None:
        """The run is over; wait to be sent home."""
        assert task is not None
        self.main.release()
        task.worker.gate.acquire()
        raise Abandoned

    def _choose(self, options: int, kind: str) -> int:
        """Which of the options: the one the path says; where that ends, the first."""
        if self.schedule is not None:
            return self.schedule.get((self.steps, kind), 0)
        depth = self.depth
        self.depth += 1
        if depth < len(self.path):
            pick, *before = self.path[depth]
            now = [options, self.steps, kind]
            if before != now:
                self._end(Uncontrolled(f"not repeatable: choice {depth} was {before} and is {now}"))
            return pick  # type: ignore[no-any-return]
        if self.seen is not None:
            current = None if self.current is None else self.current.index
            state = tuple((task.past, task.steps, task.waits_for is not None) for task in self.tasks)
            key = hash((state, current, kind, self.interrupts, self.nested))
            if self.seen.get(key, -1) >= self.preemptions:
                self.pruned = True
                self._end(None)
            self.seen[key] = self.preemptions
        self.path.append([0, options, self.steps, kind])
        return 0

    def _end(self, failure: BaseException | None) -> None:
        self.failure = failure
        if self.current is not None and not self.current.done:
            self._stop(self.current)
        raise Abandoned

    def _throw(self, task: Task) -> None:
        self.interrupts -= 1
        self.thrown += 1
        task.past = hash((task.past, task.steps, "thrown"))
        self.note("KeyboardInterrupt")
        raise KeyboardInterrupt

    def _nest(self, task: Task) -> None:
        if task.nested is None or task.in_nested or not self._choose(2, "nest"):
            return
        self.nested -= 1
        self.nestings += 1
        task.past = hash((task.past, task.steps, "nested"))
        task.in_nested = True
        try:
            task.nested()
        finally:
            task.in_nested = False
