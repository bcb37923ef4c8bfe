"""What the threads do, in a few operations each. The explorer finds the orders.

A scenario is a function of a `Stage`, often of a capacity too. The bounds beside it are those of the standard run; the
stress run adds one preemption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from . import Limits, Report, explore
from .stage import Stage, Step, staged


@dataclass(frozen=True)
class Scenario:
    """A scenario and how far to go."""

    name: str
    build: Callable[[Stage], object]
    limits: Limits
    reduce: bool = True

    def explore(self, **options: Any) -> Report:
        limits = asdict(self.limits)
        return explore(staged(self.build), name=self.name, reduce=self.reduce, **{**limits, **options})

    def __str__(self) -> str:
        return self.name

    @property
    def deeper(self) -> Scenario:
        return replace(self, limits=replace(self.limits, preemptions=self.limits.preemptions + 1))


SCENARIOS: list[Scenario] = []
INTERRUPTED: list[Scenario] = []  # with asynchronous exceptions
REENTERED: list[Scenario] = []  # with operations nested in others


def scenario(
    *capacities: int,
    into: list[Scenario] = SCENARIOS,
    preemptions: int = 2,
    interrupts: int = 0,
    nested: int = 0,
    reduce: bool = True,
) -> Callable[[Any], Any]:
    limits = Limits(preemptions, interrupts, nested)

    def register(build: Any) -> Any:
        for capacity in capacities:
            into.append(Scenario(f"{build.__name__}[{capacity}]", partial(build, capacity=capacity), limits, reduce))
        if not capacities:
            into.append(Scenario(build.__name__, build, limits, reduce))
        return build

    return register


# -- send, receive, close ----------------------------------------------------------------------------------------------


@scenario(0, 1, 2, preemptions=1)
def send_recv_close(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.send(channel, 1))
    stage.thread(stage.recv(channel))
    stage.thread(stage.close(channel))


@scenario(0, 1, preemptions=1)
def two_senders(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.send(channel, 1))
    stage.thread(stage.send(channel, 2))
    stage.thread(stage.recv(channel), stage.recv(channel))


@scenario(0, 1, preemptions=1)
def two_receivers(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.recv(channel))
    stage.thread(stage.recv(channel))
    stage.thread(stage.send(channel, 1), stage.send(channel, 2))


@scenario(0, 1)
def a_receiver_is_not_overtaken(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.recv(channel))
    stage.thread(stage.send(channel, 1))
    stage.thread(stage.try_recv(channel))


@scenario()
def a_sender_is_not_overtaken(stage: Stage) -> None:
    channel = stage.channel(1, 0)
    stage.thread(stage.send(channel, 1))
    stage.thread(stage.recv(channel))
    stage.thread(stage.try_send(channel, 2))


@scenario(0, 1, preemptions=3)
def trying(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.try_send(channel, 1), stage.try_recv(channel))
    stage.thread(stage.try_recv(channel), stage.try_send(channel, 2))


@scenario(0, 1, preemptions=1)
def final_value(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(capacity))
    stage.thread(stage.send(channel, 7))
    stage.thread(stage.recv(channel), stage.recv(channel))
    stage.thread(stage.close(channel, 9))


@scenario(0, 1, preemptions=1)
def final_value_for_two_receivers(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.recv(channel))
    stage.thread(stage.recv(channel))
    stage.thread(stage.close(channel, 9))


@scenario(preemptions=2)
def two_finals(stage: Stage) -> None:
    channel = stage.channel(0)
    stage.thread(stage.close(channel, 8), stage.try_recv(channel))
    stage.thread(stage.close(channel, 9), stage.try_recv(channel))


@scenario(preemptions=3)
def closed_means_closed(stage: Stage) -> None:
    channel = stage.channel(1)
    stage.thread(stage.close(channel), stage.try_send(channel, 1))
    stage.thread(stage.close(channel), stage.try_send(channel, 2))


@scenario(preemptions=3)
def seen_closed_means_closed(stage: Stage) -> None:
    channel = stage.channel(1)
    stage.thread(stage.close(channel))
    stage.thread(stage.look(channel), stage.try_send(channel, 1), stage.look(channel))


@scenario(preemptions=3)
def seen_closed_by_a_select(stage: Stage) -> None:
    channel = stage.channel(1)
    stage.thread(stage.close(channel))
    stage.thread(stage.look(channel), stage.select(stage.sending(channel, 1), stage.receiving(channel), block=False))


# -- many at once ------------------------------------------------------------------------------------------------------


@scenario(0, 1, 2, preemptions=1)
def many_received_and_senders(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(capacity))
    stage.thread(stage.send(channel, 8))
    stage.thread(stage.send(channel, 9))
    stage.thread(stage.recv_many(channel), stage.recv_many(channel))


@scenario(2, preemptions=1)
def a_batch_makes_room_for_all_who_wait(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(capacity))
    stage.thread(stage.send(channel, 8))
    stage.thread(stage.send(channel, 9))
    stage.thread(stage.recv_many(channel))


@scenario(1, 3, preemptions=2)
def some_received_and_a_sender(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(capacity))
    stage.thread(stage.send(channel, 8))
    stage.thread(stage.recv_many(channel, 2), stage.recv_many(channel, 2, wait=False))


@scenario(0, 1, 2, preemptions=1)
def many_sent_and_receivers(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.recv(channel))
    stage.thread(stage.recv(channel))
    stage.thread(stage.try_send_many(channel, 1, 2, 3))


@scenario(0, 2, preemptions=1)
def many_and_close(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.try_send_many(channel, 1, 2))
    stage.thread(stage.recv_many(channel), stage.recv_many(channel))
    stage.thread(stage.close(channel, 9))


@scenario(0, 1, preemptions=1)
def many_received_and_a_select(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity), stage.channel(capacity)
    stage.thread(stage.select(stage.sending(a, 1), stage.sending(b, 2)))
    stage.thread(stage.recv_many(a, wait=False), stage.recv_many(b))
    stage.thread(stage.close(a))


@scenario(1, 2, preemptions=1)
def all_that_is_sent_comes(stage: Stage, capacity: int) -> Any:
    """However the batches are cut: everything, once, in order, and then the end."""
    channel = stage.package.Channel(capacity)
    got: list[Any] = []

    def receive() -> None:
        try:
            while True:
                got.extend(channel.recv_many(2))
        except stage.package.ChannelClosed:
            pass

    stage.world.spawn("S", lambda: (channel.send_many([1, 2, 3]), channel.close(4)))
    stage.world.spawn("R", receive)

    def check() -> None:
        stage.expect(not stage.world.stuck, "stuck")
        stage.expect(got == [1, 2, 3, 4], f"{got}")

    return check


@scenario(0, 1, preemptions=1)
def a_close_ends_a_batch(stage: Stage, capacity: int) -> Any:
    """Who sends many learns how many of them were sent."""
    channel = stage.package.Channel(capacity)
    got: list[Any] = []
    sent: list[Any] = []

    def send() -> None:
        try:
            channel.send_many([1, 2, 3])
            sent.append(3)
        except stage.package.ChannelClosed as error:
            sent.append(error.sent)

    def receive() -> None:
        try:
            got.append(channel.recv())
        except stage.package.ChannelClosed:
            pass

    stage.world.spawn("S", send)
    stage.world.spawn("R", receive)
    stage.world.spawn("C", channel.close)

    def check() -> None:
        left = list(channel._buffer)
        stage.expect([*got, *left] == list(range(1, sent[0] + 1)), f"sent {sent}, got {got}, left {left}")

    return check


@scenario(0, 1, preemptions=1)
def a_batch_that_was_taken_is_sent(stage: Stage, capacity: int) -> Any:
    """Whoever takes the last value of a batch may close the channel at once: its sender has sent all of it."""
    channel = stage.package.Channel(capacity)
    said: list[Any] = []

    def send() -> None:
        try:
            channel.send_many([1, 2])
            said.append("sent")
        except stage.package.ChannelClosed as error:
            said.append(error)

    def receive() -> None:
        assert [channel.recv(), channel.recv()] == [1, 2]
        channel.close()

    stage.world.spawn("S", send)
    stage.world.spawn("R", receive)

    def check() -> None:
        stage.expect(said == ["sent"], f"{said}")

    return check


@scenario(0, 1, preemptions=1)
def a_cancel_ends_a_batch(stage: Stage, capacity: int) -> Any:
    """Whoever sends many and is cancelled knows which of them can be received, and no others can."""
    channel, token = stage.package.Channel(capacity), stage.package.CancelToken()
    sent: list[Any] = []
    got: list[Any] = []

    def send() -> None:
        try:
            channel.send_many([1, 2, 3], None, token)
            sent.append(3)
        except stage.package.Cancelled as error:
            sent.append(error.sent)
        channel.close()

    stage.world.spawn("S", send)
    stage.world.spawn("R", lambda: got.extend(channel))
    stage.world.spawn("C", token.cancel)

    def check() -> None:
        stage.expect(not stage.world.stuck, "stuck")
        stage.expect(got == list(range(1, sent[0] + 1)), f"sent {sent}, got {got}")

    return check


# -- select ------------------------------------------------------------------------------------------------------------


@scenario(0, 1, preemptions=1)
def select_and_senders(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity), stage.channel(capacity)
    stage.thread(stage.select(stage.receiving(a), stage.receiving(b)))
    stage.thread(stage.send(a, 1))
    stage.thread(stage.send(b, 2))


@scenario(0, 1)
def select_and_receivers(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity, *range(capacity)), stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.select(stage.sending(a, 1), stage.sending(b, 2)))
    stage.thread(stage.recv(a), stage.recv(b))


@scenario(0, 1, preemptions=1)
def select_and_close(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity), stage.channel(capacity, *range(capacity))
    stage.thread(stage.select(stage.receiving(a), stage.sending(b, 5)))
    stage.thread(stage.close(a))
    stage.thread(stage.recv(b))


@scenario(0, 1, preemptions=1)
def select_and_close_of_what_it_sends_on(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity), stage.channel(capacity, *range(capacity))
    stage.thread(stage.select(stage.receiving(a), stage.sending(b, 5)))
    stage.thread(stage.close(b))
    stage.thread(stage.send(a, 1))


@scenario(0, 1)
def crossed_selects(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity, *range(capacity)), stage.channel(capacity)
    stage.thread(stage.select(stage.sending(a, 1), stage.receiving(b)))
    stage.thread(stage.select(stage.sending(b, 2), stage.receiving(a)))


@scenario(0, preemptions=2)
def meeting_selects(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity), stage.channel(capacity)
    stage.thread(stage.select(stage.sending(a, 1), stage.sending(b, 2)))
    stage.thread(stage.select(stage.receiving(b), stage.receiving(a)))


@scenario(0, preemptions=1)
def ring_of_selects(stage: Stage, capacity: int) -> None:
    a, b, c = (stage.channel(capacity) for _ in range(3))
    stage.thread(stage.select(stage.sending(a, 1), stage.receiving(c)))
    stage.thread(stage.select(stage.sending(b, 2), stage.receiving(a)))
    stage.thread(stage.select(stage.sending(c, 3), stage.receiving(b)))


@scenario(0, 1, preemptions=1)
def select_on_both_sides(stage: Stage, capacity: int) -> None:
    """It never meets itself, but others."""
    a = stage.channel(capacity, *range(capacity))
    stage.thread(stage.select(stage.sending(a, 1), stage.receiving(a)))
    stage.thread(stage.select(stage.receiving(a), stage.sending(a, 2)))


@scenario(0, preemptions=1)
def duplicated_channel(stage: Stage, capacity: int) -> None:
    a = stage.channel(capacity)
    stage.thread(stage.select(stage.receiving(a), stage.receiving(a)))
    stage.thread(stage.send(a, 2))
    stage.thread(stage.close(a))


@scenario(preemptions=3)
def default_is_judged_at_one_moment(stage: Stage) -> None:
    """Go's TestNonblockSelectRace: one of the two is always ready."""
    a, b = stage.channel(1, 1), stage.channel(1)
    stage.thread(stage.select(stage.receiving(a), stage.receiving(b), block=False))
    stage.thread(stage.send(b, 2), stage.try_recv(a))


