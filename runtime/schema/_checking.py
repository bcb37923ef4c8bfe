"""Checks a value against a JSON schema: tool arguments, answers to questions, and structured output.

Schemas come from servers, and values from models. So a check is bounded, uses only the schema and the value, and never
raises. What cannot be decided, such as a reference out of the schema, an unknown type, or a pattern that may take for
ever, is left to the server, with a note in the log, because refusing a correct value would be worse.

Common keywords are checked here, with error messages for people. Other keywords are checked by `jsonschema`, if it is
installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Set
from datetime import date, datetime
from typing import Any, Final, TypeAlias

from channels import CancelToken
from channels._lazy import lazy_logger

from ._patterns import pattern
from ._refs import target_of

_logger = lazy_logger("runtime")

_DEPTH: Final = 100  # levels of a value, and references in between
_STEPS: Final = 1_500_000  # schemas held against values: some seconds
_LOOK: Final = 1000  # steps between two looks at whether anybody still waits
_MOST: Final = 10  # problems that are told
_SHOWN: Final = 120  # characters of a value in a message
_NODES: Final = 10_000  # of a schema, looked through for what is not checked here

#: What `_Check` does not know. Where one of them occurs, `jsonschema` checks the value as well.
_MORE: Final = frozenset((
    "not", "if", "contains", "propertyNames", "dependencies", "dependentRequired", "dependentSchemas", "multipleOf",
    "unevaluatedItems", "unevaluatedProperties", "$anchor", "$dynamicRef", "$recursiveRef",
))  # fmt: skip

_TITLED: Final = {"const", "title", "description", "type"}

_Where: TypeAlias = "tuple[_Where, str | int] | None"


class Schema:
    """A JSON schema, for any number of checks. Thread-safe.

    Any value will do: what is no schema fits everything.
    """

    def __init__(self, schema: object) -> None:
        self.root = schema
        self._noted: set[str] = set()
        self._more: bool | None = None
        self._choices: dict[int, Set[Any] | None] = {}  # by the node that says them
        self._plain: _Plain | None = None

    def problems(self, value: Any, *, cancel: CancelToken | None = None) -> list[str]:
        """What is wrong with ``value``, in sentences; an empty list where it fits. Ends early where ``cancel`` is
        cancelled, since nobody waits for the answer then.
        """
        plain = self._plain = self._plain or _plain(self.root)
        if plain.fits(value):
            return []
        check = _Check(self, cancel)
        try:
            found = check.check(value, self.root, None, 0)
        except _Enough:
            self.note("it takes too long")
            return []
        except RecursionError:  # somebody calls us from deep down
            self.note("the stack is too deep")
            return []
        if found or check.deep:
            return found[:_MOST]
        if self._more is None:
            self._more = self._has_more()
        return self._by_jsonschema(value, cancel) if self._more else []

    def choices(self, node: Mapping[str, Any]) -> Set[Any] | None:
        """The values to choose from, where ``node``, a part of the schema, names them."""
        if "const" not in node and "enum" not in node and "oneOf" not in node:
            return None
        if id(node) not in self._choices:
            found = _choices(node)
            self._choices[id(node)] = None if found is None else frozenset(map(_frozen, found))
        return self._choices[id(node)]

    def note(self, why: str) -> None:
        """Log, once, a part of the schema that is not checked here, but left to whoever gave the schema."""
        if why not in self._noted and len(self._noted) < _MOST:
            self._noted.add(why)
            _logger.info("a part of a schema is not checked: %s", why)

    def _has_more(self) -> bool:
        """Whether there is a keyword that is not known here, or something that is called like one."""
        left, seen = [self.root], 0
        while left and seen < _NODES:
            seen += 1
            node = left.pop()
            if isinstance(node, Mapping):
                if not _MORE.isdisjoint(node):
                    return True
                left += node.values()
            elif isinstance(node, list):
                left += node
        return False

    def _by_jsonschema(self, value: Any, cancel: CancelToken | None) -> list[str]:
        try:
            import jsonschema  # type: ignore[import-untyped, unused-ignore]
            import referencing
        except ImportError:
            self.note("it has keywords that need the package jsonschema")
            return []
        steps = 0

        def counted(keyword: Callable[..., Any]) -> Callable[..., Any]:
            def check(*args: Any) -> Iterator[Any]:
                nonlocal steps
                steps += 1
                if steps > _STEPS // 10 or (steps % _LOOK == 0 and cancel is not None and cancel.cancelled):
                    raise _Enough
                yield from keyword(*args) or ()

            return check

        def patterned(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
            yield from ()  # it has been checked here

        def unreadable(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
            raise ValueError("patternProperties beside it")  # these patterns it would give to `re`

        try:
            kind = jsonschema.validators.validator_for(self.root, default=jsonschema.Draft202012Validator)
            keywords = {name: counted(keyword) for name, keyword in kind.VALIDATORS.items()}
            keywords |= {"pattern": patterned, "uniqueItems": patterned, "patternProperties": unreadable}
            # An empty registry: nothing is ever fetched.
            validator = jsonschema.validators.extend(kind, keywords)(self.root, registry=referencing.Registry())
            return [
                f"{'.'.join(map(str, error.absolute_path)) or 'the answer'}: {error.message[:500]}"
                for error, _ in zip(validator.iter_errors(value), range(_MOST), strict=False)
            ]
        except _Enough:
            self.note("it takes too long")
        except BaseException as error:  # a schema that jsonschema cannot read may raise anything
            # Its library in Rust panics where the stack ends inside it, which is no `Exception`.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            self.note(f"jsonschema cannot read it: {type(error).__name__}: {str(error)[:200]}")
        return []

    def __repr__(self) -> str:
        return f"<Schema {_shown(self.root)}>"


def problems(value: Any, schema: object) -> list[str]:
    """The problems of ``value``, as sentences; an empty list if it fits."""
    return Schema(schema).problems(value)


def properties_of(schema: object) -> dict[str, Mapping[str, Any]]:
    """The properties of ``schema``, each as a mapping, whatever the schema has in its place."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    return {str(name): each if isinstance(each, Mapping) else {} for name, each in properties.items()}


