"""Chromium, without a window: what a page becomes in a browser.

Where it is not installed these tests are skipped; with ``LOCKGATE_CHROMIUM=required`` in the environment, as in CI,
they fail instead.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0  # seconds


QUIET = ("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking")


def chromium() -> str:
    """The path of the program; without it the test is skipped."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("LOCKGATE_CHROMIUM") == "required":
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    return found


def browse(page: Path, directory: Path, *options: str) -> str:
    """Open the page; what the browser prints. Its profile is in ``directory``."""
    sandbox = ("--no-sandbox",) if os.getuid() == 0 else ()  # which root cannot have
    done = subprocess.run(
        [chromium(), *QUIET, *sandbox, f"--user-data-dir={directory}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Picture:
    """A picture of a page."""

    def __init__(self, path: Path) -> None:
        self.width, self.rows = _decoded(path.read_bytes())

    def at(self, x: int, y: int) -> tuple[int, int, int]:
        """The colour of a pixel."""
        row = self.rows[y]
        return row[3 * x], row[3 * x + 1], row[3 * x + 2]


def picture(page: Path, directory: Path, width: int, height: int, *options: str) -> Picture:
    """What the page looks like in a window of this size."""
    path = directory / f"{page.stem}-{width}.png"
    browse(page, directory / "profile", f"--window-size={width},{height}", f"--screenshot={path}", *options)
    return Picture(path)


def _decoded(png: bytes) -> tuple[int, list[bytes]]:
    """The width, and the rows of red, green and blue, of a PNG as browsers write it: 8 bits a channel."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, data, width, depth = 8, b"", 0, 3
    while at < len(png):
        (long,) = struct.unpack(">I", png[at : at + 4])
        kind, chunk = png[at + 4 : at + 8], png[at + 8 : at + 8 + long]
        if kind == b"IHDR":
            width, _, bits, colours, _, _, interlaced = struct.unpack(">IIBBBBB", chunk)
            assert (bits, interlaced) == (8, 0)
            depth = {2: 3, 6: 4}[colours]
        elif kind == b"IDAT":
            data += chunk
        at += long + 12
    raw, stride = zlib.decompress(data), width * depth + 1
    rows, above = [], bytearray(width * depth)
    for begin in range(0, len(raw), stride):
        row = bytearray(raw[begin + 1 : begin + stride])
        _unfilter(raw[begin], row, above, depth)
        above = row
        rows.append(bytes(row) if depth == 3 else bytes(each for i, each in enumerate(row) if i % 4 != 3))
    return width, rows


def _unfilter(how: int, row: bytearray, above: bytearray, depth: int) -> None:
    """https://www.w3.org/TR/png-3/#9Filters"""
    for i in range(len(row) if how else 0):
        left = row[i - depth] if i >= depth else 0
        up = above[i]
        corner = above[i - depth] if i >= depth else 0
        if how == 1:
            more = left
        elif how == 2:
            more = up
        elif how == 3:
            more = (left + up) // 2
        else:
            guess = left + up - corner
            more = min((left, up, corner), key=lambda each: abs(guess - each))
        row[i] = (row[i] + more) & 0xFF
