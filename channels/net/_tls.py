"""TLS for a connection: `Tls` turns bytes into encrypted bytes, and back, and knows no socket.

Not an `ssl.SSLSocket`: that one keeps bytes which no selector sees, and may have to read before it can write. Here the
thread of the connection reads and writes its bare socket as ever, with what has come, or is to go, passed through.

The end of TLS (``close_notify``) is sent, but nothing depends on it: a lane is at its end when its `CLOSE` has come,
and somebody in the middle who cuts the connection before is a peer that is lost.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

from .._park import monotonic

if TYPE_CHECKING:
    import ssl

PIECE: Final = 16_384  # bytes that are read at a time, in the hello


class Tls:
    """One end of TLS: a server's, unless there is a name that the server's certificate has to have. For one thread.
    Methods raise `ssl.SSLError`.
    """

    def __init__(self, context: ssl.SSLContext, server_hostname: str | None = None) -> None:
        import ssl

        self._blocked = ssl.SSLWantReadError
        self._over = ssl.SSLZeroReturnError
        self._into, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._into, self._out, server_side=server_hostname is None, server_hostname=server_hostname
        )
        #: Whether the peer has ended it.
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Encrypted bytes have come."""
        self._into.write(data)

    def outgoing(self) -> bytes:
        """Encrypted bytes that are to be sent now. There may be some after any other call."""
        return self._out.read()

    def shake_hands(self) -> bool:
        """Go on with the handshake; whether it is done."""
        try:
            self._object.do_handshake()
        except self._blocked:
            return False
        return True

    def encrypt(self, data: bytes) -> bytes:
        """What is to be sent, with what was to be sent before."""
        if data:
            self._object.write(data)
        return self._out.read()

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes of what has come; nothing where no more of it is whole."""
        if self.ended:
            return b""
        try:
            data: bytes = self._object.read(size)
        except self._blocked:
            return b""
        except self._over:
            data = b""
        if not data:
            self.ended = True
        return data

    def decrypt(self, data: bytes) -> bytes:
        """All that has come, with these bytes."""
        self.feed(data)
        parts = []
        while part := self.read(PIECE):
            parts.append(part)
        return b"".join(parts)

    def end(self) -> bytes:
        """End this side. What is to be sent then."""
        with contextlib.suppress(self._blocked, self._over):  # where the peer has not ended its side, or has
            self._object.unwrap()
        return self._out.read()


class Within:
    """A socket that blocks, for the connecting side of the hello, which is said within TLS."""

    def __init__(self, tls: Tls, sock: socket.socket, deadline: float) -> None:
        """Shakes hands. Raises `TimeoutError` at the deadline, of `monotonic`."""
        self._tls = tls
        self._sock = sock
        self._deadline = deadline
        try:
            while not tls.shake_hands():
                sock.sendall(tls.outgoing())
                if not self._more():
                    raise ConnectionResetError("the peer has hung up in the middle of the handshake of TLS")
        except OSError:
            with contextlib.suppress(OSError):  # the peer may have hung up
                sock.sendall(tls.outgoing())  # what is wrong
            raise
        sock.sendall(tls.outgoing())

    def settimeout(self, seconds: float) -> None:
        """The deadline holds anyway."""

    def sendall(self, data: bytes) -> None:
        self._sock.sendall(self._tls.encrypt(data))

    def recv(self, size: int) -> bytes:
        while not (data := self._tls.read(size)):
            if self._tls.ended or not self._more():
                return b""
        return data

    def _more(self) -> bool:
        """Wait for encrypted bytes; whether there were any."""
        left = self._deadline - monotonic()
        if left <= 0:
            raise TimeoutError("nobody said hello in time")
        self._sock.settimeout(left)
        data = self._sock.recv(PIECE)
        self._tls.feed(data)
        return bool(data)


def checked(context: ssl.SSLContext, *, server_side: bool) -> ssl.SSLContext:
    """Raises `TypeError` and `ValueError` for what is no context, or that of the other side."""
    import ssl

    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext, not {context!r:.200}")
    if server_side and context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(
            "who listens needs a server's SSLContext, with its certificate: ssl.create_default_context("
            "ssl.Purpose.CLIENT_AUTH), then load_cert_chain"
        )
    if not server_side and context.protocol == ssl.PROTOCOL_TLS_SERVER:
        raise ValueError("who connects needs a client's SSLContext, such as ssl.create_default_context()")
    return context


def is_of_tls(error: OSError) -> bool:
    """Whether it is one of `ssl`, which is not imported for it."""
    return type(error).__module__ == "ssl"


def explained(error: OSError) -> str:
    """Why a hello has failed, with the usual reasons of TLS in words that say what to do."""
    text = str(error)
    if not is_of_tls(error):
        return text
    for sign, meaning in _MEANINGS.items():
        if sign in text:
            return f"{text}: {meaning}"
    return text


_MEANINGS: Final = {
    "NO_SHARED_CIPHER": "has the context of who listens a certificate (load_cert_chain)?",
    "CERTIFICATE_VERIFY_FAILED": "the context does not trust the certificate of the other side"
    " (load_verify_locations), or it is that of another host",
    "ALERT_UNKNOWN_CA": "the other side does not trust the certificate of this one (load_verify_locations there)",
    "CERTIFICATE_REQUIRED": "who listens wants a certificate of who connects (load_cert_chain)",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "who connects has no certificate (load_cert_chain there)",
    "WRONG_VERSION_NUMBER": "the other side does not use TLS",
    "HTTP_REQUEST": "the other side does not use TLS",
    "UNEXPECTED_MESSAGE": "the other side does not use TLS",
}
