"""References are followed inside the schema alone, and what makes a part of it optional is taken away."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.schema._refs import resolved, target_of

ROOT: dict[str, Any] = {
    "$defs": {
        "Size": {"type": "string", "enum": ["S", "L"], "title": "Size"},
        "a/b": {"type": "integer"},
        "50%": {"type": "number"},
        "Again": {"$ref": "#/$defs/Size"},
        "Self": {"$ref": "#/$defs/Self"},
    },
    "anyOf": [{"type": "null"}, {"type": "boolean"}],
}
SIZE = ROOT["$defs"]["Size"]


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("#", ROOT),
        ("#/$defs/Size", SIZE),
        ("#/$defs/a~1b", {"type": "integer"}),
        ("#/$defs/50%25", {"type": "number"}),
        ("#/anyOf/1", {"type": "boolean"}),
        ("#/anyOf/2", None),
        ("#/$defs/Missing", None),
        ("#Size", None),
        ("https://example.org/schema#/$defs/Size", None),
        (3, None),
    ],
)
def test_a_reference_leads_to_a_part_of_the_schema_or_nowhere(reference: object, target: object) -> None:
    assert target_of(reference, ROOT) == target


@pytest.mark.parametrize(
    ("schema", "meant"),
    [
        ({"$ref": "#/$defs/Again"}, SIZE),
        ({"$ref": "#/$defs/Size", "title": "How big"}, {**SIZE, "title": "How big"}),
        ({"anyOf": [{"$ref": "#/$defs/Size"}, {"type": "null"}], "default": "S"}, {**SIZE, "default": "S"}),
        ({"oneOf": [{"type": "null"}, {"const": "S"}]}, {"const": "S"}),
        ({"oneOf": [{"const": "S", "title": "small"}]}, {"oneOf": [{"const": "S", "title": "small"}]}),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        ({"type": ["string", "null"]}, {"type": "string"}),
        ({"type": ["string", "integer"]}, {}),
        ({"$ref": "#/$defs/Missing"}, {}),
        ({"anyOf": "nonsense"}, {"anyOf": "nonsense"}),
        (True, {}),
    ],
)
def test_a_part_of_a_schema_is_resolved(schema: object, meant: object) -> None:
    assert resolved(schema, ROOT) == meant


def test_a_reference_to_itself_ends() -> None:
    assert resolved({"$ref": "#/$defs/Self"}, ROOT) == {"$ref": "#/$defs/Self"}
