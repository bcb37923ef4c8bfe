"""Who is parked, for people who ask why nothing moves: `parked`.

An operation that really parks, after it has given its partner a few chances to run, leaves a note in
`_park.parked_waiters` until it is woken. Nobody else pays for this: who sends or receives without waiting, or makes a
channel, does nothing for it. Here the notes are read, without a lock.
"""

# Without `from __future__ import annotations`: a NamedTuple compiles each annotation that is a text, and the first such
# compilation in a process takes a millisecond.

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from ._channel import Channel
from ._park import monotonic, parked_waiters
from ._views import Sending

Direction: TypeAlias = Literal["send", "recv"]

#: A wait as it was noted: what is done, on what, in which thread, since when, and the name of the task.
Note: TypeAlias = "tuple[str, Any, int, float, str | None]"

# More of them, where there are: what `channels.aio`, which is not imported here, knows of tasks.
sources: Final[list[Callable[[], Iterable[Note]]]] = []


class ParkedCase(NamedTuple):
    """One of the operations that a parked thread or task waits to carry out."""

    direction: Direction
    channel: Channel[Any]


class Parked(NamedTuple):
    """A thread or task that is parked, as `parked` found it. It holds the channels that it names."""

    operation: Literal["send", "recv", "select", "merge"]
    cases: tuple[ParkedCase, ...]  #: what it waits to carry out: one, or all those of a select or merge
    thread_name: str
    thread_id: int  #: its `threading.get_ident`
    task_name: str | None  #: of the asyncio task that waits; None where the thread itself does
    since: float  #: when it parked, in seconds of `time.monotonic`
    seconds: float  #: for how long it has been parked

    def __str__(self) -> str:
        who = self.thread_name if self.task_name is None else f"task {self.task_name} on {self.thread_name}"
        verbs = {"send": "sending on", "recv": "receiving from"}
        what = ", ".join(f"{verbs[case.direction]} {case.channel!r}" for case in self.cases) or "no channel"
        if self.operation in ("select", "merge"):
            what = f"{self.operation} of {what}"
        return f"{who}: {what}, for {self.seconds:.1f} s"


def parked() -> list[Parked]:
    """The threads and asyncio tasks that wait in an operation on a channel, the longest wait first.

    The list is for people who debug a program in which nothing moves. It tells what was true a moment ago, so a program
    must not act on it. Takes no lock and never waits; safe in any thread, signal handler or finalizer. A thread that
    waits in a signal handler while it already waits in an operation is in the list twice. A wait is listed once the
    thread really sleeps, so a wait of a few microseconds never is.
    """
    now = monotonic()
    names = {ident: thread.name for ident, thread in getattr(threading, "_active", {}).copy().items()}
    notes: list[Note] = [(*note, None) for note in parked_waiters.copy().values()]
    for source in sources:
        notes += source()
    notes.sort(key=lambda note: note[3])
    return [
        Parked(
            operation,  # type: ignore[arg-type]
            tuple(_cases(operation, where)),
            names.get(ident, f"thread {ident}"),
            ident,
            task,
            since,
            max(now - since, 0.0),
        )
        for operation, where, ident, since, task in notes
    ]


def _cases(operation: str, where: Any) -> Iterable[ParkedCase]:
    if operation == "merge":
        return [ParkedCase("recv", channel) for channel in list(where.values())]
    if operation == "select":
        return [
            ParkedCase("send" if type(case) is Sending else "recv", case._channel) for case in where if case is not None
        ]
    return [ParkedCase("send" if operation == "send" else "recv", where)]
