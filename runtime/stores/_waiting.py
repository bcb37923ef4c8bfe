"""Waiting for what a store writes."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from channels import Channel, ChannelClosed, SupportsDone

PIECES: Final = 4


def wait_written(done: Channel[Any], timeout: float | None, cancel: SupportsDone | None) -> None:
    """Wait until ``done`` is closed. Raises `TimeoutError` after ``timeout`` seconds, and `Cancelled`.

    The wait has a few pieces: while this process stands still (it was stopped, or collects its garbage), the thread
    that writes does so as well, and a piece is all that is lost of the time that it has. A run that had ended well
    would be told to have failed in its last step.
    """
    with contextlib.suppress(ChannelClosed):
        if timeout is None:
            done.recv(None, cancel)
        else:
            for _ in range(PIECES - 1):
                with contextlib.suppress(TimeoutError):
                    done.recv(timeout / PIECES, cancel)
            done.recv(timeout / PIECES, cancel)
