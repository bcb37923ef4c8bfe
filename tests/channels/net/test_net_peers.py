"""Peers that are wrong, gone, or somebody else: nothing hangs, nothing is taken for what it is not."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from channels import Cancelled, CancelToken, ChannelClosed
from channels._park import monotonic
from channels.net import Connection, ConnectionLost, HelloFailed, Listener, ProtocolError, connect
from channels.net import _connection as connection_module
from channels.net._frames import ALIVE, CLOSE, CREDIT, DATA, STOP, WANT, frame
from channels.net._hello import ANSWER, CHALLENGE, MAGIC, introduce
from support.certificates import certificates
from support.cutting import How, Network, Way

Raw = Callable[..., tuple[Connection, socket.socket]]


@pytest.fixture(params=["plain", "tls"])
def raw(request: pytest.FixtureRequest, threads: Any) -> Iterator[Raw]:
    """A connection, and the bare socket of its peer, which has said hello; or a socket of `ssl`."""
    here = certificates().server() if request.param == "tls" else None
    with contextlib.ExitStack() as stack:

        def raw(**settings: Any) -> tuple[Connection, socket.socket]:
            with Listener(**settings, ssl=here) as listener:
                accepting = threads.go(listener.accept, 5)
                sock = stack.enter_context(socket.create_connection(listener.address, 5))
                if here is not None:
                    context = certificates().client()
                    sock = stack.enter_context(context.wrap_socket(sock, server_hostname="127.0.0.1"))
                introduce(sock, listener.key, monotonic() + 5)
                connection: Connection = accepting.result()
            stack.callback(connection.close)
            stack.callback(connection.abort)
            return connection, sock

        yield raw


STRANGERS: dict[str, bytes] = {
    "nothing": b"",
    "a request for a page": b"GET / HTTP/1.1\r\n\r\n",
    "one byte": b"\0",
    "half a hello": MAGIC + b"x" * 10,
    "a wrong key": MAGIC + b"n" * 32 + b"m" * 32,
    "a lot": b"\xff" * 10_000,
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS.keys())
def test_strangers_hold_up_nobody(said: bytes, threads: Any) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(Listener())
        strangers = [stack.enter_context(socket.create_connection(listener.address, 5)) for _ in range(20)]
        accepting = threads.go(listener.accept, 10)
        for each in strangers:
            with contextlib.suppress(OSError):
                each.sendall(said)
        with connect(listener.address, listener.key) as far, accepting.result() as near:
            far.sender.send("it is me")
            assert near.receiver.recv(timeout=5) == "it is me"
            for each in strangers:  # they are hung up on, however little they had said
                each.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    while each.recv(1000):
                        pass
            far.sender.close()
            near.sender.close()


def test_more_silent_strangers_than_are_waited_for(monkeypatch: pytest.MonkeyPatch, threads: Any) -> None:
    """Those that have been silent for longest make room; and each only has so long."""
    monkeypatch.setattr(connection_module, "STRANGERS", 4)
    monkeypatch.setattr(connection_module, "HELLO", 0.5)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(Listener())
        accepting = threads.go(listener.accept, 10)
        first = stack.enter_context(socket.create_connection(listener.address, 5))
        assert len(first.recv(100)) == CHALLENGE
        crowd = [stack.enter_context(socket.create_connection(listener.address, 5)) for _ in range(12)]
        assert first.recv(100) == b""
        assert crowd[-1].recv(100, socket.MSG_WAITALL | socket.MSG_PEEK)
        began = time.monotonic()
        while crowd[-1].recv(100):
            pass
        assert time.monotonic() - began < 5
        monkeypatch.undo()  # who knows the key has as long as ever
        with connect(listener.address, listener.key), accepting.result():
            pass


def test_without_files_the_listener_rests_and_goes_on_when_there_are_some(threads: Any) -> None:
    """Whoever waits to be let in makes the socket of the listener ready all the time: it must not be looked at all the
    time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(Listener())
        accepting = threads.go(listener.accept, 20)
        assert stack.enter_context(socket.create_connection(listener.address, 5)).recv(1)  # it has begun
        waiting = stack.enter_context(socket.socket())
        with contextlib.ExitStack() as full:
            full.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 10, hard))
            with contextlib.suppress(OSError):
                while True:
                    full.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            waiting.connect(listener.address)
            before = time.process_time()
            time.sleep(0.5)
            assert time.process_time() - before < 0.25
        with connect(listener.address, listener.key), accepting.result():
            pass


