"""What a call of an MCP server's tool costs, against the SDK's own client session, which calls the same server.

    python tests/benchmarks/mcp.py [--calls N] [--rounds N] [--json FILE]

Both take turns in one process, each with a server of its own; the figures are medians. The floor runs in the event loop
that the SDK wants; ours is called from a thread, as the runtime does it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In place of this directory: this file has the name of a package.
sys.path[0:1] = [str(ROOT), str(ROOT / "tests")]

import httpx2  # noqa: E402
from mcp import Client, StdioServerParameters  # noqa: E402
from mcp.client.stdio import stdio_client  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402

from runtime.mcp import MCPToolSet  # noqa: E402

SERVER = """
import socket, sys
from mcp.server.mcpserver import MCPServer
server = MCPServer("bench", log_level="ERROR")
@server.tool(structured_output=False)
async def echo(text: str) -> str:
    return text
if len(sys.argv) == 1:
    server.run()
else:
    import uvicorn
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(100)
    print(sock.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="error")).run(sockets=[sock])
"""


@contextlib.contextmanager
def http_server(script: Path) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, str(script), "http"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def bare(script: Path, url: str | None, mode: str) -> AsyncIterator[Client]:
    if url is None:
        transport = stdio_client(StdioServerParameters(command=sys.executable, args=[str(script)]))
        async with Client(transport, mode=mode, cache=None) as client:
            yield client
    else:
        async with (
            httpx2.AsyncClient() as http,
            Client(streamable_http_client(url, http_client=http), mode=mode, cache=None) as client,
        ):
            yield client


def measure(script: Path, url: str | None, mode: str, calls: int, rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds a call of each round: the SDK's, and ours."""
    floor: list[float] = []
    ours: list[float] = []
    options = {"url": url} if url is not None else {"command": [sys.executable, str(script)]}
    toolset = MCPToolSet(**options, name="bench", mode=mode)  # type: ignore[arg-type]
    toolset.start()
    [echo] = toolset.tools()

    def many() -> None:
        start = time.perf_counter()
        for _ in range(calls):
            echo.function(text="hello")
        ours.append((time.perf_counter() - start) / calls * 1e6)

    async def run() -> None:
        async with bare(script, url, mode) as client:
            await client.list_tools()
            for _ in range(20):
                await client.call_tool("echo", {"text": "hello"})
            many()
            ours.clear()
            for _ in range(rounds):
                start = time.perf_counter()
                for _ in range(calls):
                    await client.call_tool("echo", {"text": "hello"})
                floor.append((time.perf_counter() - start) / calls * 1e6)
                many()  # the floor's own loop stands still meanwhile, and has nothing to do

    try:
        asyncio.run(run())
    finally:
        toolset.stop()
    return floor, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stdio", action="store_true", help="not over HTTP")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "server.py"
        script.write_text(SERVER)
        found: dict[str, list[float]] = {}
        with http_server(script) as url:
            for kind, address in (("stdio", None), ("http", url))[: 1 if args.stdio else 2]:
                for mode in ("2026-07-28", "legacy"):
                    both = measure(script, address, mode, args.calls, args.rounds)
                    found[f"{kind} {mode}, SDK"], found[f"{kind} {mode}, ours"] = both
                    floor, ours = map(statistics.median, both)
                    print(f"{kind:6} {mode:10}  SDK {floor:7.0f} us  ours {ours:7.0f} us  {ours / floor:5.2f} times")
    if args.json:
        sys.path.insert(0, str(Path(__file__).parent))
        from results import write

        write(args.json, "mcp", found, unit="us")


if __name__ == "__main__":
    main()
