"""`lockgate serve`: agents for other programs."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any, Final

from .._errors import MissingExtra
from ..permissions import Permissions
from ._load import CannotLoad, load

EPILOG: Final = """\
AGENT is given as for `lockgate run`; each is a tool of its own. With --mcp alone one client is served, on
standard input and output: it starts this command itself. What the agents ask, and the approval of their
calls, is asked of the user of the client.

Examples:
  lockgate serve examples/booking.py --mcp
  LOCKGATE_TOKEN=... lockgate serve my_package.agents:reviewer --mcp --http 0.0.0.0:8000
"""
LOCAL: Final = ("127.0.0.1", "::1", "localhost")
TOKEN: Final = "LOCKGATE_TOKEN"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """The command's options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="serve agents to other programs",
        description="Serve agents as the tools of an MCP server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("agents", metavar="AGENT", nargs="+", help="an agent, such as examples/booking.py")
    parser.add_argument("--mcp", action="store_true", required=True, help="as an MCP server")
    parser.add_argument(
        "--http",
        metavar="[HOST:]PORT",
        type=_address,
        help=f"over HTTP at this port, under /mcp; on a HOST that others reach, {TOKEN} is what they have to know",
    )
    return parser


def serve(args: argparse.Namespace) -> int:
    """Serve, until the client or a signal ends it; the exit status."""
    from ..serve import mcp

    with contextlib.redirect_stdout(sys.stderr):  # which is the protocol's: nothing else may be written there
        teams = [load(each) for each in args.agents]
    permissions = Permissions(approve_all=True) if args.yes else None
    try:
        server = mcp(teams, permissions=permissions)
        if args.http is None:
            server.run()
        else:
            host, port = args.http
            token = os.environ.get(TOKEN) or None
            if token is None and host not in LOCAL:
                raise CannotLoad(
                    f"on {host} everybody in reach could use the agents: {TOKEN} in the environment says who may"
                )
            shown = f"[{host}]" if ":" in host else host
            print(f"serving {', '.join(args.agents)} on http://{shown}:{port}/mcp", file=sys.stderr, flush=True)
            server.run_http(host, port, token=token)
    except (MissingExtra, ValueError) as error:
        raise CannotLoad(str(error)) from None
    return 0


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"an address is PORT or HOST:PORT, not {text!r}")
    return host.strip("[]") or "127.0.0.1", int(port)
