"""What Anthropic's server can make a model keep to: it makes a grammar of a schema, and refuses what has none.

A request that is refused ends the run, and the instructions say the schema anyhow: so what may be refused is not sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anthropic import transform_schema

from ..schema._refs import target_of


def with_grammar(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """``schema`` as the protocol takes it; None where it takes none that says the same.

    Bounds of numbers and lengths become part of the descriptions. The runtime checks them.
    """
    if schema.get("type") != "object" or not _is_bounded(schema, schema):
        return None
    try:
        return transform_schema(dict(schema))
    except ValueError:  # such as a choice of things that are not plain values
        return None


def _is_bounded(schema: Mapping[str, Any], root: Mapping[str, Any], inside: tuple[str, ...] = ()) -> bool:
    """Whether it says of everything in it what it may be, and nothing contains itself. Objects with any keys would be
    sent as objects without keys. ``inside`` are the references that led to it.
    """
    if "$ref" in schema:
        reference = schema["$ref"]
        target = None if reference in inside else target_of(reference, root)
        return isinstance(target, Mapping) and _is_bounded(target, root, (*inside, reference))
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return all(_is_bounded(each, root, inside) for each in schema[word])
    if "enum" in schema or "const" in schema:
        return True
    parts: list[Mapping[str, Any]] = []
    match schema.get("type"):
        case "object":
            if "properties" not in schema or schema.get("additionalProperties", False) is not False:
                return False
            parts.extend(schema["properties"].values())
        case "array":
            if "items" not in schema:
                return False
            parts.append(schema["items"])
        case kind:
            return kind in ("string", "integer", "number", "boolean", "null")
    return all(_is_bounded(part, root, inside) for part in parts)
