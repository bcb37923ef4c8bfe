"""Waiting for what a store writes, in a process that may stand still."""

from __future__ import annotations

import time
from typing import Any

import pytest

from channels import Cancelled, CancelToken, Channel, ChannelClosed
from runtime.stores._waiting import wait_written


class StandsStill:
    """The process was stopped as it waited: the time is over, and the writer has not had it either."""

    waits = 0

    def recv(self, timeout: float | None = None, cancel: Any = None) -> None:
        self.waits += 1
        if self.waits == 1:
            time.sleep(2 * (timeout or 0) + 0.1)
            raise TimeoutError
        assert self.waits == 2
        raise ChannelClosed("written")


def test_the_time_in_which_the_process_stood_still_is_not_all_that_the_writer_has() -> None:
    done: Any = StandsStill()
    wait_written(done, 0.1, None)
    assert done.waits == 2


@pytest.mark.parametrize("timeout", [0.1, 0.0])
def test_a_writer_that_does_not_write_is_waited_for_so_long(timeout: float) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        wait_written(Channel(), timeout, None)
    assert timeout <= time.monotonic() - began < 5


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_wait_ends_with_its_token_and_with_what_is_written(timeout: float | None) -> None:
    token = CancelToken()
    token.cancel("enough")
    with pytest.raises(Cancelled):
        wait_written(Channel(), timeout, token)
    done: Channel[None] = Channel()
    done.close()
    wait_written(done, timeout, None)
