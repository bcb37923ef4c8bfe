"""The fields of a form: their descriptions in words, and the values of what somebody typed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from .._dataclasses import dataclass
from ..schema._checking import problems
from ..schema._refs import resolved

_YES = ("yes", "y", "true", "on", "1")
_NO = ("no", "n", "false", "off", "0")
_KINDS: dict[str, Any] = {
    "type": str, "title": str, "description": str, "format": str, "enum": list, "enumNames": list, "oneOf": list,
    "anyOf": list, "required": list, "properties": Mapping, "minimum": (int, float), "maximum": (int, float),
    "exclusiveMinimum": (int, float), "exclusiveMaximum": (int, float), "minLength": int, "maxLength": int,
    "minItems": int, "maxItems": int,
}  # fmt: skip
_FORMATS = {
    "date": "a date, YYYY-MM-DD",
    "date-time": "a date and time, YYYY-MM-DDTHH:MM",
    "time": "a time, HH:MM",
    "email": "an e-mail address",
    "uri": "an address such as https://example.org",
}


class NotUnderstood(ValueError):
    """The text is no value for the field; the message says why."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form. ``schema`` has its reference resolved, and no null."""

    name: str
    schema: Mapping[str, Any]
    required: bool = True

    @property
    def label(self) -> str:
        """The name, with a title that says more, and the mark of a field that must be answered."""
        title = str(self.schema.get("title", ""))
        more = f" ({title})" if title and title.casefold() != self.name.replace("_", " ").casefold() else ""
        return f"{self.name}{more}{'*' if self.required else ''}"

    @property
    def note(self) -> str:
        """The description of the field, and the values that it may have."""
        description = str(self.schema.get("description", ""))
        kind = self._kind()
        return f"{description} ({kind})" if description else kind

    @property
    def default(self) -> Any:
        """The default value of the field; None where there is none."""
        return self.schema.get("default")

    def read(self, text: str) -> Any:
        """The value that ``text`` stands for. Raises `NotUnderstood`."""
        value = self._value(text.strip())
        found = problems({self.name: value}, {"type": "object", "properties": {self.name: dict(self.schema)}})
        if found:
            raise NotUnderstood("; ".join(found))
        return value

    def show(self, value: Any) -> str:
        """``value`` as somebody would type it."""
        for label, option in _options(self.schema):
            if option == value:
                return label
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, list) and not self._nested():
            return ", ".join(map(self._item().show, value))
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def _kind(self) -> str:
        schema, kind = self.schema, self.schema.get("type")
        if options := _options(schema):
            return " / ".join(label for label, _ in options)
        if kind == "boolean":
            return "yes or no"
        if kind in ("integer", "number"):
            bounds = _bounds(schema, "minimum", "maximum", "")
            for key, words in (("exclusiveMinimum", "more"), ("exclusiveMaximum", "less")):
                if not isinstance(schema.get(key), (bool, NoneType)):
                    bounds += f", {words} than {schema[key]}"
            return f"a {'whole ' if kind == 'integer' else ''}number{bounds}"
        if kind == "string":
            about = _FORMATS.get(schema.get("format", ""), "text")
            return about + _bounds(schema, "minLength", "maxLength", " characters")
        if kind == "array" and not self._nested():
            least, most = schema.get("minItems"), schema.get("maxItems")
            among = f"{least or 0} to {most}" if most is not None else f"{least} or more" if least else "any"
            return f"{among} of these, with commas between: {self._item()._kind()}"
        return "JSON"

    def _value(self, text: str) -> Any:
        schema, kind = self.schema, self.schema.get("type")
        if options := _options(schema):
            for label, value in options:
                if text.casefold() in (label.casefold(), str(value).casefold()):
                    return value
            raise NotUnderstood(f"{self.name} must be one of {', '.join(label for label, _ in options)}, not {text!r}")
        if kind == "boolean":
            if text.casefold() in _YES + _NO:
                return text.casefold() in _YES
            raise NotUnderstood(f"{self.name} must be yes or no, not {text!r}")
        if kind in ("integer", "number"):
            return self._number(text)
        if kind == "array" and not self._nested():
            return [self._item()._value(part.strip()) for part in text.split(",") if part.strip()]
        if kind in ("array", "object"):
            try:
                return json.loads(text)
            except ValueError as error:
                raise NotUnderstood(f"{self.name} must be JSON: {error}") from None
        return text

    def _number(self, text: str) -> int | float:
        whole = self.schema["type"] == "integer"
        try:
            return int(text)
        except ValueError:
            pass
        try:
            value = float(text)
            if math.isfinite(value) and not (whole and not value.is_integer()):
                return int(value) if whole else value
        except ValueError:
            pass
        raise NotUnderstood(f"{self.name} must be a {'whole ' if whole else ''}number, not {text!r}")

    def _item(self) -> Field:
        return Field(self.name, _readable(self.schema.get("items")))

    def _nested(self) -> bool:
        return self._item().schema.get("type") in ("array", "object", None) and not _options(self._item().schema)


def fields_of(form: Mapping[str, Any] | None) -> list[Field]:
    """The fields of a form, in their order."""
    form = _readable(form)
    required = form.get("required", ())
    schemas = {name: resolved(_readable(each), form) for name, each in form.get("properties", {}).items()}
    return [Field(str(name), _readable(each), name in required) for name, each in schemas.items()]


def _readable(schema: object) -> dict[str, Any]:
    """The part of a schema that can be understood: a server may write anything, and the form is shown all the same."""
    if not isinstance(schema, Mapping):
        return {}
    said = {key: each for key, each in schema.items() if isinstance(each, _KINDS.get(key, object))}
    for key in ("oneOf", "anyOf"):
        if key in said:
            said[key] = [_readable(branch) for branch in said[key]]
    if isinstance(schema.get("type"), list):
        kinds = [kind for kind in schema["type"] if isinstance(kind, str) and kind != "null"]
        if len(kinds) == 1:
            said["type"] = kinds[0]
    return said


def _options(schema: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The values to choose from, each with its label."""
    if schema.get("enum"):
        names = schema.get("enumNames", ())
        values: Sequence[Any] = schema["enum"]
        return list(zip(names if len(names) == len(values) else map(str, values), values, strict=True))
    branches = schema.get("oneOf") or schema.get("anyOf") or ()
    if all("const" in branch for branch in branches):
        return [(str(branch.get("title", branch["const"])), branch["const"]) for branch in branches]
    return []


def _bounds(schema: Mapping[str, Any], least: str, most: str, unit: str) -> str:
    low, high = schema.get(least), schema.get(most)
    if low is not None and high is not None:
        return f" from {low} to {high}{unit}" if not unit else f", {low} to {high}{unit}"
    if low is not None:
        return f", {low}{unit} or more"
    return f", {high}{unit} or less" if high is not None else ""
