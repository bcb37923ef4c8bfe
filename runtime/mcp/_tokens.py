"""Where sign-ins are kept: in the keyring of the user where there is one, else in a file that only the user reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from channels._lazy import lazy_logger

SERVICE: Final = "lockgate MCP sign-in"
_LARGEST: Final = 1 << 20  # bytes of what is kept

_logger = lazy_logger("runtime.mcp")


class TokenStore:
    """What is known of the sign-in to one server: a JSON object. Every method may take its time.

    ``path`` is the file to keep it in; by default it is the keyring's, or else a file of its own in the user's data.
    """

    def __init__(self, key: str, path: str | os.PathLike[str] | None = None) -> None:
        self._key = key
        self._path = None if path is None else Path(path)

    def load(self) -> dict[str, Any]:
        """What is kept; empty where there is nothing, or nothing that can be read."""
        keyring = self._keyring()
        try:
            text = self._file().read_bytes() if keyring is None else keyring.get_password(SERVICE, self._key) or "{}"
            read = json.loads(text) if len(text) <= _LARGEST else None
        except FileNotFoundError:
            return {}
        except Exception as error:  # a keyring is locked, or a file is broken: the user signs in again
            _logger.warning("the sign-in to %s cannot be read: %s", self._key, type(error).__name__)
            return {}
        return read if isinstance(read, dict) else {}

    def save(self, kept: dict[str, Any]) -> None:
        """Keep this in place of what there was. A failure is logged: the sign-in then lasts as long as the process."""
        text = json.dumps(kept)
        try:
            keyring = self._keyring()
            if keyring is not None:
                keyring.set_password(SERVICE, self._key, text)
            else:
                _write(self._file(), text)
        except Exception as error:
            _logger.warning("the sign-in to %s cannot be kept: %s: %s", self._key, type(error).__name__, error)

    def delete(self) -> None:
        """Forget what is kept."""
        keyring = self._keyring()
        with contextlib.suppress(Exception):
            if keyring is not None:
                keyring.delete_password(SERVICE, self._key)
            else:
                self._file().unlink(missing_ok=True)

    def _keyring(self) -> Any:
        """The module ``keyring``, where it is installed and has somewhere to keep something."""
        if self._path is not None:
            return None
        try:
            import keyring
            from keyring.backends import fail, null
        except ImportError:
            return None
        try:
            backend = keyring.get_keyring()
        except Exception:
            return None
        return None if isinstance(backend, (fail.Keyring, null.Keyring)) else keyring

    def _file(self) -> Path:
        if self._path is not None:
            return self._path
        return data_directory() / "mcp" / f"{hashlib.sha256(self._key.encode()).hexdigest()[:32]}.json"


def data_directory() -> Path:
    """Where the programs of the user keep their data."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "lockgate"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "lockgate"


def _write(path: Path, text: str) -> None:
    """Write a file that only the user reads, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