@scenario(preemptions=3)
def default_and_close(stage: Stage) -> None:
    """Go's TestNonblockSelectRace2."""
    a, b = stage.channel(1, 1), stage.channel(0)
    stage.thread(stage.select(stage.receiving(a), stage.receiving(b), block=False))
    stage.thread(stage.close(b), stage.try_recv(a))


@scenario(preemptions=1)
def default_with_parked_partners(stage: Stage) -> None:
    a, b = stage.channel(0), stage.channel(0)
    stage.thread(stage.recv(a))
    stage.thread(stage.select(stage.sending(b, 1), stage.sending(a, 2), block=False))
    stage.thread(stage.send(a, 3))


@scenario(preemptions=2)
def two_defaults(stage: Stage) -> None:
    a, b = stage.channel(1), stage.channel(1, 5)
    stage.thread(stage.select(stage.sending(a, 1), stage.receiving(b), block=False))
    stage.thread(stage.select(stage.sending(b, 2), stage.receiving(a), block=False))


# -- merge -------------------------------------------------------------------------------------------------------------


def _merged(stage: Stage, channels: list[Any], got: list[Any], **options: Any) -> None:
    """A thread that collects what a merge brings. Interrupted, it goes on."""
    merged = stage.package.merge(*channels)

    def collect() -> None:
        while True:
            try:
                for pair in merged:
                    got.append(pair)
                return
            except KeyboardInterrupt:
                continue

    stage.world.spawn("M", collect, **options)