def test_a_wrong_key_is_refused_and_does_not_spend_the_right_one(threads: Any) -> None:
    with Listener() as listener:
        accepting = threads.go(listener.accept, 5)
        for key in ("", "wrong", listener.key[:-1], listener.key + "x"):
            with pytest.raises(HelloFailed, match="refused"):
                connect(listener.address, key)
        with connect(listener.address, listener.key), accepting.result():
            pass


def test_a_key_is_used_once(threads: Any) -> None:
    """Whoever else is in the middle of the hello, or comes later, is refused, though it knows the key."""
    with Listener() as listener:
        late = [socket.create_connection(listener.address, 5) for _ in range(3)]
        accepting = threads.go(listener.accept, 5)
        with connect(listener.address, listener.key), accepting.result():
            for each in late:
                with pytest.raises((HelloFailed, OSError)), each:
                    introduce(each, listener.key, monotonic() + 5)
            with pytest.raises(ConnectionRefusedError):
                connect(listener.address, listener.key)
            with pytest.raises(RuntimeError, match="one connection"):
                listener.accept(1)


def test_what_was_overheard_cannot_be_sent_again(threads: Any) -> None:
    """Not to the next listener with the same key either: each hello has a nonce of its own."""
    overheard: list[bytes] = []
    key = ""
    for replays in (False, True):
        with Listener() as listener:
            key = listener.key = key or listener.key
            accepting = threads.go(listener.accept, 5 if not replays else 0.3)
            with socket.create_connection(listener.address, 5) as sock:
                if replays:
                    assert len(sock.recv(CHALLENGE, socket.MSG_WAITALL)) == CHALLENGE
                    sock.sendall(overheard[0])
                    assert sock.recv(100) == b""
                    accepting.raises(TimeoutError)
                    return
                sent = _Recorded(sock)
                introduce(sent, key, monotonic() + 5)  # type: ignore[arg-type]
                overheard.append(sent.sent)
                assert len(sent.sent) == ANSWER
                accepting.result().abort()


