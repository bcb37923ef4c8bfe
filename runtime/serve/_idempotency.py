"""The header ``Idempotency-Key``: a request that is sent twice is carried out once.

A client that has got no reply does not know whether its request was carried out. It sends the request again with the
same key, to whichever process, and gets what the first one got. The store notes the key in the step in which the
request takes effect, so there is no moment in which a process can die and leave one without the other.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from werkzeug.wrappers import Request

from .._dataclasses import replace
from ..session._idempotency import IdempotencyKey
from ._http import Problem

LONGEST: Final = 200  # characters of a key


def key_of(request: Request, what: str, body: Any) -> IdempotencyKey | None:
    """The key of a request to do ``what`` with its ``body``; None if it has none. Raises `Problem`."""
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > LONGEST:
        raise Problem(400, "bad_request", f"an Idempotency-Key has {LONGEST} characters at most")
    if not key:
        return None
    said = json.dumps([what, body], sort_keys=True)
    return IdempotencyKey(key, hashlib.sha256(said.encode()).hexdigest())


def part_of(key: IdempotencyKey, number: int, last: bool) -> IdempotencyKey:
    """The key of one of several messages that a request has: it may be sent again after some of them have got through.
    The last has the key of the request.
    """
    return key if last else replace(key, key=f"{key.key}\0{number}")


def key_reused() -> Problem:
    """The client has given one key to two requests."""
    return Problem(
        422, "key_reused", "another request to this session had this Idempotency-Key: each request needs one of its own"
    )