def _all_came(stage: Stage, channels: list[Any], got: list[Any], *wanted: list[tuple[int, Any]]) -> Callable[[], None]:
    def check() -> None:
        stage.expect(not stage.world.stuck, f"stuck, with {got}")
        stage.expect(sorted(got) in wanted, f"{got}")
        stage.expect(not any(len(channel) for channel in channels), "values are left")

    return check


@scenario(0, 1, preemptions=1)
def merged(stage: Stage, capacity: int) -> Any:
    """Everything comes, once, and it ends with the last channel."""
    channels = [stage.package.Channel(capacity) for _ in range(2)]
    a, b = channels
    got: list[Any] = []
    _merged(stage, channels, got)
    stage.world.spawn("A", lambda: (a.send(1), a.close()))
    stage.world.spawn("B", b.close)
    return _all_came(stage, channels, got, [(0, 1)])


@scenario(0, 1, preemptions=1)
def merged_while_all_are_open(stage: Stage, capacity: int) -> Any:
    """A value wakes it, though nothing is closed."""
    channel = stage.package.Channel(capacity)
    got: list[Any] = []

    def collect() -> None:
        for pair in stage.package.merge(channel):
            got.append(pair)
            channel.close()

    stage.world.spawn("M", collect)
    stage.world.spawn("A", lambda: channel.send(1))
    return _all_came(stage, [channel], got, [(0, 1)])


