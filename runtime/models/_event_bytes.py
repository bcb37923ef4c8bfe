"""The bytes of a stream of events, within bounds. The libraries keep what a server sends until an event is whole, and
copy it with each line: a reply that is compressed a thousandfold would fill the memory, and take minutes to look at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from ._provider_errors import Account

LARGEST: Final = 16 << 20  # bytes of an event
LINES: Final = 10_000  # of an event
_ENDS: Final = (b"\n\n", b"\r\r", b"\r\n\r\n")


def bound(response: Any, account: Account) -> None:
    """Let the bytes of ``response`` end in a `ModelError` where an event is too long to be one."""
    source = response.aiter_bytes

    async def bounded() -> AsyncIterator[bytes]:
        size = lines = 0
        before = b""  # the last bytes, where an end may have begun
        async for piece in source():
            said = before + piece
            end = max(said.rfind(each) for each in _ENDS)
            if end >= 0:
                size = lines = 0
            size += len(said) - max(end, 0)
            lines += said.count(b"\n", max(end, 0)) + said.count(b"\r", max(end, 0))
            if size > LARGEST or lines > LINES:
                raise account.explain("bad_response", f"an event of more than {LARGEST >> 20} MB or {LINES:,} lines")
            before = said[-3:]
            yield piece

    response.aiter_bytes = bounded
