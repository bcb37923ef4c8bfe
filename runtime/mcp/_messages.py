"""Messages of a server that the SDK cannot read, or not within bounds: what can be made of them."""

from __future__ import annotations

import json
import re
from typing import Final

from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, jsonrpc_message_adapter

ANSWER: Final = 64 << 20  # bytes that a message of the server may have
VALUES: Final = 100_000  # that it may be made of, about: to read more holds the GIL, and with it every thread

# The beginning of a reply, as most servers write it; those made with the TypeScript SDK say the result first.
_REPLY: Final = re.compile(r'\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,15})\s*,')
#: To the end too, or a line of quotes would take time that is quadratic.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_REPLIED: Final = re.compile(r'"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,15})\s*\}\s*$')  # or the end
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def has_many_values(line: bytes) -> bool:
    """Whether a message is made of so many values that it cannot be read without holding up the process."""
    return line.count(b",") > VALUES and _STRING.sub(b"", line).count(b",") > VALUES


def _answered(text: str) -> int | None:
    """The id of the request that an unreadable message answers."""
    reply = _REPLY.match(text) or _REPLIED.search(text[-100:])
    return None if reply is None else int(reply[1])


def refused(text: str) -> JSONRPCError | None:
    """The error of the call that a message answers which is not read. None where it answers none."""
    id = _answered(text)
    if id is None:
        return None
    return failed(id, f"the answer of the server has more than {VALUES:,} values")


def mended(text: str) -> SessionMessage | None:
    """What a message says that the SDK cannot read. A call whose answer were dropped would wait in vain: what cannot be
    read at all is an error of the call that it answers. None where it is nothing of the kind.
    """
    id: object = None
    try:
        read = json.loads(text)
        id = read["id"] if "method" not in read else None
        return SessionMessage(jsonrpc_message_adapter.validate_python(json.loads(written(read)), by_name=False))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        if id is None:
            id = _answered(text)
        if isinstance(id, (int, str)) and not isinstance(id, bool):
            return SessionMessage(failed(id, f"the answer of the server cannot be read: {type(error).__name__}"))
        return None


def written(read: object) -> str:
    """``read`` as JSON that UTF-8 can write. Half a character, which JavaScript writes where a text was cut, is allowed
    by JSON alone.
    """
    return _SURROGATES.sub("\ufffd", json.dumps(read, ensure_ascii=False))


def failed(id: int | str, message: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=id, error=ErrorData(code=-32603, message=message))


def unwrap(error: BaseException) -> BaseException:
    """The exception in nested groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
