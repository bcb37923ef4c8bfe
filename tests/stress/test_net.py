"""Channels over a network under random load: capacities, ways to send and receive, cuts, garbage.

A receiver gets a prefix of what was sent, in order; all of it, where its loop ended without an error.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from typing import Any

import pytest

from channels import ChannelClosed, WouldBlock, merge, select
from channels._park import monotonic
from channels.net import Connection, ConnectionLost, Listener, connect
from channels.net._frames import frame
from channels.net._hello import introduce
from support.cutting import Network

pytestmark = [pytest.mark.stress, pytest.mark.timeout(300)]
SECONDS = 20


def pair(threads: Any, listener: Listener, address: Any = None, timeout: float = 5.0) -> tuple[Connection, Connection]:
    accepting = threads.go(listener.accept, timeout)
    far = connect(address or listener.address, listener.key, timeout=timeout)
    return accepting.result(), far


def send(connection: Connection, count: int, seed: int) -> None:
    dice, number, sender = random.Random(seed), 0, connection.sender
    with contextlib.suppress(ChannelClosed):
        while number < count:
            way = dice.randrange(5)
            try:
                if way == 0:
                    sender.try_send(number)
                elif way == 1:
                    several = min(dice.randrange(1, 20), count - number)
                    number += several
                    sender.send_many(range(number - several, number))
                    continue
                elif way == 2:
                    sender.send(number, timeout=0.001)
                elif way == 3:
                    select(sender.sending(number), timeout=1)
                else:
                    sender.send(number)
                number += 1
            except (WouldBlock, TimeoutError):
                time.sleep(0)
        sender.close(final=number)


def receive(connection: Connection, seed: int) -> tuple[list[int], bool]:
    """What came, and whether that was all."""
    dice, got, receiver = random.Random(seed), [], connection.receiver
    merged = iter(merge(receiver)) if dice.random() < 0.2 else None
    try:
        while True:
            if dice.random() < 0.01:
                time.sleep(dice.random() * 0.003)
            if merged is not None:
                try:
                    got.append(next(merged)[1])
                except StopIteration:
                    return got, True
                continue
            way = dice.randrange(4)
            try:
                if way == 0:
                    got.append(receiver.try_recv())
                elif way == 1:
                    got += receiver.recv_many(dice.randrange(1, 30), timeout=1)
                elif way == 2:
                    done = select(receiver, timeout=1)
                    if done.ok:
                        got.append(done.value)
                else:
                    got.append(receiver.recv(timeout=1))
            except (WouldBlock, TimeoutError):
                pass
    except ChannelClosed:
        return got, True
    except ConnectionLost:
        return got, False


def test_random_conversations(threads: Any) -> None:
    seed, rounds, cuts, until = random.randrange(10**6), 0, 0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        seed += 1
        dice = random.Random(seed)
        counts = dice.randrange(500), dice.randrange(500)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(Listener(capacity=dice.choice([1, 2, 3, 5, 16, 128])))
            address = None
            if dice.random() < 0.5:
                network = Network(
                    listener.address,
                    way=dice.choice(["up", "down"]),
                    after=dice.randrange(1, 200),
                    extra=dice.randrange(8),
                    how=dice.choice(["reset", "end"]),
                )
                stack.enter_context(network)
                address = network.address
            try:
                near, far = pair(threads, listener, address, timeout=1)
            except OSError:
                continue
            sending = [threads.go(send, near, counts[0], seed), threads.go(send, far, counts[1], seed + 1)]
            receiving = [threads.go(receive, far, seed), threads.go(receive, near, seed + 1)]
            for count, task in zip(counts, receiving, strict=True):
                got, whole = task.result(30)
                assert got == list(range(len(got))), seed
                assert not whole or len(got) == count + 1, seed
                assert whole or address is not None, seed
                cuts += not whole
            for task in sending:
                task.result(30)
            for connection in (near, far):
                connection.close()
                assert connection._link.done.closed, seed
            threads.tasks.clear()
        rounds += 1
    assert rounds > 20
    assert cuts > 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("channels-net")]


def test_garbage(threads: Any) -> None:
    """Frames that are right, wrong, cut, mixed: it ends, with an error that is one of ours, or goes on."""
    seed, until = random.randrange(10**6), time.monotonic() + SECONDS
    while time.monotonic() < until:
        seed += 1
        dice = random.Random(seed)
        with Listener(capacity=8, limit=1000) as listener:
            accepting = threads.go(listener.accept, 5)
            with socket.create_connection(listener.address, 5) as sock:
                introduce(sock, listener.key, monotonic() + 5)
                connection = accepting.result()
                said = b"".join(
                    frame(dice.randrange(8), dice.choice([0, 0, 0, 1]), dice.choice([b"", b"1", b"{", b"\0\0\0\1"]))
                    for _ in range(dice.randrange(1, 30))
                )
                said = bytearray(said)
                for _ in range(dice.choice([0, 0, 1, 5])):
                    said[dice.randrange(len(said))] = dice.randrange(256)
                with contextlib.suppress(OSError):
                    for at in range(0, len(said), 7):
                        sock.sendall(said[at : at + 7])
            with contextlib.suppress(ConnectionLost):
                list(connection.receiver)
            connection.close()
            assert connection._link.done.closed, seed
            assert connection.error is None or isinstance(connection.error, ConnectionLost), seed
            cause = connection.error and connection.error.__cause__
            assert cause is None or isinstance(cause, (OSError, ValueError, RecursionError)), (seed, cause)
            threads.tasks.clear()
