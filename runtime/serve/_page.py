"""The page for people: one file, which needs no build, no network and no script or style but its own.

The page talks to the routes under ``api/`` beside it, in docker-agent's JSON with what stands beside that, so it works
wherever the application is mounted.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources


@functools.cache
def page() -> bytes:
    """The page, as it is served."""
    return resources.files(__package__).joinpath("page.html").read_bytes()


@functools.cache
def page_headers() -> tuple[tuple[str, str], ...]:
    """The headers of the page. Its policy lets the browser run nothing but the page's own script, which it knows by its
    hash, and ask nobody but the server that the page came from.
    """
    policy = [
        "default-src 'none'",
        f"script-src {_hashes(b'script')}",
        f"style-src {_hashes(b'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return (
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", "; ".join(policy)),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cache-Control", "no-cache"),
    )


def _hashes(tag: bytes) -> str:
    found = re.findall(rb"<" + tag + rb">(.*?)</" + tag + rb">", page(), re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(each).digest()).decode() for each in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
