"""`lockgate serve`: agents for other programs, and for browsers."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from .._errors import MissingExtra
from ..agent._agent import Team
from ..permissions import Permissions
from ._load import CannotLoad, load
from ._place import opened
from ._sessions import add_store

EPILOG: Final = """\
AGENT is given as for `lockgate run`. Without --mcp the agents are served over HTTP: open the address that is
printed in a browser, or see docs/serving.md for programs. Without a token only this machine is served. The
sessions are kept where `lockgate run` keeps them.

With --mcp each agent is a tool of an MCP server; with --mcp alone one client is served, on standard input and
output: it starts this command itself. What the agents ask, and the approval of their calls, is asked of the
user of the client.

Examples:
  lockgate serve examples/booking.py
  LOCKGATE_TOKEN=... lockgate serve my_package.agents:reviewer --listen 0.0.0.0:8080
  lockgate serve examples/booking.py --mcp
  LOCKGATE_TOKEN=... lockgate serve my_package.agents:reviewer --mcp --http 0.0.0.0:8000
"""
LOCAL: Final = ("127.0.0.1", "::1", "localhost")
TOKEN: Final = "LOCKGATE_TOKEN"
LISTEN: Final = ("127.0.0.1", 8080)
LINGER: Final = 30.0
_KEPT: Final = "with --mcp, sessions are kept in memory only"
_WITH_MCP: Final = {
    "listen": "with --mcp, the address is --http",
    "linger": "with --mcp, a run ends with the call of the client",
    "token": f"with --mcp, the token is {TOKEN} in the environment",
    "store": _KEPT,
    "no_store": _KEPT,
}


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """The command's options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="serve agents to browsers and other programs",
        description="Serve agents over HTTP, with a page for browsers, or as the tools of an MCP server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("agents", metavar="AGENT", nargs="+", help="an agent, such as examples/booking.py")
    parser.add_argument(
        "--listen",
        metavar="[HOST:]PORT",
        type=_address,
        help="serve over HTTP at this address (127.0.0.1:8080), at port 0 on any that is free; a HOST that others reach"
        " needs a token",
    )
    parser.add_argument(
        "--token",
        metavar="TOKEN",
        type=_token,
        help=f"what clients have to know; better in {TOKEN}, which other users of the machine do not see",
    )
    parser.add_argument(
        "--linger",
        metavar="SECONDS",
        type=_seconds,
        help="cancel a run at which nobody has looked for so long (30); `forever` lets it run on",
    )
    parser.add_argument("--no-store", action="store_true", help="keep the sessions in memory only")
    add_store(parser)
    parser.add_argument("--mcp", action="store_true", help="serve as an MCP server instead")
    parser.add_argument(
        "--http",
        metavar="[HOST:]PORT",
        type=_address,
        help=f"with --mcp: over HTTP at this port, under /mcp; {TOKEN} is what clients have to know",
    )
    return parser


def serve(args: argparse.Namespace) -> int:
    """Serve, until the client or a signal ends it; the exit status."""
    if args.mcp:
        for name in _WITH_MCP:
            if getattr(args, name) is not None and getattr(args, name) is not False:  # --linger 0 is one, too
                raise CannotLoad(f"--{name.replace('_', '-')} is an option of serving without --mcp; {_WITH_MCP[name]}")
    elif args.http is not None:
        raise CannotLoad("--http goes with --mcp; without it the address is --listen")
    if args.no_store and args.store:
        raise CannotLoad("--no-store keeps no sessions, and --store says where they are kept: leave one of them out")
    with contextlib.redirect_stdout(sys.stderr):  # which is the protocol's: nothing else may be written there
        teams = [load(each) for each in args.agents]
    known: dict[str, str] = {}
    for given, team in zip(args.agents, teams, strict=True):
        name = team.root.name
        if name in known:
            raise CannotLoad(f"two agents are named {name!r}, {known[name]} and {given}: give one another name")
        known[name] = given
    permissions = Permissions(approve_all=True) if args.yes else None
    try:
        return _serve_mcp(args, teams, permissions) if args.mcp else _serve_http(args, teams, permissions)
    except (MissingExtra, ValueError) as error:
        raise CannotLoad(str(error)) from None


def _serve_http(args: argparse.Namespace, teams: Sequence[Team], permissions: Permissions | None) -> int:
    from ..serve import Application

    host, port = args.listen or LISTEN
    token = args.token or os.environ.get(TOKEN) or None
    if token is None and host not in LOCAL:
        raise CannotLoad(f"on {host} everybody in reach could use the agents: {TOKEN} in the environment says who may")
    _load_models(teams)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")  # what goes wrong while nobody sees a run
    shown = f"[{host}]" if ":" in host else host
    with contextlib.ExitStack() as stack:
        store = None if args.no_store else stack.enter_context(opened(args.store, make=True))
        linger = LINGER if args.linger is None else None if args.linger < 0 else args.linger
        application = Application(teams, store=store, token=token, linger=linger, permissions=permissions)

        try:
            application.run(host, port, ready=lambda address: _tell(args, address))
        except KeyboardInterrupt:
            pass  # as it is meant to end
        except OSError as error:
            raise CannotLoad(f"cannot listen on {shown}:{port}: {error.strerror or error}") from None
    return 0


def _tell(args: argparse.Namespace, address: str) -> None:
    print(f"serving {', '.join(args.agents)} on {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)


def _load_models(teams: Sequence[Team]) -> None:
    """Load models in this process before anybody waits for them: it keeps all threads waiting."""
    for team in teams:
        for agent in team.agents:
            model: Any = agent.model
            if hasattr(model, "load"):
                print(f"loading {model.id} ...", file=sys.stderr, flush=True)
                try:
                    model.load()
                except Exception as error:
                    raise CannotLoad(" ".join(str(error).split())) from error


def _serve_mcp(args: argparse.Namespace, teams: Sequence[Team], permissions: Permissions | None) -> int:
    from ..serve import mcp

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
        try:
            server.run_http(host, port, token=token, ready=lambda address: _tell(args, address))
        except OSError as error:
            raise CannotLoad(f"cannot listen on {shown}:{port}: {error.strerror or error}") from None
    return 0


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"an address must be PORT or HOST:PORT, not {text!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


def _token(text: str) -> str:
    if not text.isascii() or not text.isprintable() or not text.strip():
        raise argparse.ArgumentTypeError("a token is a text of ASCII characters")
    return text


def _seconds(text: str) -> float:
    """Seconds; negative for ever."""
    if text == "forever":
        return -1.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"a number of seconds, or forever, not {text!r}")
    return value