_SAY_A_TYPE: Final = frozenset(("type", "title", "description", "default", "examples"))  # and no more
_SAY_AN_OBJECT: Final = _SAY_A_TYPE | {"properties", "required", "additionalProperties"}
_CLASSES: Final = {"string": str, "integer": int, "number": int, "boolean": bool}  # a float may be no number


class _Plain:
    """A look that most arguments of most tools pass: an object, each of whose properties has one of the simple types,
    and all that are required. Whatever does not pass may fit all the same: the check tells.
    """

    def __init__(self, classes: Mapping[str, type] | None, required: frozenset[str]) -> None:
        self._classes = classes  # of the values, by name; None: the schema says more than that
        self._required = required

    def fits(self, value: Any) -> bool:
        classes = self._classes
        if classes is None or value.__class__ is not dict or len(value) > len(classes):
            return False
        for name, each in value.items():
            if classes.get(name) is not each.__class__:
                return False
        return self._required <= value.keys()


def _plain(schema: Any) -> _Plain:
    """The look for ``schema``."""
    no = _Plain(None, frozenset())
    if schema.__class__ is not dict or not schema.keys() <= _SAY_AN_OBJECT or schema.get("type") != "object":
        return no
    properties, required = schema.get("properties"), schema.get("required", [])
    if properties.__class__ is not dict or len(properties) > 100:
        return no
    if required.__class__ is not list or not all(name.__class__ is str for name in required):
        return no
    classes: dict[str, type] = {}
    for name, each in properties.items():
        kind = each.get("type") if each.__class__ is dict and each.keys() <= _SAY_A_TYPE else None
        if name.__class__ is not str or kind.__class__ is not str or kind not in _CLASSES:
            return no
        classes[name] = _CLASSES[kind]
    return _Plain(classes, frozenset(required))


class _Enough(Exception):
    """The check has taken all the steps that it may."""


