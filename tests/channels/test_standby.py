"""A receive that waits while its thread does something else: one of the two comes first, and no value is lost."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

from channels import CancelToken, Channel, _timer
from channels._park import NOTHING
from channels._standby import Standby

_timer.start()


class Wanted:
    """What is called when there is something."""

    def __init__(self) -> None:
        self.called = threading.Event()

    def __call__(self) -> None:
        self.called.set()


def test_a_value_that_comes_is_handed_over() -> None:
    """It does not go through the buffer: it is the standby's, before anybody else can ask."""
    channel, wanted = Channel[int](1), Wanted()
    standby = Standby(wanted)
    assert standby.begin(channel)
    assert not standby.served
    channel.send(1)
    assert standby.served
    assert len(channel) == 0
    assert wanted.called.wait(10)
    assert standby.end() == 1


def test_what_is_there_needs_no_waiting() -> None:
    channel, wanted = Channel[int](1), Wanted()
    channel.send(1)
    standby = Standby(wanted)
    assert not standby.begin(channel)
    assert standby.end() == 1
    assert not wanted.called.is_set()


def test_what_comes_after_the_end_is_for_others() -> None:
    channel, wanted = Channel[int](1), Wanted()
    standby = Standby(wanted)
    assert standby.begin(channel)
    assert standby.end() is NOTHING
    channel.send(1)
    assert channel.recv() == 1
    assert not wanted.called.is_set()


def test_a_close_is_told_and_has_no_value() -> None:
    wanted, token = Wanted(), CancelToken()
    standby = Standby(wanted)
    done: Any = token.done._channel
    assert standby.begin(done)
    token.cancel()
    assert wanted.called.wait(10)
    assert standby.end() is NOTHING
    late = Standby(wanted)
    assert not late.begin(done)
    assert late.end() is NOTHING


def test_it_waits_in_line() -> None:
    """Who has waited longer is served first."""
    channel, wanted = Channel[int](), Wanted()
    standby = Standby(wanted)
    assert standby.begin(channel)
    assert channel.statistics().waiting_to_receive == 1
    channel.try_send(1)
    assert channel.statistics().waiting_to_receive == 0
    assert standby.end() == 1


def test_who_has_ended_holds_nothing() -> None:
    """The channel may keep it in its queue for a while."""
    channel, wanted = Channel[int](), Wanted()
    standby = Standby(wanted)
    assert standby.begin(channel)
    assert standby.end() is NOTHING
    held = weakref.ref(wanted)
    del wanted
    gc.collect()
    assert held() is None
    assert channel.statistics().waiting_to_receive == 0
