"""The hello of a connection: both sides prove that they know the key, and neither sends it.

::

    listener   MAGIC  nonce
    connecting MAGIC  nonce  HMAC(key, "connect" + both nonces)
    listener          HMAC(key, "accept" + both nonces + settings)  length  settings

The HMACs are SHA-256, compared in constant time. Each side has chosen one of the nonces, so that what somebody has
overheard cannot be sent again. The listener takes one connection with its key, and no other: the key is then spent.
Nothing of it is encrypted, unless all of it is said within TLS, whose handshake then comes first.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import struct
from typing import Any, Final

from .._park import monotonic
from ._errors import HelloFailed
from ._tls import PIECE, Tls, Within, explained, is_of_tls

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

    def __init__(self, sock: socket.socket, deadline: float, tls: Tls | None = None) -> None:
        self.sock = sock
        self.deadline = deadline
        self.tls = tls
        self._nonce = secrets.token_bytes(NONCE)
        self._heard = b""
        self._said = False
        sock.setblocking(False)
        if tls is None:
            self._say(MAGIC + self._nonce)
            self._said = True

    def _say(self, data: bytes) -> None:
        if data and self.sock.send(data) < len(data):  # the first bytes of a connection always fit
            raise HelloFailed("the peer reads too slowly to say hello")

    def proven(self, key: str) -> bytes | None:
        """Read what has come. The peer's nonce, once it has proven that it knows the key; None if it is not through.
        Raises `HelloFailed` and `OSError`.
        """
        try:
            data = self.sock.recv(ANSWER - len(self._heard) if self.tls is None else PIECE)
        except BlockingIOError:
            return None
        if not data:
            raise HelloFailed("the peer has hung up in the middle of its hello")
        if self.tls is not None:
            data = self._within(self.tls, data)
            if not data:
                return None
        self._heard += data
        if not (self._heard.startswith(MAGIC) or MAGIC.startswith(self._heard)):
            raise HelloFailed("the peer is none of ours")
        if len(self._heard) < ANSWER:
            return None
        nonce, mac = self._heard[len(MAGIC) : CHALLENGE], self._heard[CHALLENGE:]
        if not hmac.compare_digest(mac, _mac(key, b"connect", self._nonce, nonce)):
            raise HelloFailed("the peer does not know the key")
        return nonce

    def _within(self, tls: Tls, data: bytes) -> bytes:
        """What has come of the hello: after the handshake of TLS, the listener's part of which is said here."""
        try:
            tls.feed(data)
            if not self._said and tls.shake_hands():
                self._said = True
                self._say(tls.encrypt(MAGIC + self._nonce))
            heard = tls.read(ANSWER - len(self._heard)) if self._said else b""
        except OSError:
            with contextlib.suppress(OSError):  # the peer may have hung up
                self._say(tls.outgoing())  # what is wrong
            raise
        self._say(tls.outgoing())
        return heard

    def accept(self, key: str, nonce: bytes, settings: dict[str, Any]) -> None:
        """Prove the same to the peer."""
        said = json.dumps(settings).encode()
        mac = _mac(key, b"accept", self._nonce, nonce, said)
        answer = mac + _LENGTH.pack(len(said)) + said
        self._say(answer if self.tls is None else self.tls.encrypt(answer))


def introduce_within(tls: Tls, sock: socket.socket, key: str, deadline: float) -> dict[str, Any]:
    """The connecting side of the hello, as `introduce`, after the handshake of TLS."""
    try:
        return introduce(Within(tls, sock, deadline), key, deadline)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise _refused() from error
    except OSError as error:
        if not is_of_tls(error):
            raise
        raise HelloFailed(f"no hello over TLS: {explained(error)}") from error


def introduce(sock: socket.socket | Within, key: str, deadline: float) -> dict[str, Any]:
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


def _exactly(sock: socket.socket | Within, size: int, deadline: float) -> bytes:
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
    return HelloFailed(
        "the connection was refused: the key was used before, or is not the right one, or one side uses TLS (ssl=) and"
        " the other does not"
    )