class _Recorded:
    """A socket that keeps what it sends."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.sent = b""

    def sendall(self, data: bytes) -> None:
        self.sent += data
        self._sock.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


IMPOSTORS: dict[str, bytes | None] = {
    "silent": None,
    "another protocol": b"220 mail.example.com ESMTP and so on, for a while" * 3,
    "who does not know the key": MAGIC + b"n" * 32 + b"m" * 32 + struct.pack("!H", 2) + b"{}",
    "who wants to say very much": MAGIC + b"n" * 32 + b"m" * 32 + struct.pack("!H", 65535) + b"x" * 65535,
    "who hangs up": b"",
    "who hangs up later": MAGIC + b"n" * 32,
}


@pytest.mark.parametrize("said", IMPOSTORS.values(), ids=IMPOSTORS.keys())
def test_a_listener_has_to_know_the_key_too(said: bytes | None, threads: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connecting = threads.go(connect, server.getsockname()[:2], "key", timeout=0.3)
        sock, _ = server.accept()
        with sock:
            if said is not None:
                with contextlib.suppress(OSError):
                    sock.sendall(said)
                    sock.shutdown(socket.SHUT_WR)
            connecting.raises((HelloFailed, TimeoutError))  # type: ignore[arg-type]


def test_nobody_comes(threads: Any) -> None:
    with Listener() as listener, pytest.raises(TimeoutError, match=r"0\.05 s"):
        listener.accept(0.05)
    token = CancelToken()
    with Listener() as listener:
        accepting = threads.go(listener.accept, None, token)
        token.cancel("enough")
        accepting.raises(Cancelled)
        with pytest.raises(ConnectionRefusedError):
            connect(listener.address, listener.key)


MISTAKES: dict[str, bytes] = {
    "a kind that does not exist": frame(99),
    "the kind 0": frame(0),
    "a lane that does not exist": frame(DATA, 7, b"1"),
    "no JSON": frame(DATA, 0, b"{"),
    "no UTF-8": frame(DATA, 0, b'"\xff"'),
    "an empty value": frame(DATA),
    "what is nested too deeply": frame(DATA, 0, b"[" * 100_000),
    "a frame that is too long": struct.pack("!IBB", 1001, DATA, 0),
    "the longest frame there is": b"\xff\xff\xff\xff" + bytes([DATA, 0]),
    "credits that it was not given": frame(CREDIT, 0, struct.pack("!I", 1000)),
    "a number that is none": frame(CREDIT, 0, b"12345"),
    "a value after the end": frame(CLOSE) + frame(DATA, 0, b"1"),
    "two ends": frame(CLOSE) + frame(CLOSE),
    "more than there is room for": frame(DATA, 0, b"1") * 10,
    "the same in pieces": frame(DATA, 0, b"1") * 4 + frame(ALIVE) + frame(DATA, 0, b"1") * 4,
}


@pytest.mark.parametrize("said", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_peer_that_breaks_the_protocol(raw: Raw, said: bytes) -> None:
    """The connection ends with an error that says so; what came before can be received."""
    connection, sock = raw(capacity=4, limit=1000)
    with contextlib.suppress(OSError):  # it may be hung up on before all is sent
        sock.sendall(frame(DATA, 0, b'"before"') + said)
    assert connection.receiver.recv(timeout=5) == "before"
    with contextlib.suppress(ChannelClosed):
        connection.done.recv(timeout=5)
    assert isinstance(connection.error, ProtocolError)
    with pytest.raises(ChannelClosed, match="peer") as caught:
        connection.sender.send(1)
    assert caught.value.__cause__ is connection.error


@pytest.mark.parametrize("size", [1, 2, 5, 7, 1000])
def test_frames_come_in_pieces(raw: Raw, size: int) -> None:
    """Of whatever size: a stream of bytes has no borders."""
    connection, sock = raw()
    values = [*range(30), "x" * 3000]
    said = b"".join(frame(DATA, 0, repr(each).replace("'", '"').encode()) for each in values) + frame(CLOSE)
    for at in range(0, len(said), size):
        sock.sendall(said[at : at + size])
    assert list(connection.receiver) == values


def test_a_peer_that_is_silent_is_lost(raw: Raw) -> None:
    """Its machine was switched off: nothing says so but the silence."""
    connection, sock = raw(heartbeat=0.2)
    began = time.monotonic()
    with pytest.raises(ConnectionLost, match=r"0\.2 s"):
        connection.receiver.recv(timeout=10)
    assert time.monotonic() - began < 10
    assert sock.recv(6) == frame(ALIVE)


def test_an_idle_connection_stays(threads: Any) -> None:
    with Listener(heartbeat=0.5) as listener:
        accepting = threads.go(listener.accept, 5)
        with connect(listener.address, listener.key) as far, accepting.result() as near:
            time.sleep(1.2)  # more than twice as long as a silent peer has: the time is what is tested
            far.sender.send("still there")
            assert near.receiver.recv(timeout=5) == "still there"


def test_time_in_which_this_side_stands_still_is_not_the_silence_of_the_peer(
    raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped, or collected its garbage, has not listened for so long."""
    ahead = 0.0
    monkeypatch.setattr("channels.net._link.monotonic", lambda: time.monotonic() + ahead)
    connection, sock = raw(heartbeat=1.5)
    for _ in range(2):  # wherever its thread is
        sock.sendall(frame(ALIVE))
        assert sock.recv(6) == frame(ALIVE)
        ahead += 60.0
    assert connection.error is None


