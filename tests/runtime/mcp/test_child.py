"""The end of a server's process is seen when it comes, and nothing is left of the wait for it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("mcp")

from runtime.mcp._child import Child

LONG = 10.0  # seconds
SHORT = 0.05
UNTIL_TOLD = [sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(3)"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="looks at processes as POSIX has them")
has_descriptors = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs descriptors of processes")


@asynccontextmanager
async def running() -> AsyncIterator[Child]:
    """A process that ends when its standard input does."""
    child = Child(UNTIL_TOLD, dict(os.environ), None, 1 << 16)
    await child.start()
    try:
        yield child
    finally:
        child.kill()
        assert await child.exits(LONG)
        child.close()


@has_descriptors
def test_nobody_looks_again_and_again_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running() as child:
            waits = [asyncio.create_task(child.exits(LONG)) for _ in range(2)]
            await asyncio.sleep(0)
            with monkeypatch.context() as patch:
                patch.setattr(asyncio, "sleep", None)  # what looks now and then would have to
                child.stdin.close()
                assert await asyncio.gather(*waits) == [True, True]
            assert child.returncode == 3

    asyncio.run(main())


def refuse(pid: int) -> int:
    raise PermissionError("as a sandbox does")


@pytest.mark.parametrize("there_is", ["descriptors", "refused", "none"])
def test_an_end_is_seen_with_descriptors_of_processes_and_without(
    there_is: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there_is == "refused":
        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    elif there_is == "none":
        monkeypatch.delattr(os, "pidfd_open", raising=False)

    async def main() -> None:
        async with running() as child:
            assert not await child.exits(SHORT)
            waits = asyncio.create_task(child.exits(LONG))
            await asyncio.sleep(0)
            child.stdin.close()
            assert await waits
            assert child.returncode == 3
            assert await child.exits(0)  # it has ended, and so it does again

    asyncio.run(main())


def descriptors() -> int:
    """How many descriptors of processes are open."""
    return sum("pidfd" in os.readlink(entry) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry))


@has_descriptors
def test_a_wait_that_is_over_or_cut_off_leaves_no_descriptor() -> None:
    async def main() -> None:
        before = descriptors()
        async with running() as child:
            assert not await child.exits(SHORT)
            assert descriptors() == before
            wait = asyncio.create_task(child.exits(LONG))
            await asyncio.sleep(0)
            assert descriptors() == before + 1
            wait.cancel()
            await asyncio.wait([wait])
            assert wait.cancelled()
            assert descriptors() == before
            ends = asyncio.create_task(child.exits(LONG))
            await asyncio.sleep(0)
            child.kill()
            assert await ends
            assert descriptors() == before

    asyncio.run(main())
