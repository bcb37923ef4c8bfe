"""Checks of what a user says of a server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from .._checks import check, check_items
from ._oauth import OAuth

_COMMAND: Final = "a list of the program and its arguments, such as ['python', 'server.py']"


def refuse(what: str, **given: Any) -> None:
    """Raise `TypeError` for a setting that the server cannot have."""
    for name, value in given.items():
        if value:
            raise TypeError(f"{what} has no {name}=")


def checked_command(
    command: Sequence[str | os.PathLike[str]] | None, env: Mapping[str, str] | None
) -> tuple[tuple[str, ...], str]:
    """The command, and the name that it gives to the server."""
    if env is not None and not isinstance(env, Mapping):  # which is not shown: there may be secrets in it
        raise TypeError(f"env must be a mapping of names to texts, not {type(env).__name__}")
    for name, value in (env or {}).items():
        if not isinstance(value, str):  # which is not shown: it may be a secret
            raise TypeError(f"env[{name!r}] must be text, not {type(value).__name__}")
    if isinstance(command, (str, bytes)):
        raise TypeError(f"the command must be a list, such as {str(command).split()!r}, not one text")
    parts = tuple(map(os.fspath, check_items("the command", command, (str, os.PathLike), _COMMAND)))
    if not parts:
        raise ValueError("the command is empty")
    return parts, os.path.basename(parts[0])


def checked_url(url: str) -> str:
    """The name that the address gives to the server. Raises `ValueError` where no server can be there."""
    check("url", url, str, "text, such as 'https://example.org/mcp'")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"url is no address of a server: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"url must begin with https:// or http:// and name a host; it is {url!r:.200}")
    if any(each.isspace() or not each.isprintable() for each in url):
        raise ValueError(f"url has a space or a control character in it: {url!r:.200}")
    return host.replace(":", "_")


def check_headers(headers: Mapping[str, str] | None) -> None:
    """Raise an error for a header that cannot be sent. Its value is not shown: it may be a secret."""
    if headers is not None:
        check("headers", headers, Mapping, "a mapping, such as {'Authorization': 'Bearer ...'}")
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError(f"{name!r:.100} is not the name of a header")
        if not isinstance(value, str):
            raise TypeError(f"headers[{name!r}] must be text, not {type(value).__name__}")
        if not value.isascii() or any(each < " " or each == "\x7f" for each in value):
            raise ValueError(f"headers[{name!r}] has characters in it that no header can have")


def check_auth(auth: Any, url: str) -> None:
    if auth is not None and not isinstance(auth, OAuth) and not hasattr(auth, "async_auth_flow"):
        raise TypeError(
            f"auth must be OAuth() or an httpx2.Auth, not {type(auth).__name__}; a token goes into headers="
        )
    parts = urlsplit(url)
    if isinstance(auth, OAuth) and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise ValueError("auth=OAuth() needs https: what it sends over http, everyone on the way can use")


def checked_roots(roots: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """The addresses of the directories that a server may know of."""
    if isinstance(roots, (str, bytes, os.PathLike)):
        raise TypeError(f"roots must be a list of directories, such as [{os.fspath(roots)!r}], not one")
    from pathlib import Path  # on first use: it takes its time

    directories = check_items("roots", roots, (str, os.PathLike), "a list of directories")
    return tuple(Path(os.fspath(each)).absolute().as_uri() for each in directories)
