"""Where operations on channels are performed, recorded, and judged by the model.

def two_senders(stage):
    channel = stage.channel(1)
    stage.thread(stage.send(channel, 1))
    stage.thread(stage.send(channel, 2))
    stage.thread(stage.recv(channel), stage.recv(channel))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import World
from .model import NEVER, Op, State, Way, explained
from .scheduler import Abandoned
from .seam import Lock, RLock


class Step(NamedTuple):
    """Something to do."""

    text: str
    ways: tuple[Way | None, ...]
    act: tuple[Any, ...]
    token: int | None
    run: Callable[[], Any]  # the result, as in `Op`
    more: tuple[Way, ...] = ()  # what else it may do at once


class Case(NamedTuple):
    """A case of a select."""

    text: str
    way: Way | None
    case: Any


class Stage:
    """Channels, tokens and threads of one run."""

    good: set[int] = set()  # noqa: RUF012 - hashes of histories, which come again and again

    def __init__(self, world: World) -> None:
        self.world = world
        self.scheduler = world.scheduler
        self.package = world.load("channels")
        world.load("channels._rescue").closing.clear()  # an earlier run may have been cut short
        self.channels: list[Any] = []
        self.tokens: list[Any] = []
        self.ops: list[Op] = []
        self.doing: dict[Any, Op] = {}
        self.done_too: list[tuple[Way, Any]] = []  # what the operation that has just returned did, too; with the result
        self.deferred: list[tuple[Op, Op]] = []  # nested operations that the outer one completes

    # -- what there is -------------------------------------------------------------------------------------------------

    def channel(self, capacity: int, *values: Any, closed: bool = False) -> int:
        """A channel with these values in its buffer: its number."""
        channel = self.package.Channel(capacity)
        for value in values:
            channel.try_send(value)
        if closed:
            channel.close()
        self.channels.append(channel)
        return len(self.channels) - 1

    def token(self) -> int:
        self.tokens.append(self.package.CancelToken())
        return len(self.tokens) - 1

    def timers(self) -> None:
        """No timers from an earlier run."""
        self.world.load("channels._timer")._clock._reset()

    def thread(self, *steps: Step, interruptible: bool = False, nested: Step | None = None) -> None:
        """A thread that does these steps. ``nested`` may happen in the middle of each."""

        def run() -> None:
            for step in steps:
                self.perform(step)
                if self.scheduler.dead:
                    return

        name = "ABCDEFGH"[len(self.scheduler.tasks)]
        inner = None if nested is None else lambda: self.perform(nested, inside=True)
        task = self.world.spawn(name, run, interruptible=interruptible, nested=inner)
        task.on_wait = lambda: self._parks(task)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def send(self, channel: int, value: Any, timeout: float | None = None, cancel: int | None = None) -> Step:
        real = self.channels[channel]
        way = Way("send", channel, value)
        return self._step(
            f"send({channel}, {value})", way, cancel, lambda: real.send(value, timeout, self._token(cancel))
        )

    def recv(self, channel: int, timeout: float | None = None, cancel: int | None = None) -> Step:
        real = self.channels[channel]
        way = Way("recv", channel)
        return self._step(f"recv({channel})", way, cancel, lambda: real.recv(timeout, self._token(cancel)))

    def try_send_many(self, channel: int, *values: Any) -> Step:
        real = self.channels[channel]
        ways = [Way("send", channel, value) for value in values]

        def run() -> Any:
            try:
                sent = real.try_send_many(values)
            except self.package.ChannelClosed:
                return ("refused", None, None)
            results = [("sent", 0, None)] * sent + [("blocked", None, None)] * (sent < len(values))
            self.done_too = list(zip(ways[1:], results[1:], strict=False))
            return results[0]

        return Step(f"try_send_many({channel}, {values})", (ways[0],), (), None, run, tuple(ways[1:]))

    def recv_many(self, channel: int, limit: int | None = None, *, wait: bool = True, at_once: int = 2) -> Step:
        """``at_once``: how many values it may have taken when an exception hits it."""
        real = self.channels[channel]
        way = Way("recv", channel)

        def run() -> Any:
            try:
                values = real.recv_many(limit) if wait else real.try_recv_many(limit)
            except self.package.ChannelClosed:
                return ("drained", 0, None)
            self.expect(bool(values) and (limit is None or len(values) <= limit), f"{values} at once")
            self.done_too = [(way, ("got", 0, value)) for value in values[1:]]
            return ("got", 0, values[0])

        text = f"{'' if wait else 'try_'}recv_many({channel}, {limit})"
        return Step(text, (way,), (), None, run, (way,) * (at_once - 1))

    def try_send(self, channel: int, value: Any) -> Step:
        real = self.channels[channel]
        way = Way("send", channel, value)
        return self._step(f"try_send({channel}, {value})", way, None, lambda: real.try_send(value))

    def try_recv(self, channel: int) -> Step:
        return self._step(f"try_recv({channel})", Way("recv", channel), None, self.channels[channel].try_recv)

    def close(self, channel: int, *final: Any) -> Step:
        real = self.channels[channel]
        act = ("close", channel, final)
        return Step(f"close({channel}{final or ''})", (), act, None, lambda: ("said", None, real.close(*final)))

    def look(self, channel: int) -> Step:
        real = self.channels[channel]
        return Step(f"closed({channel})", (), ("look", channel), None, lambda: ("said", None, real.closed))

    def cancel(self, token: int) -> Step:
        real = self.tokens[token]
        act, cause = ("cancel", token), f"cause {token}"
        return Step(f"cancel({token})", (), act, None, lambda: ("said", None, real.cancel(cause)))

    def cancelled(self, token: int) -> Step:
        real = self.tokens[token]
        return Step(f"cancelled({token})", (), ("cancelled", token), None, lambda: ("said", None, real.cancelled))

    def sending(self, channel: int, value: Any) -> Case:
        return Case(f"send {channel} {value}", Way("send", channel, value), self.channels[channel].sending(value))

    def receiving(self, channel: int, *, view: bool = False) -> Case:
        case = self.channels[channel]
        return Case(f"recv {channel}", Way("recv", channel), case.receiver if view else case)

    def select(
        self, *cases: Case | None, timeout: float | None = None, block: bool = True, cancel: int | None = None
    ) -> Step:
        package = self.package

        def run() -> Any:
            real = [None if case is None else case.case for case in cases]
            done = package.select(*real, timeout=timeout, block=block, cancel=self._token(cancel))
            case = cases[done.index]
            assert case is not None
            assert case.way is not None
            if case.way.kind == "send":
                return ("sent", done.index, None)
            return ("got", done.index, done.value) if done.ok else ("drained", done.index, None)

        text = ", ".join("nil" if case is None else case.text for case in cases)
        ways = tuple(None if case is None else case.way for case in cases)
        return Step(f"select({text}{'' if block else ', default'})", ways, (), cancel, run)

    def _step(self, text: str, way: Way, token: int | None, run: Callable[[], Any]) -> Step:
        def performed() -> Any:
            try:
                value = run()
            except self.package.ChannelClosed:
                return ("refused", None, None) if way.kind == "send" else ("drained", 0, None)
            return ("sent", 0, None) if way.kind == "send" else ("got", 0, value)

        return Step(text, (way,), (), token, performed)

    def _token(self, token: int | None) -> Any:
        return None if token is None else self.tokens[token]

    # -- recording -----------------------------------------------------------------------------------------------------

    def perform(self, step: Step, inside: bool = False) -> None:
        scheduler, package = self.scheduler, self.package
        task = scheduler.current
        outer = self.doing.get(task)
        op = Op(step.text + (" nested" if inside else ""), step.ways, step.act, step.token)
        if inside:
            op.excused = any(way is not None and self.channels[way.channel]._lock._is_owned() for way in step.ways)
        self.ops.append(op)
        self.doing[task] = op
        self.done_too = []
        op.call = scheduler.tick(True)
        scheduler.note(f"-> {op.text}")
        try:
            result = step.run()
        except Abandoned:
            raise
        except package.ChannelClosed:  # from a select
            result = ("refused", None, None)
        except (package.WouldBlock, TimeoutError):
            result = ("blocked", None, None)
        except package.Cancelled as error:
            result = ("cancelled", None, None)
            self.expect(error.cause == f"cause {step.token}", f"{op.text}: {error!r}")
        except KeyboardInterrupt:
            result = ("interrupted", None, None)
            self.done_too = [(way, result) for way in step.more]
        if scheduler.dead:
            return
        op.result = result
        done_too, self.done_too = self.done_too, []
        scheduler.note(f"<- {op.text}: {result}")
        self.doing[task] = outer  # type: ignore[assignment]
        op.returned = scheduler.tick(False)
        for way, result in done_too:
            self.ops.append(Op(f"{op.text}, and", (way,), (), None, op.call, NEVER, op.returned, result, op.excused))
        if inside and step.act and outer is not None:
            self.deferred.append((op, outer))

    def _parks(self, task: Any) -> None:
        op = self.doing.get(task)
        if op is not None and op.parked == NEVER:
            op.parked = self.scheduler.tick(False)

    # -- judging -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """All is quiet: is it as it should be?"""
        for task in self.scheduler.tasks:
            if task.error is not None:
                raise AssertionError(f"{task.name} raised {task.error!r}{self._history()}") from task.error
        for op, outer in self.deferred:
            op.returned = max(op.returned, outer.returned)
        for task in self.world.stuck:
            parked = self.doing.get(task) is not None and type(task.waits_for) is Lock
            self.expect(parked, f"{task.name} waits for ever, and not in an operation that has parked")
        for number, channel in enumerate(self.channels):
            self._check_channel(number, channel)
        for token in self.tokens:
            self._check_free("a token's channel", token._core)
        cancelled = frozenset(i for i, token in enumerate(self.tokens) if token.cancelled)
        end = State(
            tuple(tuple(channel._buffer) for channel in self.channels),
            tuple(channel._closed for channel in self.channels),
            cancelled,
        )
        capacities = tuple(channel.capacity for channel in self.channels)
        history = tuple((op.text, op.call, op.parked, op.returned, op.result, op.excused) for op in self.ops)
        key = hash((history, capacities, self.start, end))
        if key not in Stage.good:
            right = explained(self.ops, capacities, self.start, end)
            self.expect(right, f"no order of the operations explains this, ending in {end}")
            Stage.good.add(key)

    def ready(self) -> None:
        """Everything stands; the run may begin."""
        channels = self.channels
        self.start = State(tuple(tuple(one._buffer) for one in channels), tuple(one._closed for one in channels))

    def _check_channel(self, number: int, channel: Any) -> None:
        self._check_free(f"channel {number}", channel)
        pending = [op for op in self.ops if op.result is None]
        for kind, queue in ("recv", channel._receivers), ("send", channel._senders):
            waiters = [entry if kind == "recv" else entry[0] for entry in queue]
            live = sum(not waiter.done for waiter in waiters)
            wanted = sum(way is not None and way[:2] == (kind, number) for op in pending for way in op.ways)
            self.expect(live == wanted, f"channel {number}: {live} waiters to {kind}, not {wanted}")

    def _check_free(self, what: str, channel: Any) -> None:
        lock: RLock = channel._lock
        self.expect(lock._held is None and lock._count == 0, f"{what} is left locked")
        self.expect(not channel._attention or channel._closed, f"{what} needs attention")
        records = self.world.load("channels._rescue").closing.values()
        self.expect(not any(record[2] is channel for record in records), f"{what} has a close on record")

    def expect(self, true: bool, otherwise: str) -> None:
        if not true:
            raise AssertionError(otherwise + self._history())

    def _history(self) -> str:
        return "".join(f"\n    {op}" for op in self.ops)


def staged(build: Callable[[Stage], object]) -> Callable[[World], Callable[[], None]]:
    """The scenario in which ``build`` puts channels and threads on a stage. What it returns is an extra check."""

    def scenario(world: World) -> Callable[[], None]:
        stage = Stage(world)
        extra = build(stage)
        stage.ready()

        def check() -> None:
            stage.check()
            if callable(extra):
                extra()

        return check

    scenario.__name__ = getattr(build, "__name__", "scenario")
    return scenario
