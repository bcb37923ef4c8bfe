"""What one thread produces and another takes: the order, the one end, and what each side learns of the other."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import pytest

from channels import Cancelled, CancelToken, ChannelClosed
from runtime.execution._pump import Pump, reading

LONG = 10.0  # seconds after which something will never happen


def pump(ahead: int = 2) -> Pump[Any]:
    return Pump(ahead, "test")


def no_loop() -> NoReturn:
    raise AssertionError("nothing here is asynchronous")


class Source:
    """An iterator that counts, and knows whether it was closed."""

    def __init__(self, *raises: BaseException) -> None:
        self.closed = threading.Event()
        self.raises = raises

    def __call__(self) -> Iterator[int]:
        try:
            yield from range(3)
            for error in self.raises:
                raise error
            yield from range(3, 1_000_000_000)
        finally:
            self.closed.set()


def fed(source: Callable[[], Any], threads: Any, pump: Pump[Any]) -> Any:
    return threads.go(pump.run, reading(source, no_loop, CancelToken()))


@pytest.mark.parametrize("ahead", [0, 1, 256])
def test_everything_in_order_and_then_the_end(ahead: int, threads: Any) -> None:
    items = pump(ahead)
    fed(lambda: iter(range(1000)), threads, items)
    assert list(items.take()) == list(range(1000))


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), TimeoutError(), ChannelClosed(), Cancelled("x")])
def test_what_the_producer_raises_comes_after_what_it_put(error: BaseException, threads: Any) -> None:
    """Also where it is an exception that the wait itself might raise."""
    items, taken = pump(1), []
    fed(Source(error), threads, items)
    with pytest.raises(type(error)) as raised:
        for each in items.take(CancelToken(), timeout=LONG, late=AssertionError):
            taken.append(each)
    assert raised.value is error
    assert taken == [0, 1, 2]


def test_the_first_end_counts(threads: Any) -> None:
    """Said by whoever ends it from outside, or by the producer; what was put before is there."""
    items = pump(3)
    items.put("a")
    items.end(ValueError("first"))
    items.end(ValueError("second"))
    items.end()
    with pytest.raises(ChannelClosed):
        items.put("b")
    taking = items.take()
    assert next(taking) == "a"
    with pytest.raises(ValueError, match="first"):
        next(taking)


def test_a_channel_that_is_closed_is_no_end() -> None:
    """A reply that was cut off must not pass for a whole one."""
    items = pump()
    items.close()
    items.end()
    whole, cut_off = pump(), pump()
    whole.end()
    whole.close()
    assert list(whole.take()) == []
    cut_off.close()
    with pytest.raises(ChannelClosed):
        list(cut_off.take())


@pytest.mark.parametrize("how", ["closes", "is cancelled", "has waited too long", "raises"])
def test_a_consumer_that_leaves_ends_the_producer(how: str, threads: Any) -> None:
    """Parked as it is; its source is closed."""
    items, source, token = pump(1), Source(), CancelToken()
    producer = fed(source, threads, items)
    taking = items.take(token)
    assert next(taking) == 0
    threads.parked(items._items, senders=1)
    if how == "closes":
        taking.close()
    elif how == "is cancelled":
        token.cancel("enough")
        with pytest.raises(Cancelled):
            for _ in taking:
                pass
    elif how == "raises":
        with pytest.raises(KeyError):
            taking.throw(KeyError())
    else:
        items.close()
    producer.result()
    assert source.closed.is_set()


def test_an_item_that_is_late() -> None:
    items = pump()
    with pytest.raises(KeyError, match="late"):
        next(items.take(timeout=0.01, late=lambda: KeyError("late")))
    assert items.closed


def test_ctrl_c_in_the_wait_for_an_item(threads: Any) -> None:
    """It is the consumer's, and the producer learns of it at its next item."""
    items = pump()

    pressing = threads.go(threads.ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        next(items.take())
    pressing.result()
    with pytest.raises(ChannelClosed):
        items.put(1)


@pytest.mark.parametrize("how", ["has left", "takes it"])
def test_an_error_is_kept_by_nobody_once_it_was_raised_or_dropped(how: str) -> None:
    """What its frames hold goes at once, without the garbage collector."""

    class Held:
        pass

    def fails(held: Held) -> Iterator[int]:
        raise ValueError

    items, held = pump(), Held()
    gone = weakref.ref(held)
    source = reading(partial(fails, held), no_loop, CancelToken())
    del held
    gc.disable()
    try:
        if how == "has left":
            items.close()
        items.run(source)
        del source
        if how == "takes it":
            try:
                list(items.take())
            except ValueError:
                pass
        assert gone() is None
    finally:
        gc.enable()


def test_a_source_that_cannot_be_opened(threads: Any) -> None:
    @contextmanager
    def broken() -> Iterator[Iterator[int]]:
        raise OSError("no such source")
        yield iter(())

    items = pump()
    items.run(broken())
    with pytest.raises(OSError, match="no such source"):
        list(items.take())
