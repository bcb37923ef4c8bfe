"""Notices on their way to those who watch a store."""

from __future__ import annotations

import contextlib
from typing import Final

from channels import Channel, ChannelClosed, WouldBlock

from ._store import Notice

NOTICES: Final = 256  # that a slow receiver may be behind


def tell(channel: Channel[Notice], notice: Notice) -> bool:
    """Whether somebody still listens. Without waiting: one that is slow misses the oldest notices."""
    while True:
        try:
            channel.try_send(notice)
            return True
        except ChannelClosed:
            return False
        except WouldBlock:
            with contextlib.suppress(WouldBlock, ChannelClosed):
                channel.try_recv()