@scenario(preemptions=1)
def merged_one_after_the_other(stage: Stage) -> Any:
    """It loses its place in a queue to one value, and takes it again for the next."""
    channels = [stage.package.Channel() for _ in range(2)]
    a, b = channels
    got: list[Any] = []
    _merged(stage, channels, got)
    stage.world.spawn("A", lambda: (a.send(1), b.close(2), a.close(3)))
    return _all_came(stage, channels, got, [(0, 1), (0, 3), (1, 2)])


@scenario(preemptions=1)
def merged_beside_a_receiver_and_a_select(stage: Stage) -> Any:
    """It stands in nobody's way: who sends by select is not held up by one that is busy."""
    package = stage.package
    channel = package.Channel()
    got: list[Any] = []
    _merged(stage, [channel], got)

    def receive() -> None:
        try:
            got.append((0, channel.recv()))
        except package.ChannelClosed:
            pass

    stage.world.spawn("R", receive)
    stage.world.spawn("S", lambda: (package.select(channel.sending(1)), channel.close(2)))
    return _all_came(stage, [channel], got, [(0, 1), (0, 2)])


@scenario(preemptions=1)
def merged_by_two_threads(stage: Stage) -> Any:
    """They share the values of one iterator, and both end."""
    channel = stage.package.Channel()
    got: list[Any] = []
    merged = stage.package.merge(channel)
    stage.world.spawn("M", lambda: got.extend(merged))
    stage.world.spawn("N", lambda: got.extend(merged))
    stage.world.spawn("S", lambda: (channel.send(1), channel.close(2)))
    return _all_came(stage, [channel], got, [(0, 1), (0, 2)])


@scenario(0, 1, preemptions=1)
def merged_until_cancelled(stage: Stage, capacity: int) -> Any:
    """Cancelled, it has taken nothing that it did not deliver."""
    package = stage.package
    a, b, token = package.Channel(capacity), package.Channel(capacity), package.CancelToken()
    got: list[Any] = []
    sent: list[bool] = []

    def collect() -> None:
        try:
            for pair in package.merge(a, b, cancel=token):
                got.append(pair)
        except package.Cancelled as error:
            got.append(error.cause)

    def send() -> None:
        try:
            a.send(1, timeout=1)
            sent.append(True)
        except TimeoutError:
            sent.append(False)

    stage.world.spawn("M", collect)
    stage.world.spawn("S", send)
    stage.world.spawn("C", lambda: token.cancel("why"))

    def check() -> None:
        stage.expect(not stage.world.stuck, f"stuck, with {got}")
        stage.expect(got == [(0, 1)] * (sent[0] - len(a)) + ["why"], f"{got}, sent {sent}, left {len(a)}")

    return check


# -- timeouts ----------------------------------------------------------------------------------------------------------


@scenario(0, 1)
def timeout_of_a_receive(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.recv(channel, timeout=1), stage.try_recv(channel))
    stage.thread(stage.send(channel, 1, timeout=1))


@scenario(0, 1, preemptions=1)
def timeout_of_a_send(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.send(channel, 1, timeout=1))
    stage.thread(stage.recv(channel, timeout=1), stage.try_recv(channel))
    stage.thread(stage.close(channel))


@scenario(0, preemptions=1)
def timeout_frees_the_place_in_the_queue(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.recv(channel, timeout=1))
    stage.thread(stage.recv(channel))
    stage.thread(stage.send(channel, 1))


@scenario(0, 1)
def timeout_of_a_select(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity), stage.channel(capacity)
    stage.thread(stage.select(stage.receiving(a), stage.receiving(b), timeout=1))
    stage.thread(stage.send(a, 1, timeout=0), stage.send(b, 2, timeout=1))


# -- cancel ------------------------------------------------------------------------------------------------------------


@scenario(0, 1, preemptions=1)
def cancelled_receive(stage: Stage, capacity: int) -> None:
    channel, token = stage.channel(capacity), stage.token()
    stage.thread(stage.recv(channel, cancel=token), stage.try_recv(channel))
    stage.thread(stage.try_send(channel, 1))
    stage.thread(stage.cancel(token))


@scenario(0, 1, preemptions=1)
def cancelled_send(stage: Stage, capacity: int) -> None:
    channel, token = stage.channel(capacity, *range(10, 10 + capacity)), stage.token()
    stage.thread(stage.send(channel, 1, cancel=token))
    stage.thread(stage.try_recv(channel), stage.try_recv(channel))
    stage.thread(stage.cancel(token))


