"""`OAuth`: how a user signs in to a remote server."""

from __future__ import annotations

import contextlib
import os
import re
from types import NoneType
from typing import TYPE_CHECKING, Final, Literal

from channels import Cancelled, CancelToken, ChannelClosed

from .._checks import check, check_number, check_path
from ..agent._tool_context import Asking
from ..events import AuthorizationEvent

if TYPE_CHECKING:
    import asyncio

LONGEST: Final = 300.0  # seconds that a user has to sign in


class NotSignedIn(Exception):
    """The user is not signed in, and why."""


class SignIn:
    """What the user is asked: to sign in at ``url``."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.url = url
        self.over = CancelToken()  # the user has signed in, or it is too late
        self.status: Literal["granted", "failed"] = "failed"  # once it is over
        self.refused: asyncio.Future[str] = loop.create_future()

    def refuse(self, why: str) -> None:
        """The user does not sign in. Any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.refused.get_loop().call_soon_threadsafe(self._refuse, why)

    def _refuse(self, why: str) -> None:
        if not self.refused.done():
            self.refused.set_result(why)


def ask_to_sign_in(sign_in: SignIn, server: str, context: Asking) -> None:
    """Send the user to the page, and wait until the sign-in is over. Raises `Cancelled` where the stream ends first."""

    def tell(status: str, url: str = "") -> None:
        event = AuthorizationEvent(server, status, url, agent_name=context.agent_name, session_id=context.session_id)
        context.tell(event)

    tell("required", sign_in.url)
    why = "the run that asked has ended"
    try:
        answer = context.elicit(f"Sign in to {server}", url=sign_in.url, cancel=sign_in.over)
        if answer.accepted:  # which says no more than that the page is open
            with contextlib.suppress(ChannelClosed):
                sign_in.over.done.recv(cancel=context.cancel)
        why = answer.note or "the user does not want to sign in"
        if not answer.accepted:
            sign_in.refuse(why)
    except Cancelled:
        if not sign_in.over.cancelled:
            raise
    finally:
        if not sign_in.over.cancelled:
            sign_in.refuse(why)
    tell(sign_in.status)


class OAuth:
    """Signs in to a remote server, for ``MCPToolSet(url=..., auth=OAuth())``.

    The server names the authorization server of its users. This client registers itself there, unless ``client_id``
    (and ``client_secret``) say how it is registered already, or ``client_metadata_url`` is the address of a document
    that describes the client. The user is asked to visit the sign-in page, with an `ElicitationRequest` that has a
    ``url``, and has ``timeout`` seconds for it. The page redirects the browser to this machine, to ``redirect_port``
    (by default any free port), so the browser has to run on this machine, or the port has to be forwarded.

    The tokens are kept for the next time, in the user's keyring if the package ``keyring`` is installed (the extra
    ``keyring``) and finds one, or else in a file that only the user can read. With ``file``, they are kept in that
    file. The tokens are renewed without asking as long as the server allows it. `MCPToolSet.sign_out` deletes them.
    """

    def __init__(
        self,
        *,
        client_name: str = "lockgate",
        client_id: str | None = None,
        client_secret: str | None = None,
        client_metadata_url: str | None = None,
        redirect_port: int = 0,
        timeout: float = LONGEST,
        file: str | os.PathLike[str] | None = None,
    ) -> None:
        check("client_name", client_name, str, "text")
        for name, value in (("client_id", client_id), ("client_secret", client_secret)):
            if value is not None and not isinstance(value, str):  # which is not shown: it may be the secret
                raise TypeError(f"{name} must be text, not {type(value).__name__}")
        if client_secret is not None and client_id is None:
            raise ValueError("a client_secret belongs to a client_id")
        check("client_metadata_url", client_metadata_url, (str, NoneType), "text, or None")
        if file is not None:
            check_path("file", file)
        if client_metadata_url is not None and not re.match(r"https://[^/?#\s]+/[^\s]+$", client_metadata_url):
            raise ValueError(
                f"client_metadata_url must be the https address of a document, not {client_metadata_url!r}"
            )
        if isinstance(redirect_port, bool) or not isinstance(redirect_port, int) or not 0 <= redirect_port < 65536:
            raise ValueError(
                f"redirect_port must be a number up to 65535, or 0 for any that is free, not {redirect_port!r}"
            )
        check_number("timeout", timeout, "seconds", above=0)
        self.client_name = client_name
        self.client_id = client_id
        self.client_secret = client_secret
        self.client_metadata_url = client_metadata_url
        self.redirect_port = redirect_port
        self.timeout = timeout
        self.file = None if file is None else os.fspath(file)

    def __repr__(self) -> str:
        return f"<OAuth {self.client_name!r}>"