def test_what_has_come_counts_before_the_time_does(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that comes late to a socket may find there what was in time."""
    connection, sock = raw(heartbeat=0.5)
    real = selectors.PollSelector.select

    def slow(self: Any, timeout: float | None = None) -> Any:
        found = real(self, timeout)
        sock.sendall(frame(ALIVE))  # as this is about to look at the clock
        time.sleep(0.06)
        return found

    monkeypatch.setattr(selectors.PollSelector, "select", slow)
    with pytest.raises(TimeoutError):
        connection.receiver.recv(timeout=1.5)
    assert connection.error is None


def test_a_peer_that_does_not_read(raw: Raw, threads: Any) -> None:
    """It holds up those who send to it, and nothing else: not a close, nor a send that has a timeout."""
    connection, _ = raw(capacity=100)
    with pytest.raises(TimeoutError):
        connection.sender.send_many(["x" * 100_000] * 200, timeout=0.3)
    began = time.monotonic()
    connection.close(timeout=0.2)
    assert time.monotonic() - began < 3
    assert isinstance(connection.error, ConnectionLost)


def test_a_peer_may_stop_receiving_and_ask_for_credits(raw: Raw) -> None:
    connection, sock = raw(capacity=4)
    sock.sendall(frame(WANT) + frame(STOP))
    with contextlib.suppress(ChannelClosed):
        while True:
            connection.sender.send(1, timeout=5)
    sock.sendall(frame(DATA, 0, b"2") + frame(CLOSE))
    assert list(connection.receiver) == [2]


def conversation(connection: Connection, first: bool) -> list[Any]:
    """Each side asks and answers a few times, closes, and receives to the end."""
    got = []
    for number in range(4):
        if first:
            connection.sender.send(number, timeout=5)
            got.append(connection.receiver.recv(timeout=5))
        else:
            got.append(connection.receiver.recv(timeout=5))
            connection.sender.send(number, timeout=5)
    connection.sender.close(final="end")
    return [*got, *connection.receiver]


WHOLE = [0, 1, 2, 3, "end"]


def test_a_conversation_is_whole_or_ends_with_an_error(threads: Any) -> None:
    """The network is cut after each frame, in the middle of one, in each direction, in three ways. Whoever comes to
    the end of a loop has got everything; whoever has not is told."""
    cuts = 0
    for how in ("reset", "end", "silence"):
        for way in ("up", "down"):
            for extra in (0, 3):
                after = 0
                while _cut(threads, way, after, extra, how):  # type: ignore[arg-type]
                    after += 1 if how != "silence" else 2  # which takes its time
                    cuts += 1
                assert after >= 5
    assert cuts >= 50


def test_a_conversation_over_tls_is_whole_or_ends_with_an_error(threads: Any) -> None:
    """The same, where the network is cut in the middle of TLS's own records, or has changed a bit of them."""
    cuts = 0
    for how in ("reset", "end", "flip"):
        for way in ("up", "down"):
            octets = 1
            while _cut(threads, way, None, 0, how, octets):  # type: ignore[arg-type]
                octets += 131
                cuts += 1
            assert octets > 700
    assert cuts >= 50


def _cut(threads: Any, way: Way, after: int | None, extra: int, how: How, octets: int | None = None) -> bool:
    heartbeat = 0.3 if how == "silence" else 10.0
    here = there = None
    if octets is not None:
        here, there = certificates().server(), certificates().client()
    with (
        Listener(heartbeat=heartbeat, ssl=here) as listener,
        Network(listener.address, way=way, after=after, extra=extra, how=how, octets=octets) as network,
    ):
        token = CancelToken()
        accepting = threads.go(listener.accept, 1, token)
        try:
            far = connect(network.address, listener.key, timeout=0.5, ssl=there)
        except (HelloFailed, TimeoutError):  # in the middle of the hello: each side has heard the other's, or not
            token.cancel()
            with contextlib.suppress(TimeoutError, Cancelled):
                near: Connection = accepting.result()
                near.abort()
                near.close()
            return True
        near = accepting.result()
        tasks = [threads.go(conversation, near, False), threads.go(conversation, far, True)]
        for task, connection in zip(tasks, (near, far), strict=True):
            try:
                assert task.result() == WHOLE
            except (ConnectionLost, ChannelClosed):
                assert connection.error is not None
        for connection in (near, far):
            connection.close(timeout=1)
        if not network.cut.is_set() and how != "silence":  # a machine that is busy is silent, too
            assert near.error is far.error is None
        return network.cut.is_set()


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS.keys())
def test_strangers_without_tls_hold_up_nobody(said: bytes, threads: Any) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(Listener(ssl=certificates().server()))
        strangers = [stack.enter_context(socket.create_connection(listener.address, 5)) for _ in range(20)]
        accepting = threads.go(listener.accept, 10)
        for each in strangers:
            with contextlib.suppress(OSError):
                each.sendall(said)
        with (
            connect(listener.address, listener.key, ssl=certificates().client()) as far,
            accepting.result() as near,
        ):
            far.sender.send("it is me")
            assert near.receiver.recv(timeout=5) == "it is me"