@scenario(0, preemptions=1)
def cancelled_select(stage: Stage, capacity: int) -> None:
    a, b, token = stage.channel(capacity), stage.channel(capacity), stage.token()
    stage.thread(stage.select(stage.receiving(a), stage.sending(b, 2), cancel=token))
    stage.thread(stage.send(a, 1, timeout=1))
    stage.thread(stage.cancel(token))


@scenario(preemptions=3)
def cancelled_means_cancelled(stage: Stage) -> None:
    token, channel = stage.token(), stage.channel(1)
    stage.thread(stage.cancel(token), stage.cancelled(token))
    stage.thread(stage.cancel(token), stage.cancelled(token), stage.send(channel, 1, cancel=token))


@scenario(preemptions=1)
def cancelled_and_closed(stage: Stage) -> None:
    channel, token = stage.channel(0), stage.token()
    stage.thread(stage.recv(channel, cancel=token))
    stage.thread(stage.cancel(token))
    stage.thread(stage.close(channel, 5))


@scenario(preemptions=1)
def callback_runs_once(stage: Stage) -> Any:
    """Whoever registers while another cancels: it is called, once, and knows the cause."""
    token, calls = stage.token(), []
    real = stage.tokens[token]
    stage.thread(stage.cancel(token))
    stage.thread(stage.cancel(token))
    stage.world.spawn("R", lambda: real.on_cancel(lambda: calls.append(real.cause)))
    return lambda: stage.expect(calls == ["cause 0"], f"{calls}")


@scenario(preemptions=3)
def callback_is_removed_or_runs(stage: Stage) -> Any:
    """Never both, never neither."""
    token, calls, removed = stage.token(), [], []
    registration = stage.tokens[token].on_cancel(lambda: calls.append(1))
    stage.thread(stage.cancel(token))
    stage.world.spawn("R", lambda: removed.append(registration.remove()))
    return lambda: stage.expect(len(calls) + removed[0] == 1, f"{calls} {removed}")


@scenario(preemptions=2)
def parent_and_child(stage: Stage) -> Any:
    """A child made while its parent is cancelled is cancelled too, with the same cause."""
    parent = stage.package.CancelToken()
    children: list[Any] = []
    stage.world.spawn("P", lambda: parent.cancel("why"))
    stage.world.spawn("C", lambda: children.append(stage.package.CancelToken(parent)))

    def check() -> None:
        child = children[0]
        stage.expect(child.cancelled and child.cause == "why", f"{child.cancelled} {child.cause}")

    return check


@scenario(preemptions=2)
def grandparent_and_child(stage: Stage) -> Any:
    """Cancelled from above and by itself: one cause, that of the first, and everyone below has one."""
    package = stage.package
    top = package.CancelToken()
    middle = package.CancelToken(top)
    bottom = package.CancelToken(middle)
    first: list[bool] = []
    stage.world.spawn("T", lambda: top.cancel("top"))
    stage.world.spawn("M", lambda: first.append(middle.cancel("middle")))

    def check() -> None:
        wanted = "middle" if first[0] else "top"
        for token in (middle, bottom):
            stage.expect(token.cancelled and token.cause == wanted, f"{token.cancelled} {token.cause}, not {wanted}")

    return check


@scenario(preemptions=1)
def the_cause_is_there_at_once(stage: Stage) -> None:
    """Two cancel, one waits: `Stage.perform` compares the cause that it gets."""
    channel, token = stage.channel(0), stage.token()
    stage.thread(stage.recv(channel, cancel=token))
    stage.thread(stage.cancel(token))
    stage.thread(stage.cancel(token))


@scenario(preemptions=2, reduce=False)
def child_goes_while_parent_is_cancelled(stage: Stage) -> Any:
    """The last reference to a child is dropped while its parent is cancelled: a step that no hook sees."""
    parent = stage.package.CancelToken()
    children = [stage.package.CancelToken(parent)]
    stage.world.spawn("P", lambda: parent.cancel("why"))
    stage.world.spawn("C", children.clear)
    return lambda: stage.expect(not parent._core.callbacks, "a link is left")


@scenario(preemptions=1)
def callbacks_that_cancel_each_other(stage: Stage) -> Any:
    """Two tokens whose callbacks cancel the other, and two threads: every callback runs, once."""
    calls: list[str] = []
    a, b = (stage.package.CancelToken() for _ in "ab")
    for name, one, other in (("a", a, b), ("b", b, a)):
        one.on_cancel(partial(other.cancel, name))
        one.on_cancel(partial(calls.append, name))
    firsts: list[bool] = []
    stage.world.spawn("A", lambda: firsts.append(a.cancel("A")))
    stage.world.spawn("B", lambda: firsts.append(b.cancel("B")))

    def check() -> None:
        stage.expect(sorted(calls) == ["a", "b"], f"{calls}")
        stage.expect(a.cancelled and b.cancelled and any(firsts), f"{a} {b} {firsts}")
        stage.expect(not a._core.callbacks and not b._core.callbacks, "a callback is left")

    return check


