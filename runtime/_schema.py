"""Checks a value against a JSON schema, for answers and for tool arguments.

The flat forms of MCP's elicitation are checked here, with errors written for people. What goes beyond them (nesting,
references, combinations) is checked by `jsonschema` as well, where it is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

_FLAT = {
    "type", "title", "description", "default", "enum", "enumNames", "const", "oneOf", "properties", "required", "items",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern", "format",
    "minItems", "maxItems", "uniqueItems", "additionalProperties", "anyOf", "$schema",
}  # fmt: skip


def problems(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``value``, in sentences; an empty list where it fits."""
    found = _check(value, schema, "")
    return found or _more(value, schema)


def _check(value: Any, schema: Mapping[str, Any], name: str) -> list[str]:
    what = name or "the answer"
    choices = _choices(schema)
    if choices is not None:
        if any(_same(value, choice) for choice in choices):
            return []
        return [f"{what} is one of {', '.join(map(repr, choices))}, not {value!r}"]
    if "anyOf" in schema:
        tries = [_check(value, option, name) for option in schema["anyOf"]]
        if any(not found for found in tries):
            return []
        return min(tries, key=len)
    kinds = schema.get("type")
    if isinstance(kinds, str):
        kinds = [kinds]
    if kinds and not any(_is_a(value, kind) for kind in kinds):
        return [f"{what} is {' or '.join(_SAID.get(kind, kind) for kind in kinds)}, not {value!r}"]
    if isinstance(value, str):
        return _check_text(value, schema, what)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _check_number(value, schema, what)
    if isinstance(value, list):
        return _check_list(value, schema, name)
    if isinstance(value, Mapping):
        return _check_object(value, schema, name)
    return []


def _check_object(value: Mapping[str, Any], schema: Mapping[str, Any], name: str) -> list[str]:
    prefix = f"{name}." if name else ""
    properties = schema.get("properties", {})
    found = [f"{prefix}{key} is missing" for key in schema.get("required", ()) if key not in value]
    for key, item in value.items():
        if key in properties:
            found += _check(item, properties[key], f"{prefix}{key}")
        elif schema.get("additionalProperties") is False:
            known = ", ".join(properties) or "none"
            found.append(f"{prefix}{key} is not asked for (known: {known})")
    return found


def _check_list(value: list[Any], schema: Mapping[str, Any], name: str) -> list[str]:
    what = name or "the answer"
    if len(value) < schema.get("minItems", 0):
        return [f"{what} has at least {schema['minItems']} items"]
    if len(value) > schema.get("maxItems", len(value)):
        return [f"{what} has at most {schema['maxItems']} items"]
    items = schema.get("items")
    if not isinstance(items, Mapping):
        return []
    return [problem for i, item in enumerate(value) for problem in _check(item, items, f"{what}[{i}]")]


def _check_text(value: str, schema: Mapping[str, Any], what: str) -> list[str]:
    if len(value) < schema.get("minLength", 0):
        return [f"{what} has at least {schema['minLength']} characters"]
    if len(value) > schema.get("maxLength", len(value)):
        return [f"{what} has at most {schema['maxLength']} characters"]
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return [f"{what} does not have the form {schema['pattern']}: {value!r}"]
    check = _FORMATS.get(schema.get("format", ""))
    if check is not None:
        try:
            fits = check[0](value)
        except ValueError:
            fits = False
        if not fits:
            return [f"{what} is {check[1]}, not {value!r}"]
    return []


def _check_number(value: float, schema: Mapping[str, Any], what: str) -> list[str]:
    if "minimum" in schema and value < schema["minimum"]:
        return [f"{what} is {schema['minimum']} or more, not {value}"]
    if "maximum" in schema and value > schema["maximum"]:
        return [f"{what} is {schema['maximum']} or less, not {value}"]
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        return [f"{what} is more than {schema['exclusiveMinimum']}, not {value}"]
    if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
        return [f"{what} is less than {schema['exclusiveMaximum']}, not {value}"]
    return []


def _more(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """What `jsonschema` finds, where the schema goes beyond the flat forms and it is installed."""
    if _is_flat(schema):
        return []
    try:
        import jsonschema  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return []
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [
        f"{'.'.join(map(str, error.absolute_path)) or 'the answer'}: {error.message}"
        for error in validator.iter_errors(value)
    ]


def _is_flat(schema: Mapping[str, Any]) -> bool:
    if not set(schema) <= _FLAT:
        return False
    return all(
        isinstance(item, Mapping) and set(item) <= _FLAT and "properties" not in item
        for item in schema.get("properties", {}).values()
    )


def _choices(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return list(schema["enum"])
    options = schema.get("oneOf")
    if options and all(isinstance(option, Mapping) and "const" in option for option in options):
        return [option["const"] for option in options]
    return None


def _same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)  # JSON's true is not its 1


def _is_a(value: Any, kind: str) -> bool:
    if kind == "integer":
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return whole and not isinstance(value, bool)
    if kind == "number":
        return not isinstance(value, bool) and isinstance(value, (int, float))
    return isinstance(value, _KINDS.get(kind, object))


def _is_address(text: str) -> bool:
    from urllib.parse import urlsplit  # slow to import, and seldom needed

    return bool(urlsplit(text).scheme) and " " not in text


_KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "object": Mapping,
    "array": list,
    "null": type(None),
}
_SAID = {
    "string": "a text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_FORMATS: dict[str, tuple[Any, str]] = {
    "date": (date.fromisoformat, "a date such as 2026-12-24"),
    "date-time": (datetime.fromisoformat, "a date and time such as 2026-12-24T19:30:00Z"),
    "email": (re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+").fullmatch, "an e-mail address"),
    "uri": (_is_address, "an address such as https://example.org"),
}
