"""One client for each event loop, closed with it. No provider is needed."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from channels.aio import LoopThread, default_loop
from runtime.models._clients import Clients


class Client:
    """Remembers the loop that closed it."""

    def __init__(self) -> None:
        self.made_in = threading.current_thread()
        self.closed = threading.Event()
        self.closed_on: asyncio.AbstractEventLoop | None = None

    async def close(self) -> None:
        self.closed_on = asyncio.get_running_loop()
        self.closed.set()


@pytest.fixture
def made() -> list[Client]:
    return []


@pytest.fixture
def make(made: list[Client]) -> Callable[[], Client]:
    def make() -> Client:
        made.append(Client())
        return made[-1]

    return make


def test_tasks_that_come_at_once_share_one_client(make: Callable[[], Client], made: list[Client]) -> None:
    clients = Clients(make)

    async def several() -> set[Client]:
        return set(await asyncio.gather(*[clients.get() for _ in range(5)]))

    [kept] = default_loop().call(several)
    for client in made:
        assert client is kept or client.closed.wait(10)
    assert not kept.closed.is_set()
    clients.close()
    assert kept.closed.wait(10)


def test_a_client_is_made_off_the_loop_and_closed_on_it(make: Callable[[], Client]) -> None:
    clients = Clients(make)
    client = default_loop().call(clients.get)
    assert client.made_in.name.endswith("helper")
    clients.close()
    assert client.closed.wait(10)
    assert client.closed_on is default_loop().loop


def test_each_loop_has_its_own_and_closes_it_at_its_end(make: Callable[[], Client]) -> None:
    clients = Clients(make)
    with LoopThread() as one, LoopThread() as two:
        first, second = one.call(clients.get), two.call(clients.get)
        assert first is not second
        assert one.call(clients.get) is first
    assert first.closed.is_set()
    assert second.closed.is_set()
    assert asyncio.run(clients.get()).closed.is_set()


def test_the_garbage_collector_leaves_a_client_to_its_loop() -> None:
    """It would finalise the sockets with it, and complain of them."""
    closed = threading.Event()

    class Connected:
        def __init__(self) -> None:
            self.socket = socket.socket()

        async def close(self) -> None:
            self.socket.close()
            closed.set()

    clients: Any = Clients(Connected)
    clients.itself = clients
    default_loop().call(clients.get)
    del clients
    gc.collect()
    assert closed.wait(10)


def test_what_cannot_be_made_is_tried_again(make: Callable[[], Client]) -> None:
    failures = [LookupError("no key")]

    def sometimes() -> Client:
        if failures:
            raise failures.pop()
        return make()

    clients = Clients(sometimes)
    with pytest.raises(LookupError):
        default_loop().call(clients.get)
    assert default_loop().call(clients.get)
    clients.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_a_client_of_its_own(make: Callable[[], Client]) -> None:
    clients = Clients(make)
    client = default_loop().call(clients.get)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            own = default_loop().call(clients.get)
            clients.close()
            if own is not client and own.closed.wait(10) and not client.closed.is_set():
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert default_loop().call(clients.get) is client
    clients.close()
    assert client.closed.wait(10)