# -- deadlines, with the timer thread ----------------------------------------------------------------------------------


@scenario(preemptions=1)
def deadline_of_a_token(stage: Stage) -> Any:
    """It cancels a receive, or is too late."""
    stage.timers()
    token = stage.package.CancelToken(timeout=5)
    channel = stage.package.Channel()
    ends: list[Any] = []

    def receive() -> None:
        try:
            ends.append(channel.recv(cancel=token))
        except stage.package.Cancelled as error:
            ends.append(type(error.cause))

    stage.world.spawn("R", receive)
    stage.world.spawn("S", lambda: ends.append(token.cancel("by hand")))

    def check() -> None:
        stage.expect(ends in ([True, str], [str, True], [False, TimeoutError], [TimeoutError, False]), f"{ends}")
        stage.expect(token.cancelled, "not cancelled")

    return check


@scenario(preemptions=1)
def callback_of_a_deadline(stage: Stage) -> Any:
    """It runs on a thread of its own, once, beside one that is registered when the deadline has passed."""
    stage.timers()
    token = stage.package.CancelToken(timeout=5)
    calls: list[str] = []
    token.on_cancel(partial(calls.append, "early"))

    def register() -> None:
        stage.package.after(5).recv()
        token.on_cancel(partial(calls.append, "late"))

    stage.world.spawn("R", register)
    return lambda: stage.expect(sorted(calls) == ["early", "late"], f"{calls}")


@scenario(preemptions=1)
def timers_made_at_once(stage: Stage) -> Any:
    """Two threads make the first timers: one timer thread, and both fire, in order."""
    stage.timers()
    fired: list[float] = []
    stage.world.spawn("A", lambda: fired.append(stage.package.after(5).recv()))
    stage.world.spawn("B", lambda: fired.append(stage.package.after(9).recv()))

    def check() -> None:
        stage.expect(len(fired) == 2, f"{fired}")
        stage.expect(sum(task.name == "channels-timer" for task in stage.scheduler.tasks) == 1, "timer threads")

    return check


# -- asynchronous exceptions at every point ----------------------------------------------------------------------------


interrupted = partial(scenario, into=INTERRUPTED, preemptions=1, interrupts=1)


@interrupted(0, 1, preemptions=0)
def interrupted_receive(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.recv(channel), interruptible=True)
    stage.thread(stage.send(channel, 1))
    stage.thread(stage.recv(channel, timeout=1))


@interrupted(0, 2, preemptions=0)
def interrupted_receive_of_many(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.recv_many(channel, at_once=3), interruptible=True)
    stage.thread(stage.send(channel, 21))
    stage.thread(stage.recv(channel, timeout=1))


@interrupted(2)
def interrupted_receive_of_many_beside_another(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.recv_many(channel), interruptible=True)
    stage.thread(stage.recv(channel))


@interrupted(3)
def interrupted_receive_of_some(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.recv_many(channel, 2, wait=False), interruptible=True)
    stage.thread(stage.send(channel, 21), stage.try_recv(channel))


@interrupted(0, 1, 2, preemptions=0)
def interrupted_send_of_many(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.recv(channel, timeout=1))
    stage.thread(stage.recv(channel, timeout=1))
    stage.thread(stage.try_send_many(channel, 1, 2), interruptible=True)


@interrupted(2)
def close_comes_into_a_receive_of_many(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, 1, 2)
    stage.thread(stage.recv_many(channel), interruptible=True)
    stage.thread(stage.close(channel, 9))


@interrupted(0, 1)
def interrupted_receive_of_parked_senders(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.send(channel, 1))
    stage.thread(stage.recv(channel), stage.recv(channel, timeout=1), interruptible=True)


@interrupted(0, 1)
def interrupted_send(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.send(channel, 1), stage.try_send(channel, 2), interruptible=True)
    stage.thread(stage.recv(channel), stage.recv(channel, timeout=1))


@interrupted(0, 1)
def interrupted_timeout(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.recv(channel, timeout=1), interruptible=True)
    stage.thread(stage.send(channel, 1, timeout=1), interruptible=True)


@interrupted(0, 1, preemptions=0)
def interrupted_trying(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.try_recv(channel), stage.try_send(channel, 2), interruptible=True)
    stage.thread(stage.send(channel, 1, timeout=1))
    stage.thread(stage.recv(channel, timeout=1))


@interrupted(0, 1)
def interrupted_close(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity)
    stage.thread(stage.close(channel, 9), stage.close(channel), stage.look(channel), interruptible=True)
    stage.thread(stage.recv(channel), stage.recv(channel))


@interrupted(0, 1, preemptions=0)
def interrupted_close_with_senders(stage: Stage, capacity: int) -> None:
    channel = stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.close(channel, 9), stage.close(channel), interruptible=True)
    stage.thread(stage.send(channel, 1))
    stage.thread(stage.send(channel, 2))


