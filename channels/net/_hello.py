"""The hello of a connection: both sides prove that they know the key, and neither sends it.

::

    listener   MAGIC  nonce
    connecting MAGIC  nonce  HMAC(key, "connect" + both nonces)
    listener          HMAC(key, "accept" + both nonces + settings)  length  settings

The HMACs are SHA-256, compared in constant time. Each side has chosen one of the nonces, so that what somebody has
overheard cannot be sent again. The listener takes one connection with its key, and no other: the key is then spent.
Nothing is encrypted.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import struct
from typing import Any, Final

from .._park import monotonic
from ._errors import HelloFailed

MAGIC: Final = b"lockgate"
NONCE: Final = 32
MAC: Final = 32
CHALLENGE: Final = len(MAGIC) + NONCE
ANSWER: Final = len(MAGIC) + NONCE + MAC
SETTINGS: Final = 4096  # bytes of JSON, at most
_LENGTH: Final = struct.Struct("!H")


def new_key() -> str:
    """A new key, for one connection: 256 random bits, as text."""
    return secrets.token_urlsafe(32)


def _mac(key: str, what: bytes, first: bytes, second: bytes, rest: bytes = b"") -> bytes:
    return hmac.digest(key.encode(), b"\0".join((MAGIC, what, first + second, rest)), "sha256")


class Challenge:
    """The listener's side of the hello with one peer, which may be anybody."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.deadline = deadline
        self._nonce = secrets.token_bytes(NONCE)
        self._heard = b""
        sock.setblocking(False)
        sock.send(MAGIC + self._nonce)  # the first bytes of a connection always fit

    def proven(self, key: str) -> bytes | None:
        """Read what has come. The peer's nonce, once it has proven that it knows the key; None if it is not through.
        Raises `HelloFailed` and `OSError`.
        """
        try:
            data = self.sock.recv(ANSWER - len(self._heard))
        except BlockingIOError:
            return None
        self._heard += data
        if not data or not (self._heard.startswith(MAGIC) or MAGIC.startswith(self._heard)):
            raise HelloFailed("the peer is none of ours")
        if len(self._heard) < ANSWER:
            return None
        nonce, mac = self._heard[len(MAGIC) : CHALLENGE], self._heard[CHALLENGE:]
        if not hmac.compare_digest(mac, _mac(key, b"connect", self._nonce, nonce)):
            raise HelloFailed("the peer does not know the key")
        return nonce

    def accept(self, key: str, nonce: bytes, settings: dict[str, Any]) -> None:
        """Prove the same to the peer."""
        said = json.dumps(settings).encode()
        mac = _mac(key, b"accept", self._nonce, nonce, said)
        self.sock.send(mac + _LENGTH.pack(len(said)) + said)  # fits: little was sent so far


def introduce(sock: socket.socket, key: str, deadline: float) -> dict[str, Any]:
    """The connecting side of the hello, until the deadline (of `monotonic`): the settings of the connection. Raises
    `HelloFailed` and `TimeoutError`.
    """
    challenge = _exactly(sock, CHALLENGE, deadline)
    if not challenge.startswith(MAGIC):
        raise HelloFailed("what listens there is none of ours")
    theirs, ours = challenge[len(MAGIC) :], secrets.token_bytes(NONCE)
    try:
        sock.sendall(MAGIC + ours + _mac(key, b"connect", theirs, ours))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise _refused() from error
    mac = _exactly(sock, MAC, deadline)
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size, deadline))
    if length > SETTINGS:
        raise HelloFailed("what listens there does not know the key")
    said = _exactly(sock, length, deadline)
    if not hmac.compare_digest(mac, _mac(key, b"accept", theirs, ours, said)):
        raise HelloFailed("what listens there does not know the key")
    settings: dict[str, Any] = json.loads(said)  # of somebody who knows the key
    return settings


def _exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        left = deadline - monotonic()
        if left <= 0:
            raise TimeoutError("nobody said hello in time")
        sock.settimeout(left)
        try:
            more = sock.recv(size - len(data))
        except ConnectionResetError as error:
            raise _refused() from error
        if not more:
            raise _refused()
        data += more
    return data


def _refused() -> HelloFailed:
    return HelloFailed("the connection was refused: the key was used before, or is not the right one")