class _Check:
    """One check. ``left`` counts what could not be told, ``deep`` says that there was a level too many."""

    def __init__(self, schema: Schema, cancel: CancelToken | None) -> None:
        self.schema = schema
        self.cancel = cancel
        self.steps = _STEPS
        self.next_look = _STEPS - _LOOK
        self.left = 0
        self.deep = False

    def leave(self, why: str) -> list[str]:
        """Leave a part of the check to whoever gave the schema, since it cannot be decided here."""
        self.left += 1
        self.schema.note(why)
        return []

    def check(self, value: Any, schema: Any, where: _Where, depth: int) -> list[str]:
        """The problems of ``value``, which stands at the place ``where``."""
        self.steps -= 1
        if self.steps < self.next_look:
            self.next_look = self.steps - _LOOK
            if self.steps < 0 or (self.cancel is not None and self.cancel.cancelled):
                raise _Enough
        if schema is True:
            return []
        if schema is False:
            return [f"{_name(where)} is not allowed here"]
        if not isinstance(schema, Mapping):
            return self.leave(f"{_shown(schema)} is not a schema")
        if depth > _DEPTH:
            self.deep = True
            return self.leave(f"it is nested more than {_DEPTH} levels deep")
        found = self._kind(value, schema, where)
        if found or (schema.keys() <= _SAY_A_TYPE and not isinstance(value, float)):  # as most arguments of most tools
            return found
        if isinstance(value, str):
            found = self._text(value, schema, where)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found = self._number(value, schema, where)
        elif isinstance(value, list):
            found = self._list(value, schema, where, depth)
        elif isinstance(value, Mapping):
            found = self._object(value, schema, where, depth)
        return found or self._combined(value, schema, where, depth)

    def _kind(self, value: Any, schema: Mapping[str, Any], where: _Where) -> list[str]:
        """The problems with ``type``, ``enum`` and ``const``."""
        choices = self.schema.choices(schema)
        if choices is not None and _frozen(value) not in choices:
            values = _choices(schema) or []
            said = ", ".join(map(_shown, values[:20]))
            return [f"{_name(where)} must be one of {said}{', ...' if len(values) > 20 else ''}, not {_shown(value)}"]
        kinds = schema.get("type")
        if kinds is None:
            return []
        if isinstance(kinds, str):
            kinds = [kinds]
        if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in _SAID for kind in kinds):
            return self.leave(f"there is no type {_shown(schema['type'])}")
        if kinds and not any(_is_a(value, kind) for kind in kinds):
            said = " or ".join(_SAID[kind] for kind in kinds)
            return [f"{_name(where)} must be {said}, not {_shown(value)}"]
        return []

    def _text(self, value: str, schema: Mapping[str, Any], where: _Where) -> list[str]:
        least, most = _bound(schema, "minLength"), _bound(schema, "maxLength")
        if least is not None and len(value) < least:
            return [f"{_name(where)} must have at least {least} character{'' if least == 1 else 's'}"]
        if most is not None and len(value) > most:
            return [f"{_name(where)} must have at most {most} character{'' if most == 1 else 's'}"]
        wanted = schema.get("pattern")
        if isinstance(wanted, str):
            fits = self._matches(wanted, value)
            if fits is False:
                return [f"{_name(where)} must have the form {wanted}, not {_shown(value)}"]
        form = schema.get("format")
        check = _FORMATS.get(form) if isinstance(form, str) else None
        if check is not None:
            try:
                fits = bool(check[0](value))
            except ValueError:
                fits = False
            if not fits:
                return [f"{_name(where)} must be {check[1]}, not {_shown(value)}"]
        return []

    def _number(self, value: float, schema: Mapping[str, Any], where: _Where) -> list[str]:
        if isinstance(value, float) and not math.isfinite(value):  # passes every bound, and JSON has none
            return [f"{_name(where)} must be a finite number, not {value}"]
        least, most = _bound(schema, "minimum"), _bound(schema, "maximum")
        above, below = _bound(schema, "exclusiveMinimum"), _bound(schema, "exclusiveMaximum")
        if schema.get("exclusiveMinimum") is True:  # as draft 4 has it
            least, above = None, least
        if schema.get("exclusiveMaximum") is True:
            most, below = None, most
        if least is not None and value < least:
            return [f"{_name(where)} must be {least} or more, not {_shown(value)}"]
        if most is not None and value > most:
            return [f"{_name(where)} must be {most} or less, not {_shown(value)}"]
        if above is not None and value <= above:
            return [f"{_name(where)} must be more than {above}, not {_shown(value)}"]
        if below is not None and value >= below:
            return [f"{_name(where)} must be less than {below}, not {_shown(value)}"]
        return []

    def _list(self, value: list[Any], schema: Mapping[str, Any], where: _Where, depth: int) -> list[str]:
        least, most = _bound(schema, "minItems"), _bound(schema, "maxItems")
        if least is not None and len(value) < least:
            return [f"{_name(where)} must have at least {least} item{'' if least == 1 else 's'}"]
        if most is not None and len(value) > most:
            return [f"{_name(where)} must have at most {most} item{'' if most == 1 else 's'}"]
        if schema.get("uniqueItems") is True and len({_frozen(item) for item in value}) < len(value):
            return [f"{_name(where)} must not have an item twice"]
        first, rest = schema.get("prefixItems"), schema.get("items", True)
        if isinstance(rest, list):  # as it was before 2020
            first, rest = rest, schema.get("additionalItems", True)
        if not isinstance(first, list):
            first = []
        found: list[str] = []
        for i, item in enumerate(value):
            wanted = first[i] if i < len(first) else rest
            if wanted is not True:
                found += self.check(item, wanted, (where, i), depth + 1)
                if len(found) >= _MOST:
                    break
        return found

    def _object(self, value: Mapping[str, Any], schema: Mapping[str, Any], where: _Where, depth: int) -> list[str]:
        properties, patterns = schema.get("properties"), schema.get("patternProperties")
        if not isinstance(properties, Mapping):
            properties = {}
        if not isinstance(patterns, Mapping):
            patterns = {}
        others, required = schema.get("additionalProperties", True), schema.get("required")
        found = []
        if isinstance(required, list):
            missing = [key for key in required if isinstance(key, str) and key not in value]
            found = [f"{_name((where, key))} is missing" for key in missing[:_MOST]]
        least, most = _bound(schema, "minProperties"), _bound(schema, "maxProperties")
        if least is not None and len(value) < least:
            found.append(f"{_name(where)} must have at least {least} entr{'y' if least == 1 else 'ies'}")
        if most is not None and len(value) > most:
            found.append(f"{_name(where)} must have at most {most} entr{'y' if most == 1 else 'ies'}")
        for key, item in value.items():
            if len(found) >= _MOST:
                break
            inside = where, key
            known = key in properties
            if known:
                found += self.check(item, properties[key], inside, depth + 1)
            for text, wanted in patterns.items():
                fits = self._matches(str(text), str(key))
                if fits:
                    found += self.check(item, wanted, inside, depth + 1)
                known = known or fits is not False
            if known or others is True:
                continue
            if others is False:
                names = ", ".join(_cut(str(name)) for name in list(properties)[:50]) or "none"
                found.append(f"{_name(inside)} is not asked for (known: {names})")
            else:
                found += self.check(item, others, inside, depth + 1)
        return found

    def _combined(self, value: Any, schema: Mapping[str, Any], where: _Where, depth: int) -> list[str]:
        """The problems with references, and with keywords that combine schemas, such as ``anyOf``."""
        found: list[str] = []
        reference = schema.get("$ref")
        if reference is not None:
            target = target_of(reference, self.schema.root)
            if target is None:
                self.leave(f"the reference {_shown(reference)}, which leads nowhere in the schema itself")
            else:
                found += self.check(value, target, where, depth + 1)
        each: Any = schema.get("allOf")
        if isinstance(each, list):
            for part in each:
                found += self.check(value, part, where, depth + 1)
        each = schema.get("anyOf")
        if isinstance(each, list) and each and not found:
            found += self._one_of(value, each, where, depth, exactly=False)
        each = schema.get("oneOf")
        if isinstance(each, list) and each and not found and not _are_constants(each):
            found += self._one_of(value, each, where, depth, exactly=True)
        return found

    def _one_of(self, value: Any, options: list[Any], where: _Where, depth: int, *, exactly: bool) -> list[str]:
        left, fitting = self.left, 0
        best: list[str] | None = None
        alone: list[str] = []  # what is wrong where only one thing is: any of them would mend it
        for option in options:
            found = self.check(value, option, where, depth + 1)
            if found:
                best = found if best is None or len(found) < len(best) else best
                alone += found if len(found) == 1 and found[0] not in alone else []
                continue
            fitting += 1
            if not exactly:
                return []
        # Of the options that fit, those that could not be read may not be what it is.
        if fitting == 1 or (fitting and self.left > left):
            return []
        if fitting:
            return [f"{_name(where)} must fit exactly one of {len(options)} schemas, not {fitting}: {_shown(value)}"]
        if best is not None and len(best) == 1 and len(alone) <= 4:
            return ["; or ".join(alone)]
        return best or []

    def _matches(self, wanted: str, text: str) -> bool | None:
        found, steps = pattern(wanted).found_in(text)
        self.steps -= steps // 20
        if found is None:
            self.leave(f"the pattern {_shown(wanted)}")
        return found