@interrupted()
def interrupted_close_beside_another(stage: Stage) -> None:
    channel = stage.channel(0)
    stage.thread(stage.close(channel, 9), interruptible=True)
    stage.thread(stage.close(channel), stage.look(channel))
    stage.thread(stage.recv(channel))


@interrupted(0, 1, preemptions=0)
def interrupted_select(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity), stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.select(stage.receiving(a), None, stage.sending(b, 5)), interruptible=True)
    stage.thread(stage.send(a, 1, timeout=1))
    stage.thread(stage.recv(b, timeout=1), stage.try_recv(a))


@interrupted(0, 1, preemptions=0)
def interrupted_select_of_a_receiver(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity), stage.channel(capacity)
    cases = stage.receiving(a, view=True), stage.receiving(b, view=True)
    stage.thread(stage.select(*cases), interruptible=True)
    stage.thread(stage.send(a, 1, timeout=1), stage.close(b))
    stage.thread(stage.try_recv(a))


@interrupted(0, 1, preemptions=0)
def interrupted_select_and_close(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity), stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.select(stage.receiving(a), stage.sending(b, 5), timeout=1), interruptible=True)
    stage.thread(stage.close(a, 9), stage.try_recv(a))
    stage.thread(stage.close(b))


@interrupted(0, 1, preemptions=0)
def interrupted_default(stage: Stage, capacity: int) -> None:
    a, b = stage.channel(capacity), stage.channel(capacity, *range(10, 10 + capacity))
    stage.thread(stage.select(stage.receiving(a), stage.sending(b, 5), block=False), interruptible=True)
    stage.thread(stage.send(a, 1, timeout=1), stage.recv(b, timeout=1))


@interrupted(0, 1, preemptions=0)
def interrupted_cancelled_receive(stage: Stage, capacity: int) -> None:
    channel, token = stage.channel(capacity), stage.token()
    stage.thread(stage.recv(channel, cancel=token), interruptible=True)
    stage.thread(stage.send(channel, 1, timeout=1), stage.try_recv(channel))
    stage.thread(stage.cancel(token))


@interrupted(0, preemptions=0)
def interrupted_cancelled_send(stage: Stage, capacity: int) -> None:
    channel, token = stage.channel(capacity), stage.token()
    stage.thread(stage.send(channel, 1, cancel=token), interruptible=True)
    stage.thread(stage.recv(channel, timeout=1))
    stage.thread(stage.cancel(token))


@interrupted(0, 1, preemptions=0)
def interrupted_merge(stage: Stage, capacity: int) -> Any:
    channels = [stage.package.Channel(capacity) for _ in range(2)]
    a, b = channels
    got: list[Any] = []
    b.close()
    _merged(stage, channels, got, interruptible=True)
    stage.world.spawn("A", lambda: (a.send(1), a.close(2)))
    return _all_came(stage, channels, got, [(0, 1), (0, 2)])


@interrupted(preemptions=0)
def interrupted_merge_of_a_parked_sender(stage: Stage) -> Any:
    channel = stage.package.Channel()
    got: list[Any] = []
    stage.world.spawn("A", lambda: (channel.send(1), channel.close()))
    _merged(stage, [channel], got, interruptible=True)
    return _all_came(stage, [channel], got, [(0, 1)])


@interrupted()
def interrupted_cancel(stage: Stage) -> None:
    channel, token = stage.channel(0), stage.token()
    stage.thread(stage.cancel(token), stage.cancel(token), interruptible=True)
    stage.thread(stage.recv(channel, cancel=token))


@interrupted()
def interrupted_callbacks(stage: Stage) -> Any:
    """An exception anywhere in a cancel: what was cancelled, also by a callback, has all its callbacks run, once."""
    calls: list[str] = []
    top, other = stage.package.CancelToken(), stage.package.CancelToken()
    child = stage.package.CancelToken(top)
    top.on_cancel(other.cancel)
    top.on_cancel(partial(calls.append, "top"))
    other.on_cancel(partial(calls.append, "other"))
    child.on_cancel(partial(calls.append, "child"))

    def cancel() -> None:
        try:
            top.cancel()
        except KeyboardInterrupt:
            pass

    stage.world.spawn("T", cancel, interruptible=True)

    def check() -> None:
        wanted = (["child", "top"] if top.cancelled else []) + (["other"] if other.cancelled else [])
        stage.expect(sorted(calls) == sorted(wanted), f"{calls}, not {wanted}")
        stage.expect(child.cancelled == top.cancelled, "the child was not told")

    return check


# -- operations in the middle of others --------------------------------------------------------------------------------


reentered = partial(scenario, into=REENTERED, preemptions=0, nested=1)


