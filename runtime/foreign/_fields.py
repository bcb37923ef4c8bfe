"""An object that was read from JSON, whose fields are read one by one: each with a check, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, TypeVar

from ._sound import well_formed

T = TypeVar("T")

CHARACTERS: Final = 100_000_000  # of a text, or of an image in base64
LARGEST: Final = 2**53  # a number that every parser of JSON reads alike


class Fields:
    """An object of the data, whose fields are read with a check of what they are."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise ValueError(f"{where} must be an object, not {_shown(data)}")
        self.data = data
        self._where = where

    def wrong(self, name: str, wanted: str) -> NoReturn:
        """Raise `ValueError`: the field is not what is wanted."""
        said = f", not {_shown(self.data[name])}" if name in self.data else ": it is missing"
        raise ValueError(f"{name} of {self._where} must be {wanted}{said}")

    def text(self, name: str) -> str:
        """The text that has to be there, as valid UTF-8."""
        value = self.data.get(name)
        if not isinstance(value, str) or len(value) > CHARACTERS:
            self.wrong(name, f"text of at most {CHARACTERS:,} characters")
        return well_formed(value)

    def maybe(self, name: str) -> str | None:
        """The text, or None."""
        return None if self.data.get(name) is None else self.text(name)

    def number(self, name: str) -> int:
        """The whole number, 0 or more."""
        value = self.data.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
            self.wrong(name, "a whole number, 0 or more")
        return value

    def flag(self, name: str) -> bool:
        """Whether it is true; it may be missing."""
        value = self.data.get(name, False)
        if not isinstance(value, bool):
            self.wrong(name, "true or false")
        return value

    def moment(self, name: str) -> datetime:
        """The date and time, in UTC."""
        try:
            value = datetime.fromisoformat(self.text(name))
            if value.tzinfo is None:
                raise ValueError
            return value.astimezone(UTC)
        except (ValueError, OverflowError):
            self.wrong(name, "a date and time with a time zone")

    def items(self, name: str, most: int) -> Sequence[Any]:
        """The list, which may be missing, of at most so many items."""
        value = self.data.get(name, [])
        if not isinstance(value, (list, tuple)):
            self.wrong(name, "a list")
        if len(value) > most:
            raise ValueError(f"{name} of {self._where} has {len(value):,} items, more than {most:,}")
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """The texts of a list."""
        found = self.items(name, most)
        if not all(isinstance(each, str) for each in found):
            self.wrong(name, "a list of texts")
        return [well_formed(each) for each in found]

    def objects(self, name: str, most: int) -> list[Fields]:
        """The list of objects."""
        return [Fields(each, f"{name}[{i}] of {self._where}") for i, each in enumerate(self.items(name, most))]

    def maybe_object(self, name: str, read: Callable[[Fields], T]) -> T | None:
        """What ``read`` makes of the object, or None."""
        return None if self.data.get(name) is None else read(self.needed(name))

    def needed(self, name: str) -> Fields:
        """The object that has to be there."""
        return Fields(self.data.get(name), f"{name} of {self._where}")

    def made(self, kind: Callable[..., T], **fields: Any) -> T:
        """What ``kind`` makes of the fields, which it may have reasons of its own to refuse."""
        try:
            return kind(**fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._where}: {error}") from None


def _shown(value: Any) -> str:
    """A value in an error: never all of it, which may be long."""
    if isinstance(value, str):
        return f"{value[:60]!r}..." if len(value) > 60 else repr(value)
    return repr(value) if value is None or isinstance(value, (bool, float)) else f"a {type(value).__name__}"