def _name(where: _Where) -> str:
    """The name of a place in the value, such as table.seats[3]."""
    steps: list[str | int] = []
    while where is not None:
        where, step = where
        steps.append(step)
    name = ""
    for step in reversed(steps):
        name += f"[{step}]" if isinstance(step, int) else f".{_cut(step)}" if name else _cut(step)
    return name or "the answer"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _shown(value: Any) -> str:
    """``value`` in a message: never more than a line of it, however large it is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}... ({len(value)} characters)"
    if isinstance(value, list):
        return f"a list of {len(value)}" if _size(value) > 20 else _cut(repr(value))
    if isinstance(value, Mapping):
        return f"an object of {len(value)}" if _size(value) > 20 else _cut(repr(value))
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return "a number of many digits"
    return _cut(repr(value))


def _size(value: Any) -> int:
    """How many values there are inside ``value``, counted up to 21 of them and texts that are short; else more."""
    left, count = [value], 0
    while left and count <= 20:
        node = left.pop()
        count += 1
        if isinstance(node, Mapping):
            if len(node) > 20 or any(isinstance(key, str) and len(key) > _SHOWN for key in node):
                return 21
            left += node.values()
        elif isinstance(node, list):
            if len(node) > 20:
                return 21
            left += node
        elif (isinstance(node, str) and len(node) > _SHOWN) or (isinstance(node, int) and abs(node) >= 10**_SHOWN):
            return 21
    return count


def _bound(schema: Mapping[str, Any], name: str) -> float | None:
    """The number of a keyword such as ``minimum``; None for numbers in quotes, nulls and the like."""
    bound = schema.get(name)
    if isinstance(bound, bool) or not isinstance(bound, (int, float)) or math.isnan(bound):
        return None
    return bound


def _choices(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that ``schema`` names as its choices."""
    wanted: list[list[Any]] = []
    if "const" in schema:
        wanted.append([schema["const"]])
    if isinstance(schema.get("enum"), list):
        wanted.append(schema["enum"])
    if _are_constants(schema.get("oneOf")):
        wanted.append([option["const"] for option in schema["oneOf"]])
    if not wanted:
        return None
    others = [set(map(_frozen, each)) for each in wanted[1:]]
    return [each for each in wanted[0] if all(_frozen(each) in other for other in others)]


