"""Descriptions of live streams: `Runtime.dump` for one runtime, `dump` for the whole process, `listen` for other
processes.

    python -m runtime.dump PID

prints the dump of a process of the same user that has called ``runtime.dump.listen()``; ``--json`` prints it as JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._public import publish
from .inspection._data import CallDump, ChannelDump, Dump, QuestionDump, Stall, StreamDump, ThreadDump, WaitDump
from .inspection._dump import dump_of
from .inspection._listen import JSON, TEXT, Listener, NotListening, ask, listen

__all__ = [
    "CallDump",
    "ChannelDump",
    "Dump",
    "Listener",
    "NotListening",
    "QuestionDump",
    "Stall",
    "StreamDump",
    "ThreadDump",
    "WaitDump",
    "dump",
    "listen",
]


def dump() -> Dump:
    """A description of the live streams of all runtimes of this process. `Runtime.dump` describes those of one runtime.

    Takes no lock and never waits: it may be called in a signal handler, and while streams are stuck.
    """
    return dump_of()


def _main(arguments: Sequence[str]) -> int:
    """The exit status: 0, or 1 where the process does not answer."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m runtime.dump", description="Print what the streams of a process wait for."
    )
    parser.add_argument("process", metavar="PID", type=int, help="a process that has called runtime.dump.listen()")
    parser.add_argument("--json", action="store_true", help="print it as data")
    args = parser.parse_args(arguments)
    try:
        print(ask(args.process, JSON if args.json else TEXT))
    except (NotListening, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
else:
    publish(__name__, globals(), __all__)
