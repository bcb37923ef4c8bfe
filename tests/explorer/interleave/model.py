"""What a Go channel is, one step at a time; and whether some order of such steps explains what threads have seen.

An operation takes effect at one moment between its call and its return (linearizability; the search is Wing and Gong's,
with the visited states remembered). Three things are added to that:

- At capacity 0 a send and a receive take effect together.
- An operation known to have parked before another was called is served before it (first in, first out, no stealing).
- What has not returned when all is quiet must have nothing to wait for any more: truly blocked, by the model.

An interrupted receive has done nothing, or taken a value and put it back in front; an interrupted send, close or cancel
has happened or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

NEVER = 1 << 60


class Way(NamedTuple):
    """One side of a communication: ``kind`` is "send" or "recv", ``channel`` its number."""

    kind: str
    channel: int
    value: Any = None  # what is sent


@dataclass(eq=False)
class Op:
    """An operation of a history.

    ``result`` is one of
    ("sent", case, None), ("got", case, value), ("drained", case, None): a receive found the channel closed and empty,
    ("refused", None, None): a send found it closed, ("blocked", None, None): WouldBlock or a timeout,
    ("cancelled", None, None), ("interrupted", None, None), ("said", None, value) of what is no communication,
    None while it has not returned.
    """

    text: str
    ways: tuple[Way | None, ...] = ()  # of one send or receive, or the cases of a select
    act: tuple[Any, ...] = ()  # ("close", channel, final), ("cancel", token), ("look", channel), ("cancelled", token)
    token: int | None = None
    call: int = 0
    parked: int = NEVER
    returned: int = NEVER
    result: Any = None
    excused: bool = False  # in the middle of an operation on the same channel: WouldBlock is always right

    def __str__(self) -> str:
        parked = "" if self.parked == NEVER else f" parked {self.parked}"
        if self.result is None:
            return f"{self.text} [{self.call}{parked}...]"
        word, case, value = self.result
        what = word + ("" if case is None else f" #{case}") + ("" if value is None else f" {value!r}")
        return f"{self.text} [{self.call}{parked} - {self.returned}]: {what}"

    @property
    def served(self) -> Way | None:
        """The case that fired."""
        return self.ways[self.result[1]] if self.result is not None and self.result[0] in ("sent", "got") else None


class State(NamedTuple):
    buffers: tuple[tuple[Any, ...], ...]
    closed: tuple[bool, ...]
    cancelled: frozenset[int] = frozenset()
    held: tuple[tuple[int, int, Any], ...] = ()  # (operation, channel, value) of interrupted receives


def explained(ops: list[Op], capacities: tuple[int, ...], start: State, end: State) -> bool:
    """Whether some order leads from ``start`` to ``end`` and explains every result."""
    return _Search(ops, capacities, end).run(start)


class _Search:
    def __init__(self, ops: list[Op], capacities: tuple[int, ...], end: State) -> None:
        self.ops = ops
        self.capacities = capacities
        self.end = end
        self.finished = frozenset(i for i, op in enumerate(ops) if op.result is not None)
        self.seen: set[Any] = set()

    def run(self, state: State) -> bool:
        todo = [(state, self.finished)]
        while todo:
            state, left = todo.pop()
            if (state, left) in self.seen:
                continue
            self.seen.add((state, left))
            if not left and self.quiet(state):
                return True
            todo += self.steps(state, left)
        return False

    def quiet(self, state: State) -> bool:
        """The end is reached, and whoever has not returned is blocked."""
        if state != self.end:
            return False
        pending = [op for op in self.ops if op.result is None]
        for op in pending:
            if op.token in state.cancelled or not self.blocked(op, state, frozenset()):
                return False
            for other in pending:
                for way in op.ways if other is not op else ():
                    if way is not None and way.kind == "send" and self.offers(other, "recv", way.channel):
                        return False
        return True

    # -- who is where --------------------------------------------------------------------------------------------------

    @staticmethod
    def offers(op: Op, kind: str, channel: int) -> bool:
        return any(way is not None and way[:2] == (kind, channel) for way in op.ways)

    def first(self, op: Op, left: frozenset[int], kind: str, channel: int) -> bool:
        """Whether nobody was parked on this side of the channel before ``op`` came, and still is."""
        return not any(other is not op for other in self.waiting(op, left, kind, channel))

    def waiting(self, op: Op, left: frozenset[int], kind: str, channel: int) -> Iterator[Op]:
        """Those known to have been parked there before ``op`` was called, and to be served there or never."""
        for i, other in enumerate(self.ops):
            if other.parked >= op.call:
                continue
            if other.result is None:
                if self.offers(other, kind, channel):
                    yield other
            elif i in left and other.served is not None and other.served[:2] == (kind, channel):
                yield other

    def blocked(self, op: Op, state: State, left: frozenset[int]) -> bool:
        """Whether no case can go ahead now."""
        for way in op.ways:
            if way is None:
                continue
            kind, channel, _ = way
            if state.closed[channel]:
                return False
            if kind == "send" and len(state.buffers[channel]) < self.capacities[channel]:
                return False
            if kind == "recv" and state.buffers[channel]:
                return False
            partner = "recv" if kind == "send" else "send"
            if any(other is not op for other in self.waiting(op, left, partner, channel)):
                return False
        return True

    # -- steps ---------------------------------------------------------------------------------------------------------

    def steps(self, state: State, left: frozenset[int]) -> list[tuple[State, frozenset[int]]]:
        """Every step that can come next."""
        horizon = min((self.ops[i].returned for i in left), default=NEVER)
        ready = [i for i in left if self.ops[i].call < horizon]
        out = []
        for i in ready:
            op = self.ops[i]
            rest = left - {i}
            word, case, value = op.result
            if word in ("sent", "got"):
                way = op.ways[case]
                assert way is not None
                if word == "sent":
                    out += self.sends(i, way, state, left, ready)
                elif state.buffers[way.channel][:1] == (value,) and self.first(op, left, "recv", way.channel):
                    out.append((_popped(state, way.channel), rest))
            elif word == "interrupted":
                out += self.interrupted(i, op, state, left, ready)
            elif self.agrees(op, state, left):
                out.append((self.acted(op, state), rest))
        return out

    def sends(
        self, i: int, way: Way, state: State, left: frozenset[int], ready: list[int]
    ) -> Iterator[tuple[State, frozenset[int]]]:
        """The send takes effect: into the buffer, or into the hands of a receiver."""
        op, channel, value = self.ops[i], way.channel, way.value
        if state.closed[channel] or not self.first(op, left, "send", channel):
            return
        buffer = state.buffers[channel]
        if len(buffer) < self.capacities[channel]:
            yield _with_buffer(state, channel, (*buffer, value)), left - {i}
        if buffer:
            return
        for j in ready:
            other = self.ops[j]
            if j == i:
                continue
            if other.result[0] == "got" and other.result[2] == value and other.served[:2] == ("recv", channel):  # type: ignore[index]
                if self.first(other, left, "recv", channel):
                    yield state, left - {i, j}
            elif other.result[0] == "interrupted" and self.offers(other, "recv", channel) and not _holds(state, j):
                yield state._replace(held=(*state.held, (j, channel, value))), left - {i}

    def interrupted(
        self, i: int, op: Op, state: State, left: frozenset[int], ready: list[int]
    ) -> Iterator[tuple[State, frozenset[int]]]:
        for holding in state.held:
            if holding[0] == i:
                _, channel, value = holding
                held = tuple(other for other in state.held if other is not holding)
                back = _with_buffer(state, channel, (value, *state.buffers[channel]))
                yield back._replace(held=held), left - {i}
                return
        yield state, left - {i}
        if op.act:
            yield self.acted(op, state), left - {i}
        for way in op.ways:
            if way is None:
                continue
            if way.kind == "send":
                yield from self.sends(i, way, state, left, ready)
            elif state.buffers[way.channel]:
                holding = (i, way.channel, state.buffers[way.channel][0])
                yield _popped(state, way.channel)._replace(held=(*state.held, holding)), left

    def agrees(self, op: Op, state: State, left: frozenset[int]) -> bool:
        """Whether the operation, at this moment, would end like this."""
        word, case, value = op.result
        if word == "blocked":
            return op.excused or self.blocked(op, state, left)
        if word == "cancelled":
            return op.token in state.cancelled
        if word == "refused":
            return any(way is not None and way.kind == "send" and state.closed[way.channel] for way in op.ways)
        if word == "drained":
            way = op.ways[case]
            return way is not None and state.closed[way.channel] and not state.buffers[way.channel]
        kind, thing = op.act[:2]
        if kind == "close":
            return bool(state.closed[thing] != value)
        if kind == "look":
            return bool(state.closed[thing] == value)
        return (thing in state.cancelled) != value if kind == "cancel" else (thing in state.cancelled) == value

    def acted(self, op: Op, state: State) -> State:
        """The state after a close or a cancel; of everything else, the same."""
        if not op.act:
            return state
        kind, thing = op.act[:2]
        if kind == "cancel":
            return state._replace(cancelled=state.cancelled | {thing})
        if kind != "close" or state.closed[thing]:
            return state
        closed = tuple(was or i == thing for i, was in enumerate(state.closed))
        return _with_buffer(state, thing, state.buffers[thing] + op.act[2])._replace(closed=closed)


def _holds(state: State, i: int) -> bool:
    return any(holding[0] == i for holding in state.held)


def _with_buffer(state: State, channel: int, buffer: tuple[Any, ...]) -> State:
    return state._replace(buffers=tuple(buffer if i == channel else old for i, old in enumerate(state.buffers)))


def _popped(state: State, channel: int) -> State:
    return _with_buffer(state, channel, state.buffers[channel][1:])
