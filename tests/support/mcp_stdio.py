"""A server of the older kind in a few lines, which starts at once: for what a server does that the SDK's does not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HEAD = """
import json, os, sys, time
def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
def text(id, text):
    say(id=id, result={"content": [{"type": "text", "text": text}]})
def tool(name, **more):
    return {"name": name, "inputSchema": {"type": "object", "properties": {}}, **more}
tools = []
capabilities = {"tools": {"listChanged": True}}
"""

TAIL = """
for line in sys.stdin:
    message = json.loads(line)
    method, params, id = message.get("method"), message.get("params", {}), message.get("id")
    if method == "initialize":
        say(id=id, result={"protocolVersion": "2025-06-18", "capabilities": capabilities,
                           "serverInfo": {"name": "small", "version": "1"}})
    elif method == "tools/list":
        say(id=id, result={"tools": tools})
    elif method == "ping":
        say(id=id, result={})
    elif method == "tools/call":
        call(id, params["name"], params.get("arguments", {}))
    elif other(id, method, params, message):
        pass
    elif id is not None and method is not None:
        say(id=id, error={"code": -32601, "message": "Method not found"})
"""


def small_server(directory: Path, body: str, *arguments: str) -> Sequence[str]:
    """The command of a server whose ``call(id, name, arguments)`` and ``tools`` are in ``body``. What other requests it
    knows, ``other(id, method, params, message)`` answers.
    """
    script = directory / "small.py"
    script.write_text(f"{HEAD}\ndef other(id, method, params, message):\n    pass\n{body}\n{TAIL}")
    return [sys.executable, "-S", "-E", str(script), *arguments]
