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

#: A server whose users sign in at another one, which is at the second port. Arguments: for how many seconds a token is
#: good, and whether the user is refused. Both are served by one application, but each answers at its own port only.
GUARDED = """
import asyncio, json, secrets, socket, sys, time
import uvicorn
from mcp.server.auth.provider import AccessToken, AuthorizationCode, AuthorizeError, RefreshToken, TokenError
from mcp.server.auth.provider import construct_redirect_uri
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.auth import OAuthToken
from starlette.responses import JSONResponse

lifetime, refuses = float(sys.argv[1]), sys.argv[2] == "refuse"
log = []

class Users:
    def __init__(self):
        self.clients, self.codes, self.tokens, self.refresh = {}, {}, {}, {}
    async def get_client(self, client_id):
        return self.clients.get(client_id)
    async def register_client(self, client):
        log.append("register")
        self.clients[client.client_id] = client
    async def authorize(self, client, params):
        log.append("authorize")
        back = str(params.redirect_uri)
        if refuses:
            return construct_redirect_uri(back, error="access_denied", error_description="not you", state=params.state)
        code = secrets.token_hex(16)
        self.codes[code] = AuthorizationCode(
            code=code, scopes=params.scopes or [], expires_at=time.time() + 60, client_id=client.client_id,
            code_challenge=params.code_challenge, redirect_uri=params.redirect_uri, resource=params.resource,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly)
        return construct_redirect_uri(back, code=code, state=params.state)
    async def load_authorization_code(self, client, code):
        return self.codes.get(code)
    def make(self, client, scopes, resource):
        access, refresh = secrets.token_hex(16), secrets.token_hex(16)
        ends = int(time.time() + lifetime)
        self.tokens[access] = AccessToken(
            token=access, client_id=client.client_id, scopes=scopes, expires_at=ends, resource=resource)
        self.refresh[refresh] = RefreshToken(
            token=refresh, client_id=client.client_id, scopes=scopes, resource=resource)
        return OAuthToken(access_token=access, refresh_token=refresh, expires_in=int(lifetime), scope=" ".join(scopes))
    async def exchange_authorization_code(self, client, code):
        log.append("code")
        del self.codes[code.code]
        return self.make(client, code.scopes, code.resource)
    async def load_refresh_token(self, client, token):
        return self.refresh.get(token)
    async def exchange_refresh_token(self, client, token, scopes):
        log.append("refresh")
        del self.refresh[token.token]
        return self.make(client, scopes, token.resource)
    async def load_access_token(self, token):
        return self.tokens.get(token)
    async def revoke_token(self, token):
        pass

users = Users()
sockets = []
for _ in range(2):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(100)
    sockets.append(sock)
server_port, issuer_port = (sock.getsockname()[1] for sock in sockets)
settings = AuthSettings(
    issuer_url=f"http://127.0.0.1:{issuer_port}", resource_server_url=f"http://127.0.0.1:{server_port}/mcp",
    client_registration_options=ClientRegistrationOptions(enabled=True, valid_scopes=["all"], default_scopes=["all"]),
    required_scopes=["all"], validate_token_resource=True)
server = MCPServer("guarded", auth_server_provider=users, auth=settings, log_level="ERROR")

@server.tool()
async def secret() -> str:
    return "the cake is a lie"

@server.tool()
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"

@server.custom_route("/log", ["GET"])
async def show(request):
    return JSONResponse(log)

@server.custom_route("/revoke_all", ["GET"])
async def revoke(request):
    users.tokens.clear()
    if request.query_params.get("refresh"):
        users.refresh.clear()
    return JSONResponse([])

inner = server.streamable_http_app(json_response=True)

async def app(scope, receive, send):
    if scope["type"] == "http":
        path, port = scope["path"], scope["server"][1]
        issuers = path in ("/authorize", "/token", "/register") or "authorization-server" in path
        if issuers != (port == issuer_port) and path not in ("/log", "/revoke_all"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
    await inner(scope, receive, send)

print(server_port, flush=True)
config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=0)
uvicorn.Server(config).run(sockets=sockets)
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
        if how == "mixed_event":
            self.events()
            text = json.dumps({"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": "mixed"}]}})
            self.wfile.write(b": hello\\r\\n\\ndata: " + text.encode() + b"\\n\\r\\n")
            self.wfile.flush()
            return self.until_gone()
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