def _nested(kind: str, stage: Stage, channel: int) -> Step:
    return {
        "close": lambda: stage.close(channel, 9),
        "try_send": lambda: stage.try_send(channel, 8),
        "try_recv": lambda: stage.try_recv(channel),
        "try_send_many": lambda: stage.try_send_many(channel, 7, 8),
        "try_recv_many": lambda: stage.recv_many(channel, wait=False),
        "default": lambda: stage.select(stage.sending(channel, 8), stage.receiving(channel), block=False),
    }[kind]()


def _reenter(kind: str) -> None:
    @reentered(0, 1)
    def receive(stage: Stage, capacity: int) -> None:
        channel = stage.channel(capacity)
        stage.thread(stage.recv(channel), nested=_nested(kind, stage, channel))
        stage.thread(stage.send(channel, 1))

    @reentered(0, 1)
    def send(stage: Stage, capacity: int) -> None:
        channel = stage.channel(capacity, *range(10, 10 + capacity))
        stage.thread(stage.send(channel, 1), nested=_nested(kind, stage, channel))
        stage.thread(stage.recv(channel), stage.recv(channel))

    @reentered(0, 2)
    def receive_of_many(stage: Stage, capacity: int) -> None:
        channel = stage.channel(capacity, *range(10, 10 + capacity))
        stage.thread(stage.recv_many(channel), nested=_nested(kind, stage, channel))
        stage.thread(stage.send(channel, 1))

    @reentered(0, 2)
    def send_of_many(stage: Stage, capacity: int) -> None:
        channel = stage.channel(capacity)
        stage.thread(stage.try_send_many(channel, 1, 2), nested=_nested(kind, stage, channel))
        stage.thread(stage.recv(channel))

    @reentered(0, 1)
    def select(stage: Stage, capacity: int) -> None:
        a, b = stage.channel(capacity), stage.channel(0)
        stage.thread(stage.select(stage.receiving(a), stage.sending(b, 5)), nested=_nested(kind, stage, a))
        stage.thread(stage.send(a, 1), stage.try_recv(b))

    @reentered(0, 1)
    def default(stage: Stage, capacity: int) -> None:
        a, b = stage.channel(capacity), stage.channel(0)
        stage.thread(stage.select(stage.receiving(a), stage.sending(b, 5), block=False), nested=_nested(kind, stage, a))
        stage.thread(stage.send(a, 1))

    @reentered(1)
    def close(stage: Stage, capacity: int) -> None:
        channel = stage.channel(capacity, 10)
        stage.thread(stage.close(channel), nested=_nested(kind, stage, channel))
        stage.thread(stage.send(channel, 1))
        stage.thread(stage.recv(channel))

    del receive, send, receive_of_many, send_of_many, select, default, close


for _kind in ("close", "try_send", "try_recv", "try_send_many", "try_recv_many", "default"):
    _before = len(REENTERED)
    _reenter(_kind)
    REENTERED[_before:] = [replace(one, name=f"{_kind} in {one.name}") for one in REENTERED[_before:]]


@reentered(preemptions=1)
def cancel_in_a_receive(stage: Stage) -> None:
    channel, token = stage.channel(0), stage.token()
    stage.thread(stage.recv(channel, cancel=token), nested=stage.cancel(token))
    stage.thread(stage.send(channel, 1, timeout=1))


@reentered(preemptions=0)
def cancel_in_a_cancel(stage: Stage) -> None:
    channel, token = stage.channel(0), stage.token()
    stage.thread(stage.cancel(token), nested=stage.cancel(token))
    stage.thread(stage.recv(channel, cancel=token))


@reentered(preemptions=0)
def cancel_of_another_in_a_cancel(stage: Stage) -> Any:
    """A signal handler cancels another token in the middle of a cancel: both have their callbacks run, once."""
    one, other = stage.token(), stage.token()
    calls: list[int] = []
    for token in (one, other):
        stage.tokens[token].on_cancel(partial(calls.append, token))
    stage.thread(stage.cancel(one), nested=stage.cancel(other))

    def check() -> None:
        wanted = [token for token in (one, other) if stage.tokens[token].cancelled]
        stage.expect(sorted(calls) == sorted(wanted), f"{calls}, not {wanted}")

    return check


@reentered(0, 1, preemptions=0)
def close_in_a_merge(stage: Stage, capacity: int) -> Any:
    channel = stage.package.Channel(capacity)
    got: list[Any] = []
    _merged(stage, [channel], got, nested=lambda: channel.close(9))
    stage.world.spawn("S", lambda: channel.close(7))
    return _all_came(stage, [channel], got, [(0, 7)], [(0, 9)])


@reentered(preemptions=1)
def crossed_finalizers(stage: Stage) -> None:
    """Two threads, each in an operation on one channel, whose finalizers try the other: nobody waits for ever."""
    a, b = stage.channel(1), stage.channel(1)
    stage.thread(stage.send(a, 1), nested=stage.try_send(b, 3))
    stage.thread(stage.send(b, 2), nested=stage.try_send(a, 4))