def test_who_is_not_trusted_is_refused_and_told_why(threads: Any) -> None:
    """And does not spend the key, nor does who has the wrong one within TLS."""
    made = certificates()
    with Listener(ssl=made.server(wants=made.authority)) as listener:
        accepting = threads.go(listener.accept, 20)
        ours = made.client(path=made.here)
        for context, name, key, text in (
            (made.client(made.other, made.here), None, listener.key, "does not trust the certificate"),
            (made.client(path=made.stranger), None, listener.key, "does not trust the certificate of this one"),
            (made.client(), None, listener.key, "wants a certificate"),
            (ours, "elsewhere.example", listener.key, "another host"),
            (ours, None, "wrong", "refused"),
        ):
            with pytest.raises(HelloFailed, match=text):
                connect(listener.address, key, ssl=context, server_hostname=name)
        with connect(listener.address, listener.key, ssl=ours, server_hostname="localhost"), accepting.result():
            pass


def test_a_listener_that_is_not_trusted_is_sent_nothing(threads: Any) -> None:
    """Not the key's proof either, which somebody in the middle could pass on."""
    made = certificates()
    with Listener(ssl=made.server(made.stranger)) as listener:
        accepting = threads.go(listener.accept, 0.5)
        with pytest.raises(HelloFailed, match="CERTIFICATE_VERIFY_FAILED"):
            connect(listener.address, listener.key, ssl=made.client())
        assert "does not trust the certificate of this one" in str(accepting.raises(TimeoutError))


@pytest.mark.parametrize("encrypted", ["the listener", "the peer"])
def test_tls_on_one_side_only(encrypted: str, threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "HELLO", 0.3)
    here, there = certificates().server(), certificates().client()
    with Listener(ssl=here if encrypted == "the listener" else None) as listener:
        accepting = threads.go(listener.accept, 3)
        with pytest.raises(HelloFailed, match="TLS"):
            connect(listener.address, listener.key, timeout=5, ssl=there if encrypted == "the peer" else None)
        assert "turned away" in str(accepting.raises(TimeoutError))


def test_nothing_that_is_said_can_be_read_on_the_way(threads: Any) -> None:
    heard = bytearray()

    class Overhears(Network):
        def _pass_on(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    heard.extend(data)
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

    with Listener(ssl=certificates().server()) as listener, Overhears(listener.address) as network:
        accepting = threads.go(listener.accept, 5)
        with (
            connect(network.address, listener.key, ssl=certificates().client()) as far,
            accepting.result() as near,
        ):
            far.sender.close(final="a secret that is long enough")
            assert list(near.receiver) == ["a secret that is long enough"]
            near.sender.close()
    assert len(heard) > 1000
    assert b"secret" not in heard
    assert MAGIC not in heard


def test_a_peer_that_ends_tls_without_a_goodbye_is_lost(raw: Raw) -> None:
    """Somebody in the middle may have cut what was to come: the end of TLS is not the end of a lane."""
    connection, sock = raw()
    sock.sendall(frame(DATA, 0, b"1"))
    if isinstance(sock, ssl.SSLSocket):
        with contextlib.suppress(OSError):
            sock.settimeout(0)
            sock.unwrap()
    else:
        sock.shutdown(socket.SHUT_WR)
    assert connection.receiver.recv(timeout=5) == 1
    with pytest.raises(ConnectionLost, match="goodbye"):
        connection.receiver.recv(timeout=5)


def test_contexts_of_the_other_side_are_refused_where_they_are_given() -> None:
    made = certificates()
    with pytest.raises(ValueError, match="load_cert_chain"):
        Listener(ssl=made.client())
    with pytest.raises(ValueError, match="create_default_context"):
        connect(("127.0.0.1", 1), "key", ssl=made.server())
    with pytest.raises(TypeError, match="SSLContext"):
        Listener(ssl=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs ssl="):
        connect(("127.0.0.1", 1), "key", server_hostname="localhost")