def _are_constants(options: Any) -> bool:
    """Whether the alternatives are constants with titles, as forms write their choices."""
    return (
        isinstance(options, list)
        and bool(options)
        and all(isinstance(each, Mapping) and "const" in each and each.keys() <= _TITLED for each in options)
    )


def _frozen(value: Any) -> Any:
    """``value`` as something to compare and to hash: JSON's true is not its 1, but 1.0 is."""
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, (list, tuple)):
        return list, tuple(map(_frozen, value))
    if isinstance(value, Mapping):
        return dict, frozenset((key, _frozen(item)) for key, item in value.items())
    try:
        hash(value)
    except TypeError:  # nothing that JSON has
        return type(value), id(value)
    return value


def _is_a(value: Any, kind: str) -> bool:
    if kind == "integer":
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return whole and not isinstance(value, bool)
    if kind == "number":
        return not isinstance(value, bool) and isinstance(value, (int, float))
    return isinstance(value, _KINDS[kind])


def _is_address(text: str) -> bool:
    from urllib.parse import urlsplit  # slow to import, and seldom needed

    return bool(urlsplit(text[:1000]).scheme) and " " not in text


def _is_email(text: str) -> bool:
    name, _, host = text.partition("@")
    return len(text) < 1000 and bool(name) and "@" not in host and "." in host[1:-1] and text.split() == [text]


_KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "object": Mapping,
    "array": list,
    "null": type(None),
}
_SAID = {
    "string": "text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_FORMATS: dict[str, tuple[Callable[[str], Any], str]] = {
    "date": (date.fromisoformat, "a date such as 2026-12-24"),
    "date-time": (datetime.fromisoformat, "a date and time such as 2026-12-24T19:30:00Z"),
    "email": (_is_email, "an e-mail address"),
    "uri": (_is_address, "an address such as https://example.org"),
}
