"""Servers over HTTP, each in a process of its own: one that is real, and one for everything that servers do wrong."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: The booking desk over streamable HTTP (/mcp), the same with answers in plain JSON (/json), and SSE (/sse).
BOOKING = """
import contextlib, socket, sys
sys.path.insert(0, sys.argv[1])
import uvicorn
from booking_server import server
from mcp.server.mcpserver import Context
from starlette.applications import Starlette

@server.tool()
async def header(name: str, ctx: Context) -> str:
    return str((ctx.headers or {}).get(name))

@server.tool()
async def large(size: int) -> str:
    return "x" * size

streamable = server.streamable_http_app()
lowlevel = server._lowlevel_server
streamable.router.routes.extend(server.sse_app().routes)
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0))
sock.listen(100)
print(sock.getsockname()[1], flush=True)
config = uvicorn.Config(streamable, log_level="error", timeout_graceful_shutdown=0)
uvicorn.Server(config).run(sockets=[sock])
"""

#: Does by its path what servers do: an answer of the older kind, but for what the path says.
BAD = """
import http.server, json, sys, time

HALF = r'{"content": [{"type": "text", "text": "half \\ud83d"}]}'

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sessions = {}
    seen = []

    def log_message(self, *args):
        pass

    def say(self, status, body=b"", kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer(self, id, result, **headers):
        self.say(200, json.dumps({"jsonrpc": "2.0", "id": id, "result": result}).encode(), **headers)

    def until_gone(self):
        self.connection.settimeout(30)
        try:
            while self.rfile.read(1):
                pass
        except OSError:
            pass
        self.close_connection = True

    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def do_GET(self):
        if self.path == "/seen":
            return self.say(200, json.dumps(self.seen).encode())
        self.say(405)

    def do_DELETE(self):
        if self.path == "/mute_end":
            return self.until_gone()
        self.say(200)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        message = json.loads(body)
        method, id = message.get("method"), message.get("id")
        how = self.path.strip("/")
        self.seen.append([how, method, self.headers.get("Authorization")])
        if how == "unauthorized":
            return self.say(401, b"no token", kind="text/plain", WWW_Authenticate="Bearer")
        if how == "broken":
            return self.say(500, b"<html><style>p {}</style><h1>Oh no</h1></html>", kind="text/html")
        if how == "silent":
            return self.until_gone()
        if how == "elsewhere":
            return self.say(307, Location="http://example.org/mcp")
        if how == "page":
            return self.say(200, b"<html>hello</html>", kind="text/html")
        if how == "rubbish":
            return self.say(200, b"hello", kind="application/json")
        if how == "huge_start":
            return self.huge()
        if method == "server/discover":
            return self.say(400, b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32000, "message": "no session"}}')
        if method == "initialize":
            number = f"s{len(self.sessions)}"
            self.sessions[number] = 0
            capabilities = {"tools": {}}
            result = {"protocolVersion": "2025-06-18", "capabilities": capabilities,
                      "serverInfo": {"name": "bad", "version": "1"}}
            if how == "sessionless":
                return self.answer(id, result)
            return self.answer(id, result, Mcp_Session_Id=number)
        if id is None:
            return self.say(202)
        session = self.headers.get("Mcp-Session-Id")
        if method == "tools/list":
            return self.answer(id, {"tools": [{"name": "go", "inputSchema": {"type": "object"}}]})
        self.sessions[session] = self.sessions.get(session, 0) + 1
        if how == "expires" and session == "s0" or how == "expires_400" and self.sessions[session] == 1:
            status = 404 if how == "expires" else 400
            error = {"code": -32001, "message": "Session not found"}
            return self.say(status, json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode())
        if how == "call_fails":
            return self.say(500, b"the database is away", kind="text/plain")
        if how == "wrong_id":
            return self.answer(999, {"content": []})
        if how == "batch":
            result = {"content": [{"type": "text", "text": "from a list"}]}
            return self.say(200, json.dumps([{"jsonrpc": "2.0", "id": id, "result": result}]).encode())
        if how == "half":
            text = '{"jsonrpc": "2.0", "id": %d, "result": %s}' % (id, HALF)
            return self.say(200, text.encode())
        if how == "half_event":
            self.events()
            text = '{"jsonrpc": "2.0", "id": %d, "result": %s}' % (id, HALF)
            self.wfile.write(b"event: message\\r\\ndata: " + text.encode() + b"\\r\\n\\r\\n")
            return
        if how == "huge":
            return self.huge()
        if how == "many":
            text = json.dumps({"jsonrpc": "2.0", "id": id, "result": {"content": [], "x": list(range(300_000))}})
            return self.say(200, text.encode())
        if how == "many_event":
            self.events()
            text = json.dumps({"jsonrpc": "2.0", "id": id, "result": {"content": [], "x": list(range(300_000))}})
            self.wfile.write(b"data: " + text.encode() + b"\\n\\n")
            return
        if how == "hangs":
            return self.until_gone()
        if how == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"jsonrpc"')
            self.close_connection = True
            return
        if how == "cut_event":
            return self.events()
        if how == "endless":
            self.events()
            try:
                while True:
                    self.wfile.write(b": still here\\n\\n")
                    time.sleep(0.05)
            except OSError:
                return
        if how == "endless_event":
            self.events()
            try:
                while True:
                    self.wfile.write(b"data: " + b"x" * 1_000_000 + b"\\n")
            except OSError:
                return
        self.answer(id, {"content": [{"type": "text", "text": "gone well"}]})

    def huge(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for _ in range(1000):
                self.wfile.write(b" " * 1_000_000)
        except OSError:
            pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def served(script: str, arguments: Sequence[str] = ()) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server that runs ``script``, which prints its port first; and its process."""
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
